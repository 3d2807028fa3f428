"""Chats to token ids with an exact supervision mask; the user's text never becomes a special token.

How it works: the chat is tokenised in one go, as Hugging Face does, by a private copy of the tokenizer in which every
special token has an alias that nobody can guess. The template's own special tokens are written by alias, the user's
text is written as it is, and the copy splits the real names of special tokens like any other text. Media are aliases
too: no string in a prompt stands for a medium. The result equals the joint tokenisation of the rendered template
wherever the user's text holds no special token.

As in that, a tokenizer may join the last characters of the template before an answer with the answer's first ones into
one token, which is then learnt whole. Those that split text at words first, as that of nearly every language model
does, join spaces and line breaks at most.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.chat.render import ChatRenderer, Part, whole_characters
from speechlmm_core.chat.template import BUILT_IN, PAD_TOKENS, STOP_TOKENS
from speechlmm_core.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextPiece:
    """Token ids between two media."""

    ids: list[int]
    supervised: list[bool]
    """Which of them are the assistant's: what it says, and the token that ends its turn."""


@dataclass(frozen=True)
class MediaPiece:
    """The place of a medium."""

    item: dict[str, Any]
    """The content item; its `type` is the input's name."""


class ChatTokenizer:
    """A tokenizer with a pinned chat template.

    Args:
        tokenizer: A fast tokenizer of transformers.
        template: The template's Jinja source, with generation markers.
        template_name: How messages call the template; for a built-in name its tokens are required.

    Raises:
        ConfigError: The tokenizer lacks what the template needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, template_name: str = "custom") -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"tokenizer {tokenizer.name_or_path!r} has no fast version (tokenizer.json), which exact masks need; "
                "convert it, or choose another"
            )
        self.tokenizer = tokenizer
        self.template = template
        self.template_name = template_name
        self._backend: Tokenizer = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        self._check_tokens()
        self._reserved = self._reserved_ids()
        self._control = {number for number in self._reserved.values() if number != tokenizer.unk_token_id}
        self._renderer = ChatRenderer(template, template_name, tokenizer.special_tokens_map)
        self._make_aliases()
        self.stop_token_ids = self._stop_ids()
        self.pad_token_id = self._pad_id()

    def __len__(self) -> int:
        """Rows that an embedding table needs at least: the largest id that can come up, and one.

        Special tokens come up only where the template, padding or the ends of a text need them, for no text holds any:
        Gemma 3's tokenizer has one for images, which lies beyond the table of its language models.
        """
        idle = set(self._reserved.values()) - self._needed_ids()
        ids = self._backend.get_vocab(with_added_tokens=True).values()
        return max((number for number in ids if number not in idle), default=-1) + 1

    def encode_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> list[TextPiece | MediaPiece]:
        """Tokenises a conversation.

        Args:
            messages: The conversation.
            add_generation_prompt: Whether to end with the opening of an assistant's turn.

        Returns:
            Text and media in order; no two texts are neighbours, and no text is empty.

        Raises:
            DataError: The template does not support the conversation.
        """
        parts = self._renderer.parts(messages, add_generation_prompt=add_generation_prompt)
        media = iter([part.item for part in parts if part.item is not None])
        pieces: list[TextPiece | MediaPiece] = []
        ids: list[int] = []
        supervised: list[bool] = []
        for token, is_supervised in [*self._tokenise(parts), (self._medium_id, False)]:
            if token != self._medium_id:
                # Nothing stands before the first token that it could be predicted from.
                supervised.append(is_supervised and bool(ids or pieces))
                ids.append(token)
                continue
            if ids:
                pieces.append(TextPiece(ids, supervised))
                ids, supervised = [], []
            item = next(media, None)
            if item is not None:
                pieces.append(MediaPiece(item))
        return pieces

    def count_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> tuple[int, list[dict[str, Any]]]:
        """What `encode_chat` would give, counted: the number of tokens, and the items of the media.

        Args:
            messages: The conversation.
            add_generation_prompt: Whether to end with the opening of an assistant's turn.

        Raises:
            DataError: The template does not support the conversation.
        """
        parts = self._renderer.parts(messages, add_generation_prompt=add_generation_prompt)
        others = (self._medium_id, self._break_id)
        tokens = sum(token not in others for token in self._encoding(parts)[0].ids)
        return tokens, [part.item for part in parts if part.item is not None]

    def encode(self, text: str) -> list[int]:
        """Tokenises text without any template; the names of special tokens in it stay text."""
        return [token for token, _ in self._tokenise([Part(whole_characters(text), False, is_user=True)])]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        kept = [int(token) for token in ids if int(token) not in self._control]
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def save_pretrained(self, folder: Path) -> None:
        """Writes the tokenizer's files and `chat_template.jinja` into a folder."""
        self.tokenizer.chat_template = self.template
        self.tokenizer.save_pretrained(folder)
        (Path(folder) / "chat_template.jinja").write_text(self.template, encoding="utf-8")

    def __getstate__(self) -> dict[str, Any]:
        # `encode_special_tokens` does not survive pickling; the copy is made again in the worker.
        return {"tokenizer": self.tokenizer, "template": self.template, "template_name": self.template_name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ChatTokenizer.__init__(self, **state)

    def _tokenise(self, parts: Sequence[Part]) -> list[tuple[int, bool]]:
        """Ids with their mask; a medium is `_medium_id`."""
        encoding, supervised = self._encoding(parts)
        out: list[tuple[int, bool]] = []
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token != self._break_id:
                out.append((self._true_ids.get(token, token), 1 in supervised[start : max(end, start + 1)]))
        return out

    def _encoding(self, parts: Sequence[Part]) -> tuple[Encoding, bytearray]:
        """The encoding by the copy, in which the user's text holds no special token, and the mask of its characters."""
        breaks: set[int] = set()
        while True:
            text, supervised, users = self._compose(parts, breaks)
            encoding = self._copy.encode(text, add_special_tokens=False)
            if self._control.isdisjoint(encoding.ids):
                return encoding, supervised
            tokens = zip(encoding.ids, encoding.offsets, strict=True)
            # Some vocabularies (unigram ones) hold the names of special tokens as ordinary pieces: split those.
            names = [users[start] for token, (start, end) in tokens if token in self._control and end - start > 1]
            fresh = {start + 1 for start in names if start >= 0} - breaks
            if not fresh:
                return encoding, supervised
            breaks |= fresh

    def _compose(self, parts: Sequence[Part], breaks: set[int]) -> tuple[str, bytearray, list[int]]:
        """The text for the copy with, per character, its mask and its place in the user's text (-1: not the user's).

        Args:
            parts: What to compose; neighbouring literals are joined, for a generation span may begin inside one.
            breaks: Places in the user's text before which a token must end.
        """
        chunks: list[str] = []
        mask = bytearray()
        users: list[int] = []
        place = 0

        def add(text: str, supervised: bool, first: int) -> None:
            chunks.append(text)
            mask.extend((b"\1" if supervised else b"\0") * len(text))
            users.extend(range(first, first + len(text)) if first >= 0 else [-1] * len(text))

        for part in parts:
            if part.item is not None:
                add(self._medium, False, -1)
            elif not part.is_user:
                add(self._names.sub(lambda match: self._aliases[match[0]], part.text), part.supervised, -1)
            else:
                cuts = [0, *sorted(b - place for b in breaks if place < b < place + len(part.text)), len(part.text)]
                for i, (start, end) in enumerate(pairwise(cuts)):
                    if i:
                        add(self._breaker, part.supervised, -1)
                    add(part.text[start:end], part.supervised, place + start)
                place += len(part.text)
        return "".join(chunks), mask, users

    def _reserved_ids(self) -> dict[str, int]:
        """Tokens that text must not produce: special ones, and added ones that the template writes."""
        added = self.tokenizer.added_tokens_decoder
        return {
            token.content: number
            for number, token in added.items()
            if token.special or (token.content.strip() and token.content in self.template)
        }

    def _needed_ids(self) -> set[int]:
        """Ids of the special tokens that can come up."""
        always = ("bos_token", "eos_token", "unk_token")
        # A template writes a token by its name, or by its role (`{{ bos_token }}`).
        roles = self.tokenizer.special_tokens_map.items()
        written = [self.template, *(str(token) for role, token in roles if role in always or role in self.template)]
        found = {number for name, number in self._reserved.items() if any(name in text for text in written)}
        return {*found, *self.stop_token_ids, self.pad_token_id}

    def _make_aliases(self) -> None:
        from tokenizers import AddedToken, Tokenizer

        layout = json.loads(self._backend.to_str())
        # A post-processor may trim white space off the offsets; padding and truncation are not ours.
        layout.update(post_processor=None, padding=None, truncation=None)
        flags: dict[str, dict[str, Any]] = {}
        for token in layout["added_tokens"]:
            if token["content"] in self._reserved:
                token["special"] = True
                flags[token["content"]] = {key: token[key] for key in ("single_word", "lstrip", "rstrip", "normalized")}
        nonce = secrets.token_hex(8)
        copy = Tokenizer.from_str(json.dumps(layout))
        copy.encode_special_tokens = True
        self._aliases = {name: f"\ue000{nonce}{number}\ue001" for number, name in enumerate(flags)}
        self._medium, self._breaker = f"\ue000{nonce}medium\ue001", f"\ue000{nonce}break\ue001"
        plain = {"special": False, "normalized": False}
        copy.add_tokens([AddedToken(text, **plain) for text in (self._medium, self._breaker)])
        copy.add_tokens([AddedToken(alias, special=False, **flags[name]) for name, alias in self._aliases.items()])
        self._copy = copy
        self._true_ids = {copy.token_to_id(alias): self._reserved[name] for name, alias in self._aliases.items()}
        self._medium_id, self._break_id = copy.token_to_id(self._medium), copy.token_to_id(self._breaker)
        longest_first = sorted(self._aliases, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _check_tokens(self) -> None:
        needs = BUILT_IN.get(self.template_name)
        if needs is None:
            return
        missing = [token for token in needs.others if self._backend.token_to_id(token) is None]
        if missing:
            raise ConfigError(
                f"chat template {self.template_name!r} needs {', '.join(map(repr, missing))}, which the tokenizer "
                f"{self.tokenizer.name_or_path!r} lacks; choose the model's own template ({', '.join(BUILT_IN)}, "
                "or the path of a Jinja file)"
            )
        for role in ("bos_token", "eos_token"):
            if role in self.template and getattr(self.tokenizer, role) is None:
                raise ConfigError(
                    f"chat template {self.template_name!r} needs a {role}, which the tokenizer "
                    f"{self.tokenizer.name_or_path!r} does not declare; add it to its tokenizer_config.json"
                )

    def _stop_ids(self) -> list[int]:
        probe = [Message(role="user", content=[_text("q")]), Message(role="assistant", content=[_text("a")])]
        ends = [token for token, supervised in self._tokenise(self._renderer.parts(probe)) if supervised]
        found = [token for token in ends if token in self._control]
        found += [self._reserved[name] for name in STOP_TOKENS if name in self._reserved]
        eos = self.tokenizer.eos_token_id
        found += [eos] if isinstance(eos, int) else []
        if not found:
            raise ConfigError(
                f"neither the chat template {self.template_name!r} nor the tokenizer {self.tokenizer.name_or_path!r} "
                "has a token that ends an answer; declare an eos_token in tokenizer_config.json"
            )
        return list(dict.fromkeys(found))

    def _pad_id(self) -> int:
        declared = self.tokenizer.pad_token_id
        if isinstance(declared, int):
            return declared
        for name in PAD_TOKENS:
            if name in self._reserved:
                return self._reserved[name]
        return self.stop_token_ids[0]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}

"""Renders chats into literal, user and media parts, without user text ever passing through the template.

Each content item is rendered as a sentinel that occurs nowhere else, so what is the template's and what is the
user's is known exactly, whatever the user writes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.chat.template import check_template
from speechlmm_core.errors import ConfigError, DataError

_SURROGATE = re.compile("[\ud800-\udfff]")

# Jinja's `trim` removes it, and no template writes one.
_PROBE_SPACE = "\x0b"
SHAPES = 256
"""Renderings that are kept: chats of the same roles and numbers of items have the same one."""


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered chat that is wholly the template's, wholly the user's, or one medium."""

    text: str
    supervised: bool
    is_user: bool = False
    item: dict[str, Any] | None = None
    """The content item, where the part is a medium."""


class ChatRenderer:
    """A compiled chat template with its variables.

    Args:
        template: The Jinja source.
        name: How messages call the template.
        variables: What the template may refer to (`bos_token`, `eos_token`, …).

    Raises:
        ConfigError: The template does not compile, or marks nothing of an assistant's message.
    """

    def __init__(self, template: str, name: str, variables: Mapping[str, Any]) -> None:
        check_template(template, name)
        self.template = template
        self.name = name
        self.variables = dict(variables)
        self._rendered: dict[Any, tuple[str, list[tuple[int, int]]]] = {}
        self._nonce = secrets.token_hex(8)
        self._sentinel = re.compile(f"item{self._nonce}n([0-9]+)e")
        # (role -> (strips before, strips after))
        self._trims = {role: self._probe_trim(role) for role in ("system", "user", "assistant")}
        answer = self.parts([_message("user", "q"), _message("assistant", "a")])
        if not any(part.is_user and part.supervised and part.text == "a" for part in answer):
            raise ConfigError(f"chat template {name!r} has generation markers, but not around the assistant's content")

    def parts(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Part]:
        """The rendered chat, in order; neighbouring parts differ in kind.

        Raises:
            DataError: The template refuses the conversation or leaves out a part of it.
        """
        if not messages:
            raise DataError("a chat needs at least one message, got none")
        if any(message.role == "text" for message in messages):
            return self._text_parts(messages, open_end=add_generation_prompt)
        items: list[dict[str, Any]] = []
        chat: list[dict[str, str]] = []
        owners: list[Message] = []  # of the items
        for message in messages:
            kept = self._trimmed(message)
            marks = [self._mark(len(items) + i) for i in range(len(kept))]
            items.extend(kept)
            owners.extend([message] * len(kept))
            chat.append({"role": message.role, "content": "".join(marks)})
        try:
            rendered, spans = self._render(chat, add_generation_prompt)
        except Exception as exc:  # Jinja's own errors and whatever `raise_exception` raises in the template
            raise DataError(f"chat template {self.name!r} refuses the conversation: {exc}") from exc
        found = [int(match[1]) for match in self._sentinel.finditer(rendered)]
        if sorted(found) != list(range(len(items))):
            raise DataError(
                f"chat template {self.name!r} leaves out or repeats a part of the conversation with the roles "
                f"{[message.role for message in messages]}; it does not support this order of roles"
            )
        if not all(message.supervised for message in messages):
            spans = self._supervised(rendered, spans, owners, messages)
        return list(self._cut(rendered, spans, items))

    def _text_parts(self, messages: Sequence[Message], *, open_end: bool) -> list[Part]:
        """Text by itself: between the tokens that begin and end one, where the tokenizer has them; all is learnt."""
        if len(messages) != 1:
            roles = [message.role for message in messages]
            raise DataError(f"a message with the role 'text' stands by itself, got it among the roles {roles}")
        supervised = messages[0].supervised
        found = [Part(str(self.variables["bos_token"]), False)] if self.variables.get("bos_token") else []
        for item in messages[0].content:
            if item["type"] != "text":
                found.append(Part("", False, item=dict(item)))
            elif item["text"]:
                found.append(Part(whole_characters(item["text"]), supervised, is_user=True))
        if not open_end and self.variables.get("eos_token"):
            found.append(Part(str(self.variables["eos_token"]), supervised))
        return found

    def _supervised(
        self, rendered: str, spans: list[tuple[int, int]], owners: Sequence[Message], messages: Sequence[Message]
    ) -> list[tuple[int, int]]:
        """The generation spans of those messages that are to be learnt."""
        places = {match.start(): owners[int(match[1])] for match in self._sentinel.finditer(rendered)}
        answers = [message for message in messages if message.role == "assistant"]
        kept: list[tuple[int, int]] = []
        for number, (first, last) in enumerate(spans):
            within = [owner for place, owner in places.items() if first <= place < last]
            # An empty answer leaves no trace in its span but its number.
            owner = within[0] if within else answers[number] if len(spans) == len(answers) else None
            if owner is None or owner.supervised:
                kept.append((first, last))
        return kept

    def _mark(self, number: int) -> str:
        return f"item{self._nonce}n{number}e"

    def _render(self, chat: list[dict[str, str]], add_generation_prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        """The rendering and its generation spans; chats of one shape are the same here, so they are kept."""
        shape = (tuple((message["role"], message["content"]) for message in chat), add_generation_prompt)
        found = self._rendered.get(shape)
        if found is None:
            if len(self._rendered) >= SHAPES:
                self._rendered.clear()
            found = self._rendered[shape] = self._render_anew(chat, add_generation_prompt)
        return found

    def _render_anew(
        self, chat: list[dict[str, str]], add_generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, spans = render_jinja_template(
            conversations=[chat],  # pyright: ignore[reportArgumentType] its annotation forgets nested lists
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=add_generation_prompt,
            **self.variables,
        )
        return rendered[0], [(int(first), int(last)) for first, last in spans[0]]

    def _probe_trim(self, role: str) -> tuple[bool, bool]:
        mark = self._mark(0)
        turns = {"system": ["system", "user"], "user": ["user"], "assistant": ["user", "assistant"]}[role]
        chat = [
            {"role": turn, "content": f"{_PROBE_SPACE}{mark}{_PROBE_SPACE}" if turn == role else "x"} for turn in turns
        ]
        try:
            rendered, _ = self._render(chat, False)
        except Exception as exc:
            if role == "system":  # some templates know no system message; they say so when one comes
                return False, False
            raise ConfigError(f"chat template {self.name!r} does not render a plain conversation: {exc}") from exc
        return f"{_PROBE_SPACE}{mark}" not in rendered, f"{mark}{_PROBE_SPACE}" not in rendered

    def _trimmed(self, message: Message) -> list[dict[str, Any]]:
        """The message's items without the white space that the template would trim, and without empty texts."""
        items = [dict(item) for item in message.content]
        for item in items:
            if item["type"] == "text":
                item["text"] = whole_characters(item["text"])
        for trims, order, strip in zip(self._trims[message.role], (1, -1), (str.lstrip, str.rstrip), strict=True):
            for item in items[::order] if trims else ():
                if item["type"] != "text":
                    break
                item["text"] = strip(item["text"])
                if item["text"]:
                    break
        return [item for item in items if item["type"] != "text" or item["text"]]

    def _cut(self, rendered: str, spans: list[tuple[int, int]], items: list[dict[str, Any]]) -> Iterator[Part]:
        """Cuts the rendering at sentinels and at the ends of generation spans."""
        sentinels = {match.start(): match for match in self._sentinel.finditer(rendered)}
        cuts = {0, len(rendered), *(edge for span in spans for edge in span)}
        cuts.update(edge for match in sentinels.values() for edge in match.span())
        edges = sorted(cuts)
        for start, end in pairwise(edges):
            supervised = any(first <= start < last for first, last in spans)
            if start not in sentinels:
                yield Part(rendered[start:end], supervised)
                continue
            item = items[int(sentinels[start][1])]
            if item["type"] == "text":
                yield Part(item["text"], supervised, is_user=True)
            else:
                yield Part("", supervised, item=item)


def whole_characters(text: str) -> str:
    """Replaces halves of surrogate pairs, which JSON can hold and no tokenizer takes, by U+FFFD."""
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _message(role: str, text: str) -> Message:
    return Message.model_validate({"role": role, "content": text})

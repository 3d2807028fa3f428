"""A sample's tokens as text: which are supervised, which are special, and where its media stand. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from speechlmm_core.chat.tokenizer import ChatTokenizer, MediaPiece, TextPiece

ESCAPED = r"\\\g<0>"
_IN_BRACKETS = re.compile(r"\[(?=\[)|\](?=\])|\A\[|\]\Z")
_BETWEEN = re.compile(r"\[(?=\[)|\](?=\])|\[\Z|\A\]")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that order scripts, separators of lines, and halves of pairs."""


@dataclass(frozen=True)
class Span:
    """A run of tokens of one kind."""

    text: str
    num_tokens: int
    supervised: bool = False
    special: bool = False
    """Whether they are special tokens; text that only looks like one is none."""
    medium: bool = False


def spans_of(
    pieces: Sequence[TextPiece | MediaPiece], num_frames: Sequence[int], tokenizer: ChatTokenizer
) -> list[Span]:
    """The runs of a conversation.

    Args:
        pieces: What the chat tokenizer made of it.
        num_frames: Positions that each medium takes, in order.
        tokenizer: The chat tokenizer.
    """
    backend = tokenizer.tokenizer
    special = {int(number) for number, token in backend.added_tokens_decoder.items() if token.special}
    found: list[Span] = []
    frames = iter(num_frames)
    for piece in pieces:
        if isinstance(piece, MediaPiece):
            count = next(frames)
            found.append(Span(f"<{piece.item['type']} x {count}>", count, medium=True))
            continue
        kinds = zip(piece.ids, piece.supervised, strict=True)
        for (supervised, is_special), run in groupby(kinds, lambda one: (one[1], one[0] in special)):
            ids = [number for number, _ in run]
            text = str(backend.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            found.append(Span(text, len(ids), supervised, is_special))
    return found


def marked(spans: Sequence[Span]) -> str:
    """Plain text, what is supervised in ``[[…]]``; brackets that could be taken for these get a backslash."""
    runs = [(supervised, _text(run)) for supervised, run in groupby(spans, lambda span: span.supervised)]
    return "".join(
        f"[[{_IN_BRACKETS.sub(ESCAPED, text)}]]" if supervised else _BETWEEN.sub(ESCAPED, text)
        for supervised, text in runs
    )


def visible(text: str) -> str:
    """A text whose control characters, such as those that move a terminal's cursor or turn the line round, are codes.

    Line breaks and tabs stay.
    """
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1] if found[0].isascii() else f"\\u{ord(found[0]):04x}", text)


def coloured(spans: Sequence[Span]) -> str:
    """Text for a terminal: what is supervised in green, media in blue, special tokens faint."""
    import click

    def one(span: Span) -> str:
        colour = "green" if span.supervised else "blue" if span.medium else None
        return click.style(
            visible(span.text), fg=colour, bold=span.supervised, dim=span.special and not span.supervised
        )

    return "".join(one(span) for span in spans)


def _text(spans: Iterable[Span]) -> str:
    return visible("".join(span.text for span in spans))

"""Text as metrics compare it: normalisers, and what counts as a word in scripts without spaces. Imports no torch."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

Normaliser = Literal["basic", "whisper", "none"]
"""`basic`: case and punctuation are left out of account. `whisper`: as the Whisper models are scored; in English,
numbers, abbreviations and British spellings are unified, too. `none`: the text as it is."""

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'"})
_NOT_SPOKEN = re.compile(r"[^\w\s']|_")
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")

# Thai and Lao, Tibetan, Myanmar, Khmer; kana, CJK ideographs and their extensions. Hangul is written with spaces.
_SCRIPTS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_SCRIPTS}]")
_SPACE_BESIDE = re.compile(f"(?<=[{_SCRIPTS}]) +| +(?=[{_SCRIPTS}])")
_UNSPACED_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})


def base_language(language: str | None) -> str | None:
    """The language of a code without its region (`pt` for `pt-BR`)."""
    return language.replace("_", "-").partition("-")[0].lower() if language else None


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces; apostrophes inside words and combining marks stay."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    spoken = _NOT_SPOKEN.sub(" ", folded) if folded.isascii() else "".join(map(_spoken, folded))
    return " ".join(_LONE_APOSTROPHE.sub(" ", spoken).split())


def normaliser_for(name: Normaliser, language: str | None) -> Callable[[str], str]:
    """The function that normalises text of a language."""
    if name == "none":
        return str
    return normalise if name == "basic" else _whisper(base_language(language))


def words(text: str) -> str:
    """Puts spaces around each character of a script that is written without them: each counts as a word.

    Marks stay with their character, and words of other scripts in the same text stay whole: what is called the mixed
    error rate.
    """
    if not _UNSPACED.search(text):
        return text
    parts: list[str] = []
    for character in text:
        if not _UNSPACED.match(character):
            if parts and _UNSPACED.match(parts[-1][0]):
                parts.append(" ")
            parts.append(character)
        elif parts and unicodedata.category(character)[0] == "M":
            parts[-1] += character
        else:
            parts += [" ", character]
    return " ".join("".join(parts).split())


def without_loose_spaces(text: str) -> str:
    """Leaves out spaces beside characters of a script that is written without them."""
    return _SPACE_BESIDE.sub("", text)


def _spoken(character: str) -> str:
    # Vowel signs of Hindi or Thai are marks, which are no letters to Python.
    if character == "'" or character.isalnum() or unicodedata.category(character)[0] == "M":
        return character
    return " "


@lru_cache(maxsize=64)
def _whisper(language: str | None) -> Callable[[str], str]:
    with warnings.catch_warnings():
        # A docstring of the library holds a stray backslash, of which its first import warns.
        warnings.simplefilter("ignore")
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    clean: Callable[[str], str] = (
        EnglishTextNormalizer()
        if language == "en"
        else BasicTextNormalizer(split_letters=language in _UNSPACED_LANGUAGES)
    )
    return lambda text: clean(text).strip()

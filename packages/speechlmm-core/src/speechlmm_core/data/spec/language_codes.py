"""Codes of languages in specifications: what is a language, what a pair, and what is the same. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from speechlmm_core.data.spec.config import Languages
from speechlmm_core.tasks.languages import NAMES, language_name

_CODE = re.compile(r"[a-z]{2,3}")
_SUBTAG = re.compile(r"[A-Za-z0-9]{2,8}")
EXPECTED = "a language (en, pt-BR), a pair of them (en-de), a list of these, or all"


def parse_languages(value: Any) -> Languages:
    """A language or a pair, as a string (`en`, `en-de`, `zh-CN-en`) or a mapping (`{source: en, target: de}`).

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, Languages):
        return value
    if isinstance(value, Mapping) and value and value.keys() <= {"source", "target"}:
        codes = [None if (code := value.get(side)) is None else _single(code) for side in ("source", "target")]
        if codes[0] is not None:
            return Languages(source=codes[0], target=codes[1])
    if not isinstance(value, str):
        raise ValueError(f"expected {EXPECTED}, got {value!r:.80}")
    parts = value.strip().split("-")
    second = next((at for at in range(1, len(parts)) if _begins(parts[at])), None)
    if second is None:
        return Languages(source=_single(value))
    return Languages(source=_single("-".join(parts[:second])), target=_single("-".join(parts[second:])))


def same_language(one: str, other: str) -> bool:
    """Whether two codes mean one language; where only one names a region, that is left open."""
    (a, region), (b, other_region) = _split(one), _split(other)
    return a == b and (not region or not other_region or region == other_region)


def _begins(part: str) -> bool:
    """Whether a language begins here; a region is written in capitals, or is a language of no name."""
    return _CODE.fullmatch(part) is not None and (len(part) == 3 or language_name(part) is not None)


def _single(value: Any) -> str:
    first, *rest = re.split("[-_]", value.strip()) if isinstance(value, str) else [""]
    if not _CODE.fullmatch(first.lower()) or not all(_SUBTAG.fullmatch(part) for part in rest):
        named = next((code for code, name in NAMES.items() if name.lower() == str(value).strip().lower()), None)
        hint = f"; did you mean {named!r}?" if named else ""
        raise ValueError(f"expected {EXPECTED}, got {value!r:.80}{hint}")
    return value.strip()


def _split(code: str) -> tuple[str, str]:
    base, *rest = re.split("[-_]", code.strip().lower())
    return language_name(base) or base, "-".join(rest)

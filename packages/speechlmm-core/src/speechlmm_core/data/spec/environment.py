"""Fills in environment variables: `${oc.env:NAME}`, `${oc.env:NAME,default}` and `${NAME}`. Imports no torch."""

from __future__ import annotations

import os
import re

_CALL = re.compile(r"\$\{([^{}]*)\}")
_INNER = re.compile(r"(?:oc\.env:)?\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:,(.*))?", re.DOTALL)


def resolve_environment(text: str) -> str:
    """A text with its variables filled in.

    Raises:
        ValueError: A variable is not set and has no default, or what stands in braces names none.
    """
    return _CALL.sub(_value, text)


def check_characters(text: str) -> None:
    """Makes sure that a text can be a name or a path.

    Raises:
        ValueError: It holds a null character, or half of one (a lone surrogate).
    """
    if "\0" in text or any("\ud800" <= one <= "\udfff" for one in text):
        raise ValueError(f"expected text, got a null character or half of one in {text[:80]!r}")


def _value(match: re.Match[str]) -> str:
    inner = _INNER.fullmatch(match[1])
    if inner is None or (inner[2] is not None and not match[1].startswith("oc.env:")):
        raise ValueError(f"expected ${{oc.env:NAME}} or ${{oc.env:NAME,default}}, got {match[0]!r}")
    name, default = inner[1], inner[2]
    found = os.environ.get(name, None if default is None else default.strip().strip("'\""))
    if found is None:
        raise ValueError(f"the environment variable {name!r} is not set; set it, or write ${{oc.env:{name},<default>}}")
    return found

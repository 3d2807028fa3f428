"""Words an exception for the user of a command line: lines to print, and the exit code. Imports no torch."""

from __future__ import annotations

from speechlmm_core.errors import SpeechLMMError

OK, FAULT, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all went well, a fault of ours or of the machine, a mistake of the user's, Ctrl-C."""


def word(exc: BaseException) -> tuple[list[str], int]:
    """One line for each fault, and the exit code that a command ends with."""
    if isinstance(exc, KeyboardInterrupt):
        return [str(exc) or "interrupted"], INTERRUPTED
    if isinstance(exc, SpeechLMMError):
        return str(exc).splitlines(), getattr(exc, "exit_code", USAGE)
    if type(exc).__module__.partition(".")[0] in ("pydantic_core", "pydantic", "omegaconf", "hydra"):
        return [" ".join(str(exc).split())], USAGE
    if isinstance(exc, OSError):
        return [f"{exc.strerror or exc}{f': {exc.filename!r}' if exc.filename else ''}"], FAULT
    return [f"{type(exc).__name__}: {' '.join(str(exc).split())} (--debug shows where)"], FAULT

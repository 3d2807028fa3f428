"""What a training tells about itself before it starts; shown by the command line, silent in a library."""

from __future__ import annotations

import logging
import sys

_notes = logging.getLogger("speechlmm_train.notes")
_notes.propagate = False
_notes.addHandler(logging.NullHandler())


def note(line: str) -> None:
    """Tells a line."""
    _notes.info(line)


class _Shown(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.getMessage()}\n")  # whatever standard error is by then


def show_notes() -> None:
    """Has notes shown on standard error from now on."""
    if not any(isinstance(handler, _Shown) for handler in _notes.handlers):
        _notes.addHandler(_Shown())
        _notes.setLevel(logging.INFO)

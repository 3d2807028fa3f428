"""Environment variables that are changed for a while."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def variables_kept(names: Iterable[str]) -> Iterator[None]:
    """Leaves variables as they were before the block."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for the block."""
    with variables_kept(values):
        os.environ.update(values)
        yield

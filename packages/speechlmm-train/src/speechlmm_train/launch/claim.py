"""Holds an output folder while a run of this process writes to it, and says in `launch/state.json` how that ended."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from speechlmm_core.wording import USAGE, word
from speechlmm_train.launch.state import STATE, State
from speechlmm_train.launch.status import refuse_active
from speechlmm_train.trainer.output_folder import CONFIG, LAUNCH, OutputFolder

BEAT_S = 20.0
"""Seconds between signs of life, which other machines see by the age of the state."""


def claim(output_dir: Path, *, name: str, log: Path | None = None) -> State:
    """Says that this process trains in an output folder.

    Raises:
        ConfigError: Another one does, or waits to; or the folder cannot be written to.
    """
    OutputFolder(output_dir).make()
    with alone(output_dir):
        refuse_active(output_dir)
        state = State("running", name=name).begun(log=log)
        state.write(output_dir)
    return state


@contextmanager
def claimed(output_dir: Path, *, name: str) -> Iterator[None]:
    """Holds an output folder for a run that is done in the block.

    A run that is refused before it has written anything leaves what is known of an earlier one as it was.

    Raises:
        ConfigError: Another process trains there or waits to, or the folder cannot be written to.
    """
    made = [path for path in (output_dir / LAUNCH, output_dir, *output_dir.parents) if not path.exists()]
    before, config = State.read(output_dir), written(output_dir)
    try:
        state = claim(output_dir, name=name)
    except BaseException:
        _remove(made)
        raise
    try:
        with beating(output_dir):
            yield
    except BaseException as exc:
        lines, code = word(exc)
        with suppress(OSError):  # a full disk, say: what the run says of it matters more
            if code != USAGE or written(output_dir) != config:
                state.over(code, "; ".join(lines)).write(output_dir)
            elif before is not None:
                before.write(output_dir)
            else:
                State.forget(output_dir)
                _remove(made)
        raise
    with suppress(OSError):  # its report shows that it is finished
        state.over(0).write(output_dir)


@contextmanager
def beating(output_dir: Path) -> Iterator[None]:
    """Touches the state for as long as the block takes."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            with suppress(OSError):
                os.utime(output_dir / LAUNCH / STATE)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def alone(output_dir: Path) -> Iterator[None]:
    """Lets one process at a time look at an output folder's state and write it; the system ends that with the process.

    Where the file system has no locks, two that begin in the same moment are not told apart.
    """
    folder = output_dir / LAUNCH
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def written(output_dir: Path) -> int | None:
    """When a run last began to write to the folder, in nanoseconds; None if none has."""
    file = output_dir / CONFIG
    return file.stat().st_mtime_ns if file.is_file() else None


def _remove(made: list[Path]) -> None:
    """Removes folders that were made, innermost first, as far as they are empty."""
    for path in made:
        with suppress(OSError):
            path.rmdir()

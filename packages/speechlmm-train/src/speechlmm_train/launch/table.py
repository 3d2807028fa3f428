"""The states of runs as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechlmm_train.evaluate.markdown import table
from speechlmm_train.launch.status import Status

HEAD = ("run", "state", "step", "figures", "folder")


def shorten(path: Path) -> str:
    """A path as seen from the working directory, where it lies below that."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def state_words(one: Status) -> str:
    """A state with what belongs to it."""
    job = f" (job {one.job_id})" if one.job_id and one.state != "finished" else ""
    code = f", exit code {one.exit_code}" if one.exit_code else ""
    return f"{one.state}{code}{job}"


def filled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table without the columns that no row has an entry in."""
    used = [column for column in range(len(head)) if any(row[column] for row in rows)]
    return table([head[column] for column in used], [[row[column] for column in used] for row in rows])


def status_table(found: Sequence[Status], varied: Sequence[str] = ()) -> list[str]:
    """The states of runs, and below it why runs failed and where their logs are.

    Args:
        found: The runs.
        varied: What makes each one different from the others, if they are a sweep's.
    """
    head = ("run", "what varies", *HEAD[1:])
    rows = [
        (
            one.name,
            varied[index] if varied else "",
            state_words(one),
            "" if one.step is None else str(one.step),
            one.figures,
            shorten(one.folder),
        )
        for index, one in enumerate(found)
    ]
    lines = filled(head, rows)
    for one in found:
        if one.state not in ("finished", "running") and (one.reason or (one.log and one.state == "failed")):
            log = f"; log: {shorten(Path(one.log))}" if one.log else ""
            lines.append(f"{one.name}: {one.reason or 'failed'}{log}")
    return lines

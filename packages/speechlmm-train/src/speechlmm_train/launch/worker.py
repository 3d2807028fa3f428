"""One process of a training: `python -m speechlmm_train.launch.worker job.json`.

What starts it says by `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` which of how many it is;
without them it is the only one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from speechlmm_core.wording import word
from speechlmm_train.interrupts import heed_once
from speechlmm_train.launch.job import Job

PR_SET_PDEATHSIG = 1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("job", type=click.Path(path_type=Path), metavar="JOB.JSON")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.option("--attached", is_flag=True, help="End with the process that started this one.")
def worker(*, job: Path, debug: bool, attached: bool) -> int:
    """Do a composed run, or one rank's share of it."""
    if attached:
        die_with_parent()
    try:
        train(Job.read(job))
    except (Exception, KeyboardInterrupt) as exc:
        if debug:
            raise
        lines, code = word(exc)
        for line in lines:
            click.echo(f"error: {line}", err=True)
        return code
    return 0


def train(job: Job) -> None:
    """Trains what a job says, and tells what came of it; only the first rank tells.

    Raises:
        SpeechLMMError: As `run` does.
    """
    from speechlmm_train.process import prepare_process

    prepare_process()
    os.chdir(job.base)
    from speechlmm_train.compose import import_file, validate

    for path in job.imports:
        import_file(Path(path))
    plain = dict(job.plain)
    config = validate(plain)
    from speechlmm_train.run import run
    from speechlmm_train.trainer.notes import show_notes

    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        show_notes()
    report = run(
        config,
        plain=plain,
        base=Path(job.base),
        resume=job.resume,
        overwrite=job.overwrite,
        progress=job.progress and first,
    )
    if first:
        from speechlmm_train.launch.closing import closing_lines

        lines, notes = closing_lines(report, config)
        for line in lines:
            click.echo(line)
        for note in notes:
            click.echo(f"note: {note}", err=True)


def die_with_parent() -> None:
    """Asks the system to end this process when the one that started it ends, so that no rank is left behind."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and exits with its code."""
    heed_once()
    code = worker.main(
        list(sys.argv[1:] if argv is None else argv), prog_name="speechlmm_train.launch.worker", standalone_mode=False
    )
    code = code if isinstance(code, int) else 0
    if code and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The others may never come to where the group is taken down in order.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""Runs on this machine: `python -m speechlmm_train.launch.local job.json --processes 2`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from speechlmm_core.wording import INTERRUPTED, word
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.processes import TIMED_OUT, Group, run_processes
from speechlmm_train.trainer.output_folder import LAUNCH, OutputFolder

WORKER = "speechlmm_train.launch.worker"
JOB = "job.json"


def run_job(
    job: Job, *, processes: int, port: int | None = None, timeout: float | None = None, debug: bool = False
) -> int:
    """Does a run in other processes of this machine, and waits.

    What they print is shown here, of several ranks the first one's alone. The job and the logs of several ranks are
    kept in `launch/` of the output folder.

    Args:
        job: The run.
        processes: How many ranks.
        port: Where they find each other; a free one by default.
        timeout: Seconds after which they are ended.
        debug: Show tracebacks.

    Returns:
        The exit code of the first that failed, or 0.

    Raises:
        ConfigError: The output folder is occupied, or the port is in use.
    """
    OutputFolder(job.output_dir).check(resume=job.resume, overwrite=job.overwrite)
    folder = job.output_dir / LAUNCH
    job.write(folder / JOB)
    arguments = ["-m", WORKER, str(folder / JOB), "--attached", *(["--debug"] if debug else [])]
    if processes == 1:
        return _alone([sys.executable, *arguments], timeout)
    logs = folder / time.strftime("%Y%m%d-%H%M%S")
    return run_processes(arguments, processes=processes, logs=logs, group=Group(port=port or 0), timeout=timeout)


def _alone(command: Sequence[str], timeout: float | None) -> int:
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            click.echo(f"error: not finished after {timeout:.0f} s; ended", err=True)
            return TIMED_OUT
        except KeyboardInterrupt:
            process.wait()  # the terminal has told it, too
            return INTERRUPTED
        except BaseException:
            process.kill()
            raise
    if code < 0:
        click.echo(f"error: the run was ended by signal {-code}", err=True)
    return 128 - code if code < 0 else code


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("job", type=click.Path(path_type=Path), metavar="JOB.JSON")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks on this machine.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port where ranks find each other.  [default: a free one]")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds after which the run is ended.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def local(*, job: Path, processes: int, port: int | None, timeout: float | None, debug: bool) -> int:
    """Do a composed run on this machine."""
    try:
        return run_job(Job.read(job), processes=processes, port=port, timeout=timeout, debug=debug)
    except (Exception, KeyboardInterrupt) as exc:
        if debug:
            raise
        lines, code = word(exc)
        for line in lines:
            click.echo(f"error: {line}", err=True)
        return code


if __name__ == "__main__":
    sys.exit(local.main(standalone_mode=False, prog_name="speechlmm_train.launch.local"))

"""Runs on this machine: `python -m speechlmm_train.launch.local job.json --processes 2`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from speechlmm_core.errors import ConfigError
from speechlmm_core.wording import FAULT, INTERRUPTED, word
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.processes import Group, port_is_free, run_processes
from speechlmm_train.launch.state import JOB, State
from speechlmm_train.launch.status import refuse_active
from speechlmm_train.trainer.output_folder import LAUNCH, OutputFolder

WORKER = "speechlmm_train.launch.worker"


def run_job(
    job: Job,
    *,
    processes: int,
    port: int | None = None,
    timeout: float | None = None,
    name: str = "",
    debug: bool = False,
) -> int:
    """Does a run in other processes of this machine, and waits.

    What they print is shown here, of several ranks the first one's alone. The job and the logs of several ranks are
    kept in `launch/` of the output folder.

    Args:
        job: The run.
        processes: How many ranks.
        port: Where they find each other; a free one by default.
        timeout: Seconds after which they are ended.
        name: What the run is called; by default like its folder.
        debug: Show tracebacks.

    Returns:
        The exit code of the first that failed, or 0.

    Raises:
        ConfigError: The output folder is occupied, or the port is in use.
    """
    refuse_active(job.output_dir)
    OutputFolder(job.output_dir).check(resume=job.resume, overwrite=job.overwrite)
    folder = job.output_dir / LAUNCH
    if port is not None and not port_is_free(port):
        raise ConfigError(f"port {port} is in use on this machine; choose another --port, or leave that out")
    job.write(folder / JOB)
    arguments = ["-m", WORKER, str(folder / JOB), "--attached", *(["--debug"] if debug else [])]
    logs = folder / time.strftime("%Y%m%d-%H%M%S")
    state = State("running", name=name or job.output_dir.name).begun(log=logs / "rank-0.err")
    state.write(job.output_dir)
    code = FAULT
    try:
        group = Group(port=port or 0)
        code = run_processes(arguments, processes=processes, logs=logs, group=group, timeout=timeout)
    except KeyboardInterrupt:
        code = INTERRUPTED
        raise
    finally:
        state.over(code).write(job.output_dir)
    return code


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

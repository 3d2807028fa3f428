"""Runs on this machine: `python -m speechlmm_train.launch.local job.json --processes 2`."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

import click

from speechlmm_core.errors import ConfigError
from speechlmm_core.wording import FAULT, INTERRUPTED, word
from speechlmm_train.launch.cause import TERMINATED
from speechlmm_train.launch.claim import beating, claim
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.processes import TIMED_OUT, Group, port_is_free, run_processes
from speechlmm_train.launch.reasons import faults_in, log_of, reason_of
from speechlmm_train.launch.state import JOB
from speechlmm_train.trainer.output_folder import LAUNCH, OutputFolder

WORKER = "speechlmm_train.launch.worker"
_ENDED = {0: "", TERMINATED: "ended by SIGTERM"}


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
    OutputFolder(job.output_dir).check(resume=job.resume, overwrite=job.overwrite)
    folder = job.output_dir / LAUNCH
    if port is not None and not port_is_free(port):
        raise ConfigError(f"port {port} is in use on this machine; choose another --port, or leave that out")
    logs = folder / time.strftime("%Y%m%d-%H%M%S")
    state = claim(job.output_dir, name=name or job.output_dir.name, log=logs / "rank-0.err")
    arguments = ["-m", WORKER, str(folder / JOB), "--attached", *(["--debug"] if debug else [])]
    code, reason = FAULT, ""
    try:
        job.write(folder / JOB)
        group = Group(port=port or 0)
        with beating(job.output_dir):
            code = run_processes(arguments, processes=processes, logs=logs, group=group, timeout=timeout)
        reason = _interrupted(logs, job.output_dir) if code == INTERRUPTED else _reason(code, logs, processes, timeout)
    except BaseException as exc:
        lines, code = word(exc)
        reason = "; ".join(lines)
        raise
    finally:
        with suppress(OSError):  # a full disk, say: what ended the run matters more
            state.over(code, reason).write(job.output_dir)
    return code


def _interrupted(logs: Path, output_dir: Path) -> str:
    """What Ctrl-C has left: as rank 0 says, which has been shown, or said here if that did not come to it."""
    said = next((line for line in faults_in(log_of(logs, 0)) if line.startswith("interrupted")), None)
    if said is None:
        said = f"interrupted; {OutputFolder(output_dir).remaining()}"
        click.echo(f"error: {said}", err=True)
    return said


def _reason(code: int, logs: Path, processes: int, timeout: float | None) -> str:
    """Why processes ended as they did: what they say of it, or who ended them."""
    if code in _ENDED:
        return _ENDED[code]
    if code == TIMED_OUT:
        return f"not finished after {timeout or 0:.0f} s"
    return reason_of(logs, code, range(processes))


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

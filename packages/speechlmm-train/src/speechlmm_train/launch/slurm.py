"""Submits runs to SLURM, through submitit's public API and as it is.

One job for each run and one task on each of its nodes; `NodeTask` starts the ranks there.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechlmm_core.errors import ConfigError
from speechlmm_core.wording import USAGE, word
from speechlmm_train.launch.claim import alone, written
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.node import NodeTask
from speechlmm_train.launch.state import JOB, REQUEUE, State
from speechlmm_train.launch.status import refuse_active
from speechlmm_train.slurm_config import SlurmLauncherConfig
from speechlmm_train.trainer.output_folder import LAUNCH, OutputFolder

SUBMITIT = "submitit"
"""Folder within `launch/` for what submitit keeps."""


def check_slurm() -> None:
    """Checks that jobs can be submitted from here.

    Raises:
        ConfigError: They cannot.
    """
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"SLURM is not installed on this machine ({', '.join(missing)} not found); log in to the cluster, or leave "
            "out hydra/launcher to run here"
        )


def parameters(launcher: SlurmLauncherConfig, name: str, output_dir: Path) -> dict[str, Any]:
    """A launcher's settings in submitit's terms, for a run that writes to a folder."""
    same = ("partition", "account", "qos", "constraint", "nodes", "gres", "gpus_per_node", "cpus_per_task", "time")
    same += ("nodelist", "exclude", "dependency", "comment", "teardown", "signal_delay_s")
    given = {key: value for key in same if (value := getattr(launcher, key)) not in (None, [])}
    further: dict[str, Any] = {"requeue": True, **launcher.additional_parameters}
    if launcher.mem is not None:  # submitit takes gigabytes alone
        further["mem"] = launcher.mem
    if launcher.exclusive:
        given["exclusive"] = True
    # Since SLURM 22.05 srun does not take this over from sbatch.
    cores = [f"--cpus-per-task={launcher.cpus_per_task}"] if launcher.cpus_per_task is not None else []
    return {
        **given,
        "job_name": launcher.job_name or name,
        "ntasks_per_node": 1,
        # A node that has failed takes the others with it, which could wait for it for ever.
        "srun_args": [*cores, *launcher.srun_args, "--kill-on-bad-exit=1"],
        "setup": [*_requeueing(output_dir / LAUNCH / REQUEUE), *launcher.setup],
        "additional_parameters": {key: value for key, value in further.items() if value is not False},
    }


def _requeueing(asked: Path) -> list[str]:
    """Shell lines that queue a job again when the run asks for it by a file.

    The batch script does it, for the run may be inside a container that has no `scontrol`; and at its end, so that the
    teardown lines come first. `Incomplete` leaves a job alone that was cancelled in the meantime.
    """
    return [
        f"SPEECHLMM_REQUEUE={shlex.quote(str(asked))}",
        'rm -f "$SPEECHLMM_REQUEUE"',
        """trap 'if [ -e "$SPEECHLMM_REQUEUE" ]; then scontrol requeue Incomplete "$SLURM_JOB_ID"; fi' EXIT""",
    ]


def script(job: Job, launcher: SlurmLauncherConfig, name: str) -> str:
    """The batch script that `submit` would hand to SLURM. Needs no SLURM."""
    from submitit.slurm import slurm

    folder = job.output_dir / LAUNCH / SUBMITIT
    python = launcher.python or shlex.quote(sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return slurm._make_sbatch_string(command=command, folder=folder, **parameters(launcher, name, job.output_dir))


def submit(job: Job, launcher: SlurmLauncherConfig, *, name: str, processes: int) -> State:
    """Submits a run.

    Args:
        job: The run; it is kept in `launch/` of the output folder, which all nodes have to see.
        launcher: How.
        name: What it is called.
        processes: Ranks on each node.

    Returns:
        Its state, with the number of the job.

    Raises:
        ConfigError: The output folder is occupied, or SLURM refuses the job.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    check_slurm()
    output_dir = job.output_dir.absolute()
    output = OutputFolder(output_dir)
    output.check(resume=job.resume, overwrite=job.overwrite)
    output.make()
    folder = output_dir / LAUNCH
    with alone(output_dir):
        refuse_active(output_dir)
        state = State("queued", name=name).submitting()
        state.write(output_dir)
    task = NodeTask(
        str(output_dir),
        processes=processes,
        port=launcher.port,
        node_timeout_s=launcher.node_timeout_s,
        signal_delay_s=launcher.signal_delay_s,
    )
    try:
        replace(job, replaces=written(output_dir)).write(folder / JOB)
        executor = submitit.SlurmExecutor(
            folder / SUBMITIT, max_num_timeout=launcher.max_num_timeout, python=launcher.python
        )
        executor.update_parameters(**parameters(launcher, name, output_dir))
        submitted = executor.submit(task)
    except (FailedJobError, FailedSubmissionError) as exc:
        reason = _refusal(str(exc))
        state.over(USAGE, reason).write(output_dir)
        raise ConfigError(f"SLURM refuses the job of {name}: {reason}") from exc
    except BaseException as exc:
        _give_up(output_dir, exc)
        raise
    now = State.read(output_dir) or state  # it may have started already
    if now.job_id is None:
        now = replace(now, job_id=submitted.job_id)
        now.write(output_dir)
    return now


def _give_up(output_dir: Path, exc: BaseException) -> None:
    """Lets an output folder go whose run could not be submitted, unless the job has started all the same."""
    lines, code = word(exc)
    with suppress(OSError):
        state = State.read(output_dir)
        if state is not None and state.job_id is None:
            reason = f"not submitted: {'; '.join(lines)}; squeue shows whether SLURM has the job nevertheless"
            state.over(code, reason).write(output_dir)


def _refusal(text: str) -> str:
    """The line of sbatch's that says why."""
    lines = [" ".join(line.split()) for line in text.splitlines() if "error:" in line]
    return lines[-1].partition("error:")[2].strip() if lines else " ".join(text.split())


def job_logs(output_dir: Path, job_id: str) -> list[Path]:
    """What submitit and the nodes of a job have written beside the logs of ranks."""
    return sorted((output_dir / LAUNCH / SUBMITIT).glob(f"{job_id}_*_log.err"))

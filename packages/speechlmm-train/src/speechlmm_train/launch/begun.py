"""What is to be done about a run whose folder may hold something already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from speechlmm_core.errors import ConfigError, SpeechLMMError
from speechlmm_train.compose import Composed
from speechlmm_train.folders import may_write
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.state import JOB
from speechlmm_train.launch.status import refuse_active
from speechlmm_train.trainer.checkpoints import Checkpoint, numbered
from speechlmm_train.trainer.going_on import check_batch_settings, check_going_on
from speechlmm_train.trainer.output_folder import CONFIG, LAUNCH, OutputFolder
from speechlmm_train.trainer.same_run import adds_work, changes_of, decisive, in_words, of_batches, of_length


def folder_of(composed: Composed) -> Path:
    """Where a run writes to."""
    return Path(composed.config.training.output_dir).expanduser()


def resumes(composed: Composed, *, resume: bool, overwrite: bool) -> bool | None:
    """Whether a run of a sweep goes on where it was; None if it is finished.

    Without being told to, it goes on only as the run that was begun: with more steps, say, or other workers.

    Args:
        composed: The run.
        resume: Whether the user asks for what is there to be gone on with.
        overwrite: Whether the user asks for it to be removed.

    Raises:
        ConfigError: What is there is of another configuration, or damaged.
    """
    if overwrite:
        return False
    folder = OutputFolder(folder_of(composed))
    begun = folder.config() if folder.path.is_dir() else None
    if begun is None:
        return resume or (folder.path.is_dir() and folder.report() is not None)
    finished = folder.report() is not None
    changes = changes_of(begun, _as_written(composed))
    others = decisive(changes)
    if not others:
        return None if finished and not any(map(adds_work, changes)) else True
    if not resume:
        ways = "--overwrite, or --resume to go on with that" if _might_resume(composed) else "or --overwrite"
        raise ConfigError(f"{in_words(others)}; give another training.output_dir, {ways}")
    return True


def check_writable(composed: Composed) -> None:
    """Checks that a run could write to its folder, touching nothing.

    Raises:
        ConfigError: It could not.
    """
    folder = folder_of(composed)
    if not may_write(folder):
        raise ConfigError(
            f"training.output_dir {str(folder)!r} cannot be written to; choose another one, or see to its permissions"
        )


def refuse_other_job(composed: Composed, job_id: str) -> None:
    """Checks that the job that waits or runs in a run's folder is that run, and does all that is asked for.

    Raises:
        ConfigError: It does another one, or less.
    """
    file = folder_of(composed) / LAUNCH / JOB
    if not file.is_file():
        return
    changes = changes_of(Job.read(file).plain, _as_written(composed))
    if others := decisive(changes):
        raise ConfigError(
            f"the job that is there was {in_words(others)}; give another training.output_dir, or end it with "
            f"`scancel {job_id}`"
        )
    if more := [change for change in changes if adds_work(change)]:
        raise ConfigError(
            f"job {job_id} does less than is asked for: it was {in_words(more)}; wait for it and start again, which "
            f"goes on from there, or end it with `scancel {job_id}`"
        )


def check_resumes(composed: Composed, *, tell: bool = False) -> Checkpoint | bool:
    """Checks that `run --resume` would not refuse a run, as far as that can be told without its data.

    Args:
        composed: The run.
        tell: Whether to warn of what has changed and may.

    Returns:
        The checkpoint that it would go on from; False if there is none, True if nothing is left to do.

    Raises:
        ConfigError: It would be refused.
        CheckpointError: Its checkpoints are damaged, or another optimiser's.
    """
    folder = OutputFolder(folder_of(composed))
    plain = _as_written(composed)
    folder.check_same(plain, tell=tell)
    report = folder.report()
    if report is not None and not _is_longer(composed, report, folder.config() or plain, plain):
        folder.check_results(plain)
        return True
    checkpoint = folder.last_checkpoint(thorough=False)
    if checkpoint is None and report is None:
        return False
    stages = composed.config.resolved_stages()
    steps = [stage.max_steps for stage in stages]
    check_going_on(folder, checkpoint, stages, steps)
    if checkpoint is None:
        return False
    check_batch_settings(checkpoint, stages, steps)
    return checkpoint


def to_do(composed: Composed, *, resume: bool, overwrite: bool) -> str:
    """What a single run would do about its folder, which nothing is written to.

    Raises:
        ConfigError: It could not write there, or what is there is of another configuration.
        CheckpointError: It could not go on from what is there.
    """
    folder = OutputFolder(folder_of(composed).absolute())
    folder.check(resume=resume, overwrite=overwrite)
    check_writable(composed)
    refuse_active(folder.path)
    there = (folder.path / CONFIG).exists() or bool(numbered(folder.path))
    if not (resume and there):
        return "start anew, in place of what is there" if overwrite and there else "start"
    found = check_resumes(composed, tell=True)
    if isinstance(found, bool):
        return "nothing; it is finished" if found else "start; there is no checkpoint to go on from"
    plain = _as_written(composed)
    changed = of_batches(changes_of(folder.config() or plain, plain))
    if changed and not composed.config.training.resume_changed:
        return f"resume, if the batches are still those that it was begun with (changed: {', '.join(changed)})"
    return "resume"


def _might_resume(composed: Composed) -> bool:
    try:
        return check_resumes(composed) is not True
    except SpeechLMMError:
        return False


def _is_longer(composed: Composed, report: dict[str, Any], begun: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a run that is finished is asked for with another number of steps."""
    steps = [stage.max_steps for stage in composed.config.resolved_stages()]
    known = [count for count in steps if count is not None]
    if len(known) < len(steps):  # epochs: how many steps they are, the data say
        return any(map(of_length, changes_of(begun, asked)))
    return report.get("planned_steps", report["steps"]) != sum(known)


def _as_written(composed: Composed) -> dict[str, Any]:
    """The configuration as it would be read from `config.yaml`."""
    return yaml.safe_load(yaml.safe_dump(composed.plain))

"""What is to be done about a run whose folder may hold something already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from speechlmm_core.errors import ConfigError
from speechlmm_train.compose import Composed
from speechlmm_train.folders import may_write
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.state import JOB
from speechlmm_train.launch.status import refuse_active
from speechlmm_train.trainer.output_folder import CONFIG, LAUNCH, OutputFolder
from speechlmm_train.trainer.same_run import adds_work, can_resume, changes_of, decisive, in_words


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
        longer = not finished or any(map(adds_work, changes))
        ways = "--overwrite, or --resume to go on with that" if longer and can_resume(others) else "or --overwrite"
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


def refuse_other_job(composed: Composed) -> None:
    """Checks that the job that waits or runs in a run's folder is that run.

    Raises:
        ConfigError: It does another one.
    """
    file = folder_of(composed) / LAUNCH / JOB
    if not file.is_file():
        return
    if others := decisive(changes_of(Job.read(file).plain, _as_written(composed))):
        raise ConfigError(
            f"the job that is there was {in_words(others)}; give another training.output_dir, or end it with scancel"
        )


def to_do(composed: Composed, *, resume: bool, overwrite: bool) -> str:
    """What a single run would do about its folder, which nothing is written to.

    Raises:
        ConfigError: It could not write there, or what is there is of another configuration.
    """
    folder = OutputFolder(folder_of(composed).absolute())
    folder.check(resume=resume, overwrite=overwrite)
    check_writable(composed)
    refuse_active(folder.path)
    there = (folder.path / CONFIG).exists()
    if not (resume and there):
        return "start anew, in place of what is there" if overwrite and there else "start"
    plain = _as_written(composed)
    folder.check_same(plain)
    if folder.report() is not None and not any(map(adds_work, changes_of(folder.config() or plain, plain))):
        folder.check_results(plain)
        return "nothing; it is finished"
    return "resume"


def _as_written(composed: Composed) -> dict[str, Any]:
    """The configuration as it would be read from `config.yaml`."""
    return yaml.safe_load(yaml.safe_dump(composed.plain))

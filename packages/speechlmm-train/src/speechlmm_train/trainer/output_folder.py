"""A run's output folder: who may write to it, which checkpoint to go on from.

``{config.yaml, metrics.jsonl, tensorboard/, checkpoint-N/, best, model/, train_report.json}``; N counts the optimiser
steps of all stages.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.errors import ConfigError
from speechlmm_train.folders import make_folder
from speechlmm_train.trainer.checkpoints import (
    CHECKPOINT,
    Checkpoint,
    newest,
    numbered,
    open_checkpoint,
    rotate,
)
from speechlmm_train.trainer.same_run import changes_of, decisive, in_words

logger = logging.getLogger(__name__)

CONFIG, METRICS, REPORT = "config.yaml", "metrics.jsonl", "train_report.json"
BEST = "best"
CURVES, DIVERGED = "training.png", "diverged.json"
LAUNCH = "launch"
"""What started the run keeps its job, its state and the logs of its processes there; it may be there before the run."""
WANDB_ID = "wandb_id.txt"
DAMAGED = ".damaged"
"""Ends the names of checkpoints that a run which went on passed over."""
_OURS = (
    CONFIG,
    METRICS,
    REPORT,
    "tensorboard",
    "model",
    "evaluations",
    "report.json",
    "learning_curve.png",
    CURVES,
    DIVERGED,
    WANDB_ID,
    "wandb",
    BEST,
)
_LEFT_OVER = re.compile(
    r"\.(checkpoint-\d+|model|tokenizer|best|[a-z_]+\.(yaml|jsonl?|png|txt))\.[0-9a-f]{8}\.(tmp|old)"
)


class OutputFolder:
    """The output folder of a run.

    Args:
        path: The folder.
        beside: Names in it that may be there before the run; they are not the run's and are never removed.
    """

    def __init__(self, path: str | Path, *, beside: Sequence[str] = ()) -> None:
        self.path = Path(path).expanduser()
        self.beside = frozenset([LAUNCH, *beside])

    @property
    def model_path(self) -> Path:
        """Where the trained model goes."""
        return self.path / "model"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Checks that the run may write to the folder, touching nothing.

        Raises:
            ConfigError: It holds something, and neither `resume` nor `overwrite` says what to do about that.
        """
        if resume and overwrite:
            raise ConfigError("give either --resume or --overwrite, not both")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"training.output_dir {str(self.path)!r} is a file; expected a folder")
        if not resume and not overwrite and self._entries():
            raise ConfigError(
                f"training.output_dir {str(self.path)!r} is not empty; go on with --resume, or start anew with "
                "--overwrite"
            )

    def _entries(self) -> list[str]:
        """What lies in the folder, but for what may and for what a killed run left half written."""
        names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        return [name for name in names if name not in self.beside and not _LEFT_OVER.fullmatch(name)]

    def make(self) -> None:
        """Makes the folder.

        Raises:
            ConfigError: It cannot be made, or not be written to.
        """
        make_folder(self.path, "training.output_dir")

    def prepare(self, *, overwrite: bool) -> None:
        """Makes the folder, and removes what a killed run left half written and, on request, all of an earlier run.

        Raises:
            ConfigError: The folder cannot be made.
        """
        self.make()
        for entry in list(self.path.iterdir()):
            ours = entry.name in _OURS or CHECKPOINT.fullmatch(entry.name.removesuffix(DAMAGED))
            if _LEFT_OVER.fullmatch(entry.name) or entry.name == DIVERGED or (overwrite and ours):
                _remove(entry)

    def write_config(self, plain: dict[str, Any]) -> None:
        """Writes the composed configuration, from which the run can be repeated."""
        write_text(self.path / CONFIG, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))

    def config(self) -> dict[str, Any] | None:
        """The composed configuration that lies in the folder; None if there is none.

        Raises:
            ConfigError: It is damaged.
        """
        file = self.path / CONFIG
        if not file.is_file():
            return None
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            found = None
        if not isinstance(found, dict):
            raise ConfigError(
                f"{str(file)!r} is damaged: it is not the YAML that a run leaves there; restore it, remove it to go on "
                "without comparing the configurations, or start anew with --overwrite"
            )
        return found

    def check_same(self, plain: dict[str, Any], *, tell: bool = True) -> None:
        """Checks that the run to go on with is the one that was begun.

        Args:
            plain: The composed configuration that is asked for.
            tell: Whether to warn of what has changed and may.

        Raises:
            ConfigError: The model, the stages or the seed differ.
        """
        if (old := self.config()) is None:
            return
        changed = [key for key in sorted({*old, *plain}) if old.get(key) != plain.get(key)]
        stages = [[stage.get("name") for stage in one.get("stages") or []] for one in (old, plain)]
        seeds = [(one.get("training") or {}).get("seed", 0) for one in (old, plain)]
        if seeds[0] != seeds[1]:
            raise ConfigError(
                f"--resume: the run in {str(self.path)!r} was begun with seed {seeds[0]}, and this one has seed "
                f"{seeds[1]}; go on with that seed, or start anew with --overwrite"
            )
        if "model" in changed or stages[0] != stages[1]:
            what = "model" if "model" in changed else "stages"
            raise ConfigError(
                f"--resume: `{what}:` differs from that of the run in {str(self.path)!r} (see its {CONFIG}); go on "
                "with the same configuration, or choose another training.output_dir"
            )
        if tell and (changes := changes_of(old, plain)):
            logger.warning("resuming with a changed configuration (%s)", "; ".join(map(str, changes)))

    def check_results(self, plain: dict[str, Any]) -> None:
        """Checks that what a finished run has left is what is asked for.

        Raises:
            ConfigError: It is of another configuration.
        """
        others = decisive(changes_of(self.config() or plain, plain))
        if others:
            raise ConfigError(
                f"--resume: the run in {str(self.path)!r} is finished, and nothing is left to train; it was "
                f"{in_words(others)}; give another training.output_dir, ask for more steps, or start anew with "
                "--overwrite"
            )

    def checkpoints(self) -> list[Checkpoint]:
        """The whole checkpoints, oldest first; damaged ones are passed over with a warning.

        Of each, only those files are read that were touched after they were written.
        """
        opened = (open_checkpoint(path, thorough=False) for path in numbered(self.path))
        return [checkpoint for checkpoint in opened if checkpoint is not None]

    def last_checkpoint(self, *, thorough: bool = True) -> Checkpoint | None:
        """The newest whole checkpoint; None if there is none.

        Args:
            thorough: Whether every file of it is read; otherwise only those that were touched after it was written.

        Raises:
            CheckpointError: There are checkpoints, but none is whole.
        """
        return newest(self.path, thorough=thorough)

    def remaining(self) -> str:
        """What is left of a run that is ended now, for a message; no file is read."""
        if last := max(numbered(self.path), key=_number, default=None):
            return f"the last checkpoint is {last.name}, and --resume goes on from there"
        return "nothing was saved before the first checkpoint (see training.save_steps)"

    def rotate(self, limit: int | None, *, keep: Collection[str] = ()) -> None:
        """Removes the oldest checkpoints beyond ``limit``, but for those to ``keep``; damaged ones do not count."""
        rotate(self.path, limit, keep=keep)

    def set_aside_after(self, checkpoint: Checkpoint) -> None:
        """Takes what is newer than the checkpoint that a run goes on from out of the way, under another name.

        It was found to be damaged, which a look at sizes alone may not show; so it must never count as a checkpoint
        for whose sake an older one is removed.
        """
        for path in numbered(self.path):
            if _number(path) > checkpoint.progress.total_step:
                aside = path.with_name(f"{path.name}{DAMAGED}")
                _remove(aside)
                os.replace(path, aside)
                logger.warning("%s is kept as %s; nothing needs it any more", path.name, aside.name)

    def point_to_best(self, name: str | None) -> None:
        """Makes `best` a link to a checkpoint, in one step; None for no best."""
        link = self.path / BEST
        if name is None:
            link.unlink(missing_ok=True)
            return
        temporary = self.path / f".{BEST}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            temporary.symlink_to(name, target_is_directory=True)
            os.replace(temporary, link)
        except OSError as exc:  # not every file system has links; the report names the checkpoint, too
            logger.warning("cannot link %s to %s: %s", link, name, exc.strerror)
            temporary.unlink(missing_ok=True)

    def cut_metrics(self, total_step: int) -> None:
        """Drops the metrics of steps after ``total_step``, which will be done again."""
        file = self.path / METRICS
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            write_text(file, "".join(f"{line}\n" for line in lines if _step_of(line) <= total_step))

    def warnings(self) -> list[str]:
        """What the run has warned of so far, with the steps."""
        file = self.path / METRICS
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        rows = [json.loads(line) for line in lines if '"warning"' in line]
        return [f"step {row['step']}: {row['warning']}" for row in rows if "warning" in row]

    def report(self) -> dict[str, Any] | None:
        """What a finished run reported, or None."""
        file = self.path / REPORT
        if not (file.is_file() and (self.model_path / "config.json").is_file()):
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            return None


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a kill


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)

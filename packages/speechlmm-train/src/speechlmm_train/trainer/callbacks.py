"""Where a training's figures go: `metrics.jsonl`, TensorBoard, Weights & Biases, and the progress bar."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.errors import MissingDependencyError
from speechlmm_train.trainer.output_folder import METRICS, WANDB_ID
from speechlmm_train.trainer.summary import scores
from speechlmm_train.training_config import TrainingConfig

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes figures."""

    def write(self, step: int, stage: str, figures: dict[str, float]) -> None:
        """Takes the figures of a step of the whole run."""

    def close(self) -> None:
        """Finishes writing."""


class JsonlSink:
    """One JSON object a line in `metrics.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / METRICS).open("a", encoding="utf-8")

    def write(self, step: int, stage: str, figures: dict[str, float]) -> None:
        """Appends a line and hands it to the system."""
        self._file.write(json.dumps({"step": step, "stage": stage, **figures}) + "\n")
        self._file.flush()

    def warn(self, step: int, stage: str, warning: str) -> None:
        """Appends a line with a warning."""
        self._file.write(json.dumps({"step": step, "stage": stage, "warning": warning}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardSink:
    """Scalars in `tensorboard/`."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, step: int, stage: str, figures: dict[str, float]) -> None:
        """Adds scalars."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the events."""
        self._writer.close()


def require_wandb() -> Any:
    """The module of Weights & Biases.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as exc:
        raise MissingDependencyError(
            "training.report_to names 'wandb', which is not installed: pip install 'speechlmm-train[wandb]'"
        ) from exc


class WandbSink:
    """A run at Weights & Biases."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        wandb = require_wandb()
        # Kept in the folder, so that a resumed run goes on there, too.
        file = folder / WANDB_ID
        if not file.is_file():
            write_text(file, uuid.uuid4().hex[:8])
        training = config.get("training") or {}
        self._run = wandb.init(
            dir=str(folder),
            project=training.get("wandb_project") or TrainingConfig.model_fields["wandb_project"].default,
            name=training.get("run_name") or folder.name,
            id=file.read_text(encoding="utf-8").strip(),
            config=config,
            resume="allow",
        )

    def write(self, step: int, stage: str, figures: dict[str, float]) -> None:
        """Logs a step."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


class Reporter:
    """Hands figures to every sink, and shows them in a progress bar."""

    def __init__(self, sinks: list[Sink], *, total_steps: int, first_step: int, progress: bool) -> None:
        self.sinks = sinks
        self.last: dict[str, float] = {}
        self.warnings: list[str] = []
        self._bar = tqdm(
            total=total_steps, initial=first_step, disable=not progress, unit="step", dynamic_ncols=True, leave=True
        )

    def log(self, step: int, stage: str, figures: dict[str, float]) -> None:
        """Takes figures of a step; the bar shows the losses."""
        self.last.update(figures)
        if told := [f"{name} {value:.4g}" for name, value in scores(figures).items()]:
            self.say(f"step {step}: {', '.join(told)}")
        for sink in self.sinks:
            sink.write(step, stage, figures)
        losses = {name.removeprefix("train/"): f"{value:.3f}" for name, value in figures.items() if is_loss(name)}
        if losses:
            self._bar.set_postfix(losses, refresh=False)

    def say(self, line: str) -> None:
        """Prints a line above the bar, on standard error; nothing where no progress is shown."""
        if not self._bar.disable:
            self._bar.write(line, file=sys.stderr)

    def warn(self, step: int, stage: str, warning: str) -> None:
        """Logs a warning, and writes it beside the figures."""
        logger.warning("step %d: %s", step, warning)
        self.warnings.append(f"step {step}: {warning}")
        for sink in self.sinks:
            if isinstance(sink, JsonlSink):
                sink.warn(step, stage, warning)

    def step(self, stage: str) -> None:
        """Moves the bar on by one step."""
        self._bar.set_description(stage, refresh=False)
        self._bar.update()

    def skip(self, steps: int) -> None:
        """Moves the bar over steps that are left out."""
        self._bar.update(steps)

    def close(self) -> None:
        """Closes the sinks and the bar."""
        self._bar.close()
        for sink in self.sinks:
            sink.close()


_RATES = (
    "lr",
    "grad_norm",
    "audio_seconds_per_second",
    "frames_per_second",
    "tokens_per_second",
    "step_seconds",
    "position_padding",
    "frame_padding",
    "data_wait",
    "mfu",
    "peak_memory_gib",
)
NOT_LOSSES = frozenset(f"train/{name}" for name in _RATES)


def is_loss(name: str) -> bool:
    """Whether a figure is the whole loss or an objective's: `train/loss`, and not `train/asr/lm`."""
    return name.startswith("train/") and name.count("/") == 1 and name not in NOT_LOSSES


def require_sinks(report_to: Sequence[str]) -> None:
    """Checks that what `training.report_to` names is installed.

    Raises:
        MissingDependencyError: It is not.
    """
    if "wandb" in report_to:
        require_wandb()


def open_sinks(report_to: list[str], folder: Path, *, first_step: int, config: dict[str, Any]) -> list[Sink]:
    """Opens what `training.report_to` names, beside `metrics.jsonl`.

    Raises:
        MissingDependencyError: Weights & Biases is asked for and not installed.
    """
    sinks: list[Sink] = []
    if "wandb" in report_to:
        sinks.append(WandbSink(folder, config))
    if "tensorboard" in report_to:
        sinks.append(TensorBoardSink(folder, first_step))
    return [JsonlSink(folder), *sinks]

"""Stops a training that is asked to: after the step, with a checkpoint, on all processes at once.

SLURM announces that it will take a job's nodes by SIGTERM, or by the signal that `--signal` names, for which SIGUSR1 is
usual.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer

SIGNALS = ("SIGTERM", "SIGUSR1")


class StopRequest:
    """Whether this process was asked to stop; as a context, it listens to the signals meanwhile."""

    def __init__(self) -> None:
        self.asked_by: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # no other may
            for name in SIGNALS:
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _take(self, number: int, _: FrameType | None) -> None:
        self.asked_by = signal.Signals(number).name


class StopWhenAsked(TrainerCallback):
    """Saves a checkpoint and ends the training after the step in which a process was asked to stop.

    Args:
        trainer: The trainer, in which all processes agree at every step on whether one of them was asked.
    """

    def __init__(self, trainer: SpeechLMMTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After each optimiser step."""
        # After a stage's last step there is nothing to stop; what follows begins with a step of its own, or is the end.
        if self.trainer.stop_agreed and state.global_step < state.max_steps:
            self.trainer.stopped = True
            control.should_save = control.should_log = control.should_training_stop = True

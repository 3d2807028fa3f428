"""What follows from each step of the trainer's."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from speechlmm_train.trainer.callbacks import Reporter


class StepCallback(TrainerCallback):
    """Moves the progress bar, and has the last step's figures logged, however few steps there are."""

    def __init__(self, reporter: Reporter, stage: str) -> None:
        self.reporter = reporter
        self.stage = stage

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After each optimiser step."""
        self.reporter.step(self.stage)
        control.should_log = control.should_log or state.global_step >= state.max_steps

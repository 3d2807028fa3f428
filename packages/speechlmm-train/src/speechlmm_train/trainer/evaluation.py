"""Evaluation by generation while a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from speechlmm_core.data.example import Example
from speechlmm_core.inference.options import GenerationOptions
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.evaluate.evaluate import evaluate
from speechlmm_train.training_config import TrainingConfig

if TYPE_CHECKING:
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer


class EvaluationCallback(TrainerCallback):
    """Answers a fixed sample of the evaluation data every `eval_steps`, and reports the tasks' metrics."""

    def __init__(self, trainer: SpeechLMMTrainer, examples: Sequence[Example], training: TrainingConfig) -> None:
        self.trainer = trainer
        self.training = training
        self.examples = spread(examples, training.eval_samples)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Evaluates when it is time."""
        every, trainer = self.training.eval_steps, self.trainer
        if every is None or trainer.state.global_step % every or not trainer.is_world_process_zero():
            return
        assert isinstance(trainer.model, SpeechLMM)
        path = trainer.folder.path / "evaluations" / f"step-{trainer.total_step}.jsonl"
        with trainer.accelerator.autocast():  # as in training: what attention runs on may need half precision
            done = evaluate(
                trainer.model,
                trainer.processor,
                self.examples,
                options=GenerationOptions(max_new_tokens=self.training.eval_max_new_tokens),
                predictions_path=path,
            )
        figures = {
            f"eval/{task}_{name}": value for task, scores in done.scores.items() for name, value in scores.items()
        }
        trainer.reporter.log(trainer.total_step, trainer.stage.name, figures)


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most ``count`` examples, evenly spread over all of them: the same at every call."""
    total = len(examples)
    return [examples[i * total // min(count, total)] for i in range(min(count, total))]

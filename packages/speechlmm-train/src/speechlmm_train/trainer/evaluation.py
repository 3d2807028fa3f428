"""Evaluation by generation while a model is trained: figures, the best checkpoint, early stopping, the guard set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions
from speechlmm_core.model.describe import attention_of
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.evaluate.evaluate import predict
from speechlmm_train.evaluate.prediction import Prediction, write_predictions
from speechlmm_train.evaluate.questions import Keys, questions
from speechlmm_train.evaluate.score import score_what_can_be
from speechlmm_train.parallel.arguments import mixed_precision
from speechlmm_train.parallel.whole import whole_weights
from speechlmm_train.trainer.best import RunState, worsening
from speechlmm_train.trainer.evaluation_plan import EVAL, GUARD, EvaluationPlan
from speechlmm_train.trainer.sample import Sample
from speechlmm_train.training_config import TrainingConfig

if TYPE_CHECKING:
    from speechlmm_train.trainer.trainer import SpeechLMMTrainer

FOLDER = "evaluations"
ROUNDING = 1e-9


class EvaluationCallback(TrainerCallback):
    """Answers fixed samples every `eval_steps`, and acts on what comes out.

    Each rank answers its share; the first scores all answers, and all of them learn what was decided.
    """

    def __init__(self, trainer: SpeechLMMTrainer, plan: EvaluationPlan, training: TrainingConfig) -> None:
        self.trainer = trainer
        self.plan = plan
        self.training = training

    @property
    def state(self) -> RunState:
        """What the run remembers."""
        return self.trainer.run_state

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluates what later evaluations of the guard set are compared with, and what was put off."""
        self._guard_first()
        trainer = self.trainer
        if self.state.owed.pop(trainer.stage.name, None) != state.global_step or not state.global_step:
            return
        best, ends = self._evaluated()
        if best and trainer.ranks.is_main:  # it was saved before the stop
            trainer.folder.point_to_best(self.state.best[trainer.stage.name].checkpoint)
        control.should_training_stop = control.should_training_stop or ends

    def _guard_first(self) -> None:
        if GUARD not in self.plan.samples or self.state.guarded == self.plan.guarded:
            return
        began = bool(self.trainer.state.global_step)
        kinds = (GUARD,) if began else tuple(self.plan.samples)
        answers = self._answers(kinds)
        self._together(lambda: self._guard_anew(answers, began=began))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluates when it is time; saves what is the best, and ends the stage where nothing improves any more."""
        every = self.training.eval_steps
        if every is None or state.global_step % every:
            return
        if self.trainer.stopped:  # whoever asked for it may not wait for answers: the checkpoint comes first
            self.state.owed[self.trainer.stage.name] = state.global_step
            return
        best, ends = self._evaluated()
        if best or ends:
            control.should_save = True
        if ends:
            control.should_training_stop = control.should_log = True

    def _evaluated(self) -> tuple[bool, bool]:
        """Evaluates; whether it is the best so far, and whether the stage should end."""
        answers = self._answers(tuple(self.plan.samples))
        return self._together(lambda: self._judged(answers))

    def _guard_anew(self, answers: Mapping[str, list[Prediction]], *, began: bool) -> None:
        if began and self.state.guarded:
            self.trainer.warn("the guard set is another or is measured otherwise; its figures start anew")
        self.state.guard, self.state.guarded = {}, self.plan.guarded
        self._report(answers)

    def _judged(self, answers: Mapping[str, list[Prediction]]) -> tuple[bool, bool]:
        figures = self._report(answers)
        trainer, rule = self.trainer, self.plan.rule
        if rule is None:
            return False, False
        name = trainer.stage.name
        if math.isnan(figures.get(rule.figure, math.nan)):
            trainer.warn(f"{rule.figure} has no value; the evaluation counts as no improvement")
        best, ends = self.state.judge(name, figures, rule=rule, step=trainer.total_step)
        if ends:
            self.state.stopped[name] = trainer.state.global_step
            times = self.state.stale[name]
            line = (
                f"stage {name!r} ends after {trainer.state.global_step} steps: {rule.figure} has not improved in "
                f"{times} evaluation{'' if times == 1 else 's'}"
            )
            if trainer.state.global_step < trainer.state.max_steps:  # else it ends as planned
                trainer.warn(line)
        return best, ends

    def _answers(self, kinds: Sequence[str]) -> dict[str, list[Prediction]]:
        """The answers to samples; every rank takes part."""
        found: dict[str, list[Prediction]] = {}
        trainer, model = self.trainer, self.trainer.model
        assert model is not None
        with trainer.paused(), whole_weights(model), plain_forward(model, self._precision()) as plain:
            engine = InferenceEngine(plain, trainer.processor)
            for kind in kinds:
                found[kind] = self._shared(self.plan.samples[kind], engine)
        return found

    def _shared(self, sample: Sample, engine: InferenceEngine) -> list[Prediction]:
        """The answers to a sample, of which each rank gives its share."""
        options = GenerationOptions(max_new_tokens=self.training.eval_max_new_tokens)
        ranks, asked = self.trainer.ranks, Keys()
        order: list[str] = []
        if ranks.world_size > 1:
            for name, examples in sample.parts:
                order += [question.key for question, _ in questions(examples, name, asked)]

        def share() -> list[Prediction]:
            keys, own = Keys(), set(order[ranks.rank :: ranks.world_size])
            left_out = [key for key in order if key not in own]
            found: list[Prediction] = []
            for name, examples in sample.parts:
                found += predict(engine, examples, dataset=name, options=options, keys=keys, done=left_out)
            return found

        mine, shares = ranks.share(share, list)
        if ranks.world_size == 1:
            return mine
        known = {prediction.key: prediction for one in shares for prediction in one}
        return [known[key] for key in order]

    def _report(self, answers: Mapping[str, list[Prediction]]) -> dict[str, float]:
        """Scores answers and reports the figures."""
        figures: dict[str, float] = {}
        with self.trainer.paused():
            for kind, predictions in answers.items():
                figures |= self._figures(kind, self.plan.samples[kind], predictions)
        self._guard(figures)
        self.trainer.reporter.log(self.trainer.total_step, self.trainer.stage.name, figures)
        return figures

    def _figures(self, kind: str, sample: Sample, predictions: Sequence[Prediction]) -> dict[str, float]:
        step = self.trainer.total_step
        name = f"step-{step}.jsonl" if kind == EVAL else f"{kind}-step-{step}.jsonl"
        write_predictions(self.trainer.folder.path / FOLDER / name, predictions)
        found: dict[str, float] = {}
        for prefix, members in sample.slices.items():
            scores, faults = score_what_can_be([predictions[i] for i in members])
            if not prefix:  # what is wrong with a dataset is wrong with all together, too
                for fault in faults:  # none of it must end a training
                    self.trainer.warn(f"evaluation of step {step}: {fault}")
            for task, values in scores.items():
                found |= {f"{kind}/{prefix}{task}_{metric}": value for metric, value in values.items()}
        return found

    def _guard(self, figures: dict[str, float]) -> None:
        """Compares the guard's figures with their first values; adds by which share each has worsened."""
        for name, greater in self.plan.known.items():
            value = figures.get(name, math.nan)
            if not name.startswith(f"{GUARD}/") or math.isnan(value):
                continue
            first = self.state.guard_stage(self.trainer.stage.name, name, value, step=self.trainer.total_step)
            lost = worsening(first, value, greater=greater)
            figures[f"{name}_worsened"] = lost
            if lost > self.training.guard_tolerance + ROUNDING:
                self.trainer.warn(
                    f"{name} has worsened from {first:.4g} to {value:.4g} (by {100 * lost:.1f} %, more than the "
                    f"{100 * self.training.guard_tolerance:g} % of training.guard_tolerance)"
                )

    def _precision(self) -> Any:
        # Attention that runs in half precision alone needs autocast, and so do DeepSpeed's weights in fp16 beside whole
        # ones; all else answers as the saved model will.
        trainer, model = self.trainer, self.trainer.model
        assert isinstance(model, SpeechLMM)
        used = " ".join(attention_of(component) for component in model.components().values())
        if "flash_attention" not in used and not trainer.halved:
            return nullcontext()
        return mixed_precision(self.training, trainer.args.device.type)

    def _together(self, work: Callable[[], Any]) -> Any:
        """Does something on the first rank and tells the others what came of it, also if it failed."""
        result, state = self.trainer.ranks.on_main(lambda: (work(), self.state))
        self.state.take(state)
        return result


@contextmanager
def plain_forward(model: Any, precision: Any) -> Iterator[SpeechLMM]:
    """The model without the autocast that accelerate lays over its `forward`: it answers as when it is loaded again."""
    assert isinstance(model, SpeechLMM)
    wrapped = model.__dict__.pop("forward", None)
    try:
        with torch.autocast(model.device.type, enabled=False), precision:
            yield model
    finally:
        if wrapped is not None:
            model.__dict__["forward"] = wrapped

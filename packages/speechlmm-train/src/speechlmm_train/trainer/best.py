"""What a run remembers: the best checkpoint, how long nothing improved, the guard's figures, how losses have gone."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from speechlmm_train.trainer.loss_history import LossHistory
from speechlmm_train.trainer.manifest import damage

logger = logging.getLogger(__name__)

STATE = "evaluation_state.json"


@dataclass
class Best:
    """The best checkpoint of a stage."""

    figure: str
    value: float
    step: int
    """Steps of all stages."""
    checkpoint: str
    """Name of its folder."""
    greater: bool | None = None
    """Whether more of the figure is better."""
    measured: str = ""
    """What it was measured on, and how."""


@dataclass(frozen=True)
class Rule:
    """How evaluations are compared."""

    figure: str
    greater: bool
    patience: int | None = None
    threshold: float = 0.0
    measured: str = ""
    """What the figure is measured on, and how: values of another measurement are not compared."""

    def gain(self, value: float, than: float) -> float:
        """By how much a value is better than another."""
        return value - than if self.greater else than - value


@dataclass
class RunState:
    """What outlasts a stage's trainer, and goes into every checkpoint."""

    best: dict[str, Best] = field(default_factory=dict[str, Best])
    """By stage."""
    stale: dict[str, int] = field(default_factory=dict[str, int])
    """Evaluations in a row in which nothing improved, by stage."""
    stopped: dict[str, int] = field(default_factory=dict[str, int])
    """Steps after which a stage ended early."""
    guard: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """First and last value of each figure of the guard set."""
    guarded: str = ""
    """The guard set that they belong to, and how it is measured."""
    guards: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])
    """First and last value of the guard's figures and the step of the last, by stage."""
    guards_of_best: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])
    """The same as of the best checkpoint."""
    drawn: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])
    """Examples, positions and seconds that were trained on, by stage and group."""
    loss_histories: dict[str, dict[str, LossHistory]] = field(default_factory=dict[str, dict[str, LossHistory]])
    """What is usual of the losses, by stage and objective."""
    owed: dict[str, int] = field(default_factory=dict[str, int])
    """The step of a stage whose evaluation was put off, as the training was asked to stop there."""

    @classmethod
    def read(cls, checkpoint: Path) -> RunState:
        """The state in a checkpoint; an empty one where there is none. A best checkpoint that is gone is forgotten."""
        file = checkpoint / STATE
        if not file.exists():
            return cls()
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            content["best"] = {stage: Best(**one) for stage, one in content["best"].items()}
            content["loss_histories"] = {
                stage: {name: LossHistory(**one) for name, one in histories.items()}
                for stage, histories in content.get("loss_histories", {}).items()
            }
            state = cls(**content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
            logger.warning(
                "%s cannot be read (%s): the best checkpoint, the patience and the guard's first figures start anew",
                file,
                " ".join(str(exc).split()),
            )
            return cls()
        for stage, one in list(state.best.items()):
            fault = damage(checkpoint.parent / one.checkpoint, thorough=False)
            if fault is not None:
                logger.warning("stage %r: its best, %s, is gone or damaged: %s", stage, one.checkpoint, fault)
                del state.best[stage]
        return state

    def write(self, folder: Path) -> None:
        """Writes the state into a checkpoint."""
        (folder / STATE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    def take(self, other: RunState) -> None:
        """Becomes what another rank remembers."""
        for one in fields(self):
            setattr(self, one.name, getattr(other, one.name))

    @property
    def kept(self) -> set[str]:
        """Checkpoints that are never removed."""
        return {best.checkpoint for best in self.best.values()}

    def worsened(self, stage: str, known: Mapping[str, bool], *, of_best: bool) -> dict[str, dict[str, float]]:
        """First and last value of a stage's guard figures, the last's step, and by which share each has worsened.

        Args:
            stage: The stage's name.
            known: Figures, and whether more of each is better.
            of_best: Whether the last values are those of the best checkpoint, where there is one.
        """
        figures = self.guards.get(stage, {})
        if of_best and stage in self.best:
            figures = self.guards_of_best.get(stage, {})
        return {
            name: {
                **{"first": first, "last": last, "step": int(step)},
                "worsened": worsening(first, last, greater=known[name]),
            }
            for name, (first, last, step) in figures.items()
            if name in known
        }

    def guard_stage(self, stage: str, name: str, value: float, *, step: int) -> float:
        """Takes a figure of the guard set into account, and gives its first value."""
        first = self.guard.setdefault(name, [value, value])[0]
        self.guard[name][1] = value
        self.guards.setdefault(stage, {})[name] = [first, value, step]
        return first

    def forget_unlike(self, stage: str, rule: Rule) -> bool:
        """Forgets what was best by another figure, direction or measurement; whether there was such."""
        before = self.best.get(stage)
        wanted = (rule.figure, rule.greater, rule.measured)
        if before is None or (before.figure, before.greater, before.measured) == wanted:
            return False
        for memory in (self.best, self.stale, self.stopped, self.guards_of_best):
            memory.pop(stage, None)
        return True

    def judge(self, stage: str, figures: Mapping[str, float], *, rule: Rule, step: int) -> tuple[bool, bool]:
        """Takes an evaluation into account.

        Args:
            stage: The stage's name.
            figures: What was found.
            rule: What decides.
            step: Steps of all stages.

        Returns:
            Whether it is the best of its stage, and whether the stage should end.
        """
        self.forget_unlike(stage, rule)
        value = figures.get(rule.figure, math.nan)
        before = self.best.get(stage)
        better = not math.isnan(value) and (before is None or rule.gain(value, before.value) > 0)
        improved = better and (before is None or rule.gain(value, before.value) > rule.threshold)
        self.stale[stage] = 0 if improved else self.stale.get(stage, 0) + 1
        if better:
            self.best[stage] = Best(rule.figure, value, step, f"checkpoint-{step}", rule.greater, rule.measured)
            self.guards_of_best[stage] = dict(self.guards.get(stage, {}))
        return better, self.ends(stage, rule.patience)

    def ends(self, stage: str, patience: int | None) -> bool:
        """Whether a stage has gone without an improvement for as long as it may."""
        return patience is not None and self.stale.get(stage, 0) >= patience


def worsening(first: float, last: float, *, greater: bool) -> float:
    """By which share a value is worse than the first; negative where it is better. From 0 on, it is the difference."""
    lost = first - last if greater else last - first
    return lost / abs(first) if first else lost

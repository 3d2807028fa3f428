"""Stops a training whose losses or gradients are no numbers, or grow without bound, and names the samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.errors import DivergedError
from speechlmm_core.features import Loss
from speechlmm_train.batching.loader import ORIGIN
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.trainer.loss_history import IN_A_ROW, LossHistory
from speechlmm_train.trainer.output_folder import DIVERGED
from speechlmm_train.trainer.tally import ITEMS, read
from speechlmm_train.watching_config import Watching

TOLD = 3
"""Samples that the message names; the file names all."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a step."""

    what: str
    """In words."""
    objective: str | None = None
    """The objective whose loss it is; None where it is the gradient."""
    limit: float = math.inf
    """What the loss is above; infinite where it is not a number."""


class Judge:
    """Decides by the losses of all ranks, so that all come to the same.

    Args:
        settings: When to stop.
        histories: How the losses have gone so far, by objective; goes on with every step.
    """

    def __init__(self, settings: Watching, histories: dict[str, LossHistory] | None = None) -> None:
        self.settings = settings
        self.histories = {} if histories is None else histories

    def fault(self, losses: Mapping[str, float], grad_norm: float | None) -> Fault | None:
        """What is wrong with a step, if anything is.

        Args:
            losses: Means of the objectives that were computed.
            grad_norm: Norm of the gradient before clipping; None where it is not known or may be infinite.
        """
        for name, value in losses.items():
            if not math.isfinite(value):
                return Fault(f"the loss of {name!r} is not a finite number ({value})", name)
        if grad_norm is not None and not math.isfinite(grad_norm):
            return Fault(f"the gradient is not a finite number (its norm is {grad_norm}), though the losses are")
        for name, value in losses.items():
            if self.settings.max_loss is not None and value > self.settings.max_loss:
                limit = self.settings.max_loss
                return Fault(f"the loss of {name!r} is {value:.4g}, above training.max_loss={limit:g}", name, limit)
        factor = self.settings.stop_on_explosion
        for name, value in losses.items() if factor is not None else ():
            assert factor is not None
            limit = self.histories.setdefault(name, LossHistory()).take(value, factor)
            if limit is not None:
                what = f"the loss of {name!r} is {value:.4g} and was above {limit:.4g} for {IN_A_ROW} steps in a row"
                return Fault(f"{what} (training.stop_on_explosion)", name, limit)
        return None


class Watch:
    """Watches the steps of a stage.

    Args:
        settings: When to stop.
        objectives: Names of the stage's objectives, the same on every rank.
        ranks: The processes.
        locate: Tells an example of the plan: its id and its place.
        histories: How the losses have gone so far, by objective; goes on with every step.
    """

    def __init__(
        self,
        settings: Watching,
        objectives: Sequence[str],
        ranks: Ranks,
        locate: Callable[[int], Mapping[str, str]] | None = None,
        histories: dict[str, LossHistory] | None = None,
    ) -> None:
        self.judge = Judge(settings, histories)
        self.objectives = list(objectives)
        self.ranks, self.locate = ranks, locate
        self._losses: list[tuple[str, Tensor]] = []
        self._batches: list[dict[str, Any]] = []
        self.losses: dict[str, float] = {}
        """The objectives' means in the step that was looked at last."""

    def begin(self) -> None:
        """A step begins."""
        self._losses, self._batches = [], []

    def begin_batch(self, batch: Mapping[str, Any]) -> None:
        """A micro-batch begins."""
        self._batches.append({"origin": batch.get(ORIGIN), "items": batch.get(ITEMS), "losses": {}, "means": {}})

    def add_loss(self, name: str, loss: Loss, mean: Tensor) -> None:
        """Takes an objective's loss of the micro-batch; nothing is read from the device."""
        mean = mean.detach()
        self._losses.append((name, mean))
        self._batches[-1]["means"][name] = mean
        self._batches[-1]["losses"][name] = loss

    def fault(self, grad_norm: Tensor | float | None) -> Fault | None:
        """Looks at a step, on all ranks at once; the device is waited for.

        Args:
            grad_norm: Norm of the whole gradient before clipping; None where it is not known or not to be judged.
        """
        norm = [grad_norm.detach().reshape(1)] if isinstance(grad_norm, Tensor) else []
        tensors = [mean.reshape(1) for _, mean in self._losses] + norm
        values = read(tensors, tensors[0].device) if tensors else []
        own = dict.fromkeys(self.objectives, 0.0)
        for (name, _), value in zip(self._losses, values, strict=False):
            own[name] += value
        means = zip(self.objectives, self.ranks.sum(list(own.values())), strict=True)
        self.losses = {name: mean for name, mean in means if mean}  # 0: there was nothing to learn from
        found = values[-1] if norm else grad_norm
        return self.judge.fault(self.losses, None if found is None else float(found))

    def gradient_fault(self, grad_norm: Tensor | float | None) -> Fault | None:
        """Looks at a gradient alone, whose losses have been looked at."""
        return None if grad_norm is None else self.judge.fault({}, float(grad_norm))

    def stop(self, fault: Fault, *, folder: Path, about: Mapping[str, Any]) -> None:
        """Names the samples, writes what is known to a file, and ends the training on every rank.

        Args:
            fault: What is wrong.
            folder: The output folder.
            about: What else is told: `step`, `stage`, the learning rate, norms.

        Raises:
            DivergedError: Always.
        """
        samples = [one for own in self.ranks.gather(self._offending(fault)) for one in own]
        everything, sure = len(samples), [one for one in samples if one.pop("sure")]
        samples = sorted(sure or samples, key=lambda one: -_worst(one, fault))
        losses = {name: _plain(value) for name, value in self.losses.items()}
        about = {name: _plain(value) for name, value in about.items()}
        content = {**about, "fault": fault.what, "objective": fault.objective, "losses": losses, "samples": samples}
        if self.ranks.is_main:
            write_text(folder / DIVERGED, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        named = ", ".join(f"{one['id']!r} ({one['place']})" for one in samples[:TOLD])
        more = f" and {len(samples) - TOLD} more" if len(samples) > TOLD else ""
        if not sure or (len(sure) == everything and everything > 1):
            which = "the step's samples"
        else:
            which = "the sample" if len(sure) == 1 else "the samples"
        told = f"{which}: {named}{more}; " if samples else ""
        raise DivergedError(
            f"step {about['step']}: {fault.what}; {told}{folder / DIVERGED} tells all; nothing of this step was saved: "
            "look at the samples, lower the learning rate, or train in fp32, and go on with --resume"
        )

    def _offending(self, fault: Fault) -> list[dict[str, Any]]:
        """This rank's samples of the step; `sure` are those whose own loss is at fault."""
        found: list[dict[str, Any]] = []
        for number, batch in enumerate(self._batches):
            if batch["origin"] is None:
                continue
            means = {name: _by_unit(loss, batch["items"]) for name, loss in batch["losses"].items()}
            whole = float(batch["means"][fault.objective]) if fault.objective in batch["means"] else 0.0
            for place, example in enumerate(batch["origin"]["examples"].tolist()):
                losses = {name: _plain(own[place]) for name, own in means.items() if own is not None}
                own = means.get(fault.objective or "")
                if own is None:  # the objective does not tell samples apart
                    sure = not math.isfinite(whole)
                else:
                    sure = not math.isfinite(own[place]) or own[place] > fault.limit
                where = self.locate(example) if self.locate else {"id": str(example), "place": ""}
                at = {"rank": self.ranks.rank, "micro_batch": number}
                found.append({**where, **at, "losses": losses, "sure": sure and fault.objective is not None})
        return found


def _by_unit(loss: Loss, items: Mapping[str, Any] | None) -> list[float] | None:
    """(S,) each sample's loss, divided by its own units."""
    if loss.by_sample is None or items is None or loss.unit not in items:
        return None
    pairs = zip(loss.by_sample.tolist(), items[loss.unit].tolist(), strict=True)
    return [share / max(count, 1) for share, count in pairs]


def _plain(value: Any) -> Any:
    """JSON has no number for what is none."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _worst(sample: Mapping[str, Any], fault: Fault) -> float:
    losses = sample["losses"]
    values = [losses[fault.objective]] if fault.objective in losses else list(losses.values())
    numbers = [math.inf if isinstance(value, str) else value for value in values]
    return max(numbers, default=0.0)

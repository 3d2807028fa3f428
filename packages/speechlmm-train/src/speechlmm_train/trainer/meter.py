"""What a training's log lines say: losses, gradients, speed, padding, waiting, the mixture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechlmm_core.features import Loss
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.mixture import Mixture
from speechlmm_train.trainer.tally import Losses, Work, read

GIB = 2**30


@dataclass(frozen=True)
class Utilisation:
    """What model FLOPs are compared with."""

    model_flops: Callable[[Mapping[str, float]], float]
    """FLOPs that the model needs for the sums of `Work`, padding left out."""
    peak_flops: float
    """FLOP/s that a device can do at most."""


class Meter:
    """Sums up what happens between two log lines of a stage.

    Args:
        processor: Knows the frame rates.
        stage: The stage's name.
        mixture: Counts what the plan draws; None where that is not logged.
        run_state: What the run remembers; takes what was drawn.
        objectives: Names of the stage's objectives, the same on every rank.
        utilisation: For the share of a device's peak that is used; None where that is not known.
    """

    def __init__(
        self,
        processor: SpeechLMMProcessor,
        stage: str,
        mixture: Mixture | None,
        run_state: RunState,
        *,
        objectives: Sequence[str] = (),
        utilisation: Utilisation | None = None,
    ) -> None:
        self._processor = processor
        self._stage = stage
        self._mixture = mixture
        self._run_state = run_state
        self._objectives = list(objectives)
        self._tasks = mixture.plan.mix.tasks if mixture is not None else []
        self._utilisation = utilisation
        self.grad_norms: dict[str, Tensor] = {}
        """Norms of the parts' gradients of the step that will be logged."""
        self._counted = -1
        self._since: float | None = None
        self._anew()

    def _anew(self) -> None:
        self._work, self._losses = Work(self._processor), Losses(self._objectives, self._tasks)
        self._total: Tensor | None = None
        self._steps, self._waited = 0, 0.0
        self.grad_norms = {}

    def begin(self, step: int) -> None:
        """A step begins; time, and what was drawn, are counted from the first one on."""
        if self._counted < 0:
            self._counted = step
        if self._since is None:
            self._since = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts what is done meanwhile as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def measure(self, batches: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> None:
        """Takes the micro-batches of a step, while they are on the host.

        Args:
            batches: This rank's.
            counts: How often each unit of a loss comes in the step, over all ranks.
        """
        for batch in batches:
            self._work.add(batch)
        self._losses.begin_step(counts)
        self._steps += 1

    def add_loss(self, name: str, loss: Loss, mean: Tensor, batch: Mapping[str, Any]) -> None:
        """Takes an objective's loss of a micro-batch.

        Args:
            name: The objective.
            loss: As the model gives it.
            mean: Its part of the step's mean.
            batch: The micro-batch, with what the loader says of its samples.
        """
        self._losses.add(name, loss, mean, batch)

    def add_total(self, total: Tensor) -> None:
        """Takes a micro-batch's part of what is minimised."""
        total = total.detach()
        self._total = total if self._total is None else self._total + total

    def figures(self, logs: Mapping[str, float], step: int, *, device: torch.device, ranks: Ranks) -> dict[str, float]:
        """The figures of the steps since the call before; every rank has to call it.

        Args:
            logs: What transformers logs.
            step: Steps that the stage has done.
            device: Where losses are computed.
            ranks: The processes, whose work is added up.
        """
        steps = max(self._steps, 1)
        work = self._work.sums
        total = torch.zeros(1, device=device) if self._total is None else self._total.reshape(1)
        own = [*work.values(), self._waited, *read([total, *self._losses.tensors(device)], device)]
        heard = ranks.gather((own, _peak_memory(device)))
        # From here on: on a GPU, what was read above has been computed by now, and not only asked for.
        now = time.perf_counter()
        seconds = max(now - (now if self._since is None else self._since), 1e-9)
        values = [sum(column) for column in zip(*(one for one, _ in heard), strict=True)]
        sums = dict(zip(work, values, strict=False))
        waited, loss = values[len(work) : len(work) + 2]
        losses = self._losses.figures(values[len(work) + 2 :], steps)
        world_size, peak = ranks.world_size, max(one for _, one in heard)
        figures = {
            "train/loss": loss / steps,
            **{f"train/{name}": value for name, value in losses.items()},
            "train/lr": logs["learning_rate"],
            **self._speed(sums, seconds, steps, world_size),
            "train/data_wait": min(waited / world_size / seconds, 1.0),
            **self._shares(step),
        }
        if peak:
            figures["train/peak_memory_gib"] = peak / GIB
        if "grad_norm" in logs:
            figures["train/grad_norm"] = logs["grad_norm"]
        if self.grad_norms:
            norms = torch.stack([norm.to(device) for norm in self.grad_norms.values()]).tolist()
            figures |= {f"train/grad_norm/{part}": norm for part, norm in zip(self.grad_norms, norms, strict=True)}
        self.count_drawn(step)
        self._anew()
        self._since = time.perf_counter()
        return figures

    def _speed(self, sums: Mapping[str, float], seconds: float, steps: int, world_size: int) -> dict[str, float]:
        found = {
            "train/audio_seconds_per_second": sums["audio_seconds"] / seconds,
            "train/frames_per_second": sums["frames"] / seconds,
            "train/tokens_per_second": sums["positions"] / seconds,
            "train/step_seconds": seconds / steps,
            "train/position_padding": 1 - sums["positions"] / max(sums["held_positions"], 1),
        }
        if sums["held_frames"]:
            found["train/frame_padding"] = 1 - sums["frames"] / sums["held_frames"]
        if self._utilisation is not None:
            flops = self._utilisation.model_flops(sums)
            found["train/mfu"] = flops / seconds / (self._utilisation.peak_flops * world_size)
        return found

    def _shares(self, step: int) -> dict[str, float]:
        """Shares of the tasks in the steps since the line before."""
        if self._mixture is None or len(self._mixture.names) < 2:
            return {}
        return self._mixture.figures(self._mixture.count(step - self._steps, step))

    def count_drawn(self, step: int) -> None:
        """Adds what the steps since the last call drew to what the stage has drawn."""
        if self._mixture is None or step <= self._counted:
            return
        drawn = self._run_state.drawn.setdefault(self._stage, {})
        for name, row in zip(self._mixture.names, self._mixture.count(self._counted, step).tolist(), strict=True):
            drawn[name] = [sum(pair) for pair in zip(drawn.get(name, (0.0, 0.0, 0.0)), row, strict=True)]
        self._counted = step

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what is done meanwhile out of the training's speed."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += time.perf_counter() - began


def _peak_memory(device: torch.device) -> int:
    """The most bytes that PyTorch has taken of this rank's GPU so far; 0 without one."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0

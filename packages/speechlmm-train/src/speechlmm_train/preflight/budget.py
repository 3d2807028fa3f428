"""Finds the largest token budget that fits into memory, for `training.token_budget: auto`.

On a GPU each candidate's largest micro-batches go through the real model, forward and backward, beside as much memory
as the optimiser will take. Elsewhere, and where the weights are spread over processes, the memory is predicted and
compared with a limit.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from speechlmm_core.errors import ConfigError
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.batching.mix import Mix
from speechlmm_train.batching.plan import BatchPlan, frames_for
from speechlmm_train.config import RunConfig
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.parallel_names import mode_of, stage_of
from speechlmm_train.preflight.memory import StageModel, changed, device_memory
from speechlmm_train.preflight.restore import untouched
from speechlmm_train.preflight.settled import AUTO, recorded, with_budgets
from speechlmm_train.preflight.step import checkpoint_activations
from speechlmm_train.preflight.table import USABLE
from speechlmm_train.preflight.tryout import OutOfMemoryError, device_of, run_batch
from speechlmm_train.preflight.units import in_bytes
from speechlmm_train.preflight.worst import worst_batches
from speechlmm_train.trainer.checks import freeze_for
from speechlmm_train.trainer.initial_model import build_model
from speechlmm_train.trainer.stage_data import StageData, open_stages
from speechlmm_train.training_config import TrainingConfig

logger = logging.getLogger(__name__)

TOLERANCE = 0.03
"""By which share the budget that is found may fall short of the largest."""
ROUND = 64
"""Budgets are multiples of it, and small ones of a power of two below."""
EXAMPLES = 4096
"""Examples of each kind (the longest by positions, by frames, and from all over) whose micro-batches are measured."""
GIB = 2**30

Fits = Callable[[int], bool]
"""Whether a token budget fits."""


def search(fits: Fits, *, low: int, high: int) -> int | None:
    """The largest budget that fits, within `TOLERANCE`; None where not even the lowest does.

    Args:
        fits: Tries a budget; what fits below one that fits does so, too.
        low: The lowest budget that can be.
        high: A budget beyond which nothing changes.
    """
    if not fits(low):
        return None
    good, bad = low, None
    while bad is None and good < high:
        candidate = min(2 * good, high)
        if fits(candidate):
            good = candidate
        else:
            bad = candidate
    # One half of the tolerance is for the search, the other for a round number.
    while bad is not None and bad - good > max(TOLERANCE / 2 * good, 1):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return max(good - good % _rounded_to(good), low)


def _rounded_to(budget: int) -> int:
    """The power of two, at most `ROUND`, that a budget can be a multiple of within half the tolerance."""
    return min(1 << int(math.log2(max(TOLERANCE / 2 * budget, 1))), ROUND)


class Probe(Protocol):
    """Tries budgets of a stage."""

    limit: int
    """Bytes that there are."""

    def peak(self, stage: StageData) -> int | None:
        """Bytes at the peak of the stage's largest micro-batches; None where they do not fit."""
        ...


@dataclass
class Predicted:
    """Tries budgets by prediction, without running anything."""

    config: RunConfig
    limit: int
    world_size: int
    base: Path | None = None
    _models: dict[str, StageModel] | None = None

    def peak(self, stage: StageData) -> int | None:
        """Bytes that are predicted."""
        self._models = self._models or {}
        name = stage.settings.name
        if name not in self._models:
            self._models[name] = StageModel(self.config, stage.settings, base=self.base)
        loader = stage.batches(0, rank=0)
        batches = [loader.load(one) for one in worst_batches(stage.plan)]
        return self._models[name].estimate(batches, world_size=self.world_size).total


@dataclass
class Measured:
    """Tries budgets by running them on a GPU."""

    model: SpeechLMM
    limit: int
    device: torch.device
    world_size: int
    base: Path | None = None

    def peak(self, stage: StageData) -> int | None:
        """Bytes that torch has allocated at most."""
        loader = stage.batches(0, rank=0)
        batches = [loader.load(one) for one in worst_batches(stage.plan)]
        with untouched(self.model):
            freeze_for(self.model, stage.settings)
            checkpoint_activations(self.model, on=stage.settings.training.gradient_checkpointing)
            self.model.train()
            torch.cuda.reset_peak_memory_stats(self.device)
            try:
                for batch in batches:  # gradients stay, as they do while micro-batches are accumulated
                    run_batch(self.model, stage, batch, self.device, world_size=self.world_size, base=self.base)
            except OutOfMemoryError:
                return None
            return torch.cuda.max_memory_allocated(self.device)


def settle_budgets(
    config: RunConfig, written: Mapping[str, Any], *, folder: Path, base: Path, ranks: Ranks, resume: bool
) -> tuple[RunConfig, dict[str, Any]]:
    """The run with a number in the place of every `token_budget: auto`; a resumed run keeps what it was begun with.

    Args:
        config: The run.
        written: The composed configuration, as it goes to `config.yaml`.
        folder: The output folder.
        base: Folder where relative paths of manifests start.
        ranks: The processes; the smallest budget of all counts.
        resume: Whether the run goes on.

    Returns:
        The run and its composed configuration, both with numbers.

    Raises:
        ConfigError: There is neither a GPU nor a limit to measure against, or not even the longest example fits.
        DataError: The data are wrong.
    """
    names = [stage.name for stage in config.resolved_stages() if stage.training.token_budget == AUTO]
    if not names:
        return config, dict(written)
    found = ranks.on_main(lambda: recorded(folder)) if resume else {}
    if not all(name in found for name in names):
        ranks.together(lambda: _limit(config.training))
        # One process of each node measures the data that nobody has measured yet; the others find them measured.
        stages = ranks.main_first(lambda: _open(config, base, ranks.world_size))
        own = ranks.together(lambda: find_budgets(config, base=base, world_size=ranks.world_size, stages=stages))
        found = {name: min(one[name] for one in ranks.gather(own)) for name in own}
    if ranks.is_main:
        logger.warning("token_budget=auto: %s", ", ".join(f"{name} {found[name]}" for name in names))
    return with_budgets(config, written, {name: found[name] for name in names})


def find_budgets(
    config: RunConfig,
    *,
    base: Path,
    world_size: int,
    probe: Probe | None = None,
    stages: Sequence[StageData] | None = None,
) -> dict[str, int]:
    """The budget of each stage that asks for one to be found.

    Args:
        config: The run.
        base: Folder where relative paths of manifests start.
        world_size: Number of processes.
        probe: What tries budgets; by default what suits the machine.
        stages: The run's stages, where they have been opened already.

    Raises:
        ConfigError: There is nothing to measure against, or not even the longest example fits.
        DataError: The data are wrong.
    """
    probe = probe or _probe(config, world_size, base)
    stages = _open(config, base, world_size) if stages is None else stages
    try:
        return {
            stage.settings.name: _find(stage, probe) for stage in stages if stage.settings.training.token_budget == AUTO
        }
    finally:
        del probe
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _open(config: RunConfig, base: Path, world_size: int) -> list[StageData]:
    return open_stages(config, SpeechLMMProcessor.from_config(config.model), base=base, world_size=world_size)


def _limit(training: TrainingConfig) -> int:
    """Bytes that a process may take.

    Raises:
        ConfigError: Nothing says.
    """
    device = device_of(training)
    given = None if training.memory_limit_gib is None else round(training.memory_limit_gib * GIB)
    if device.type == "cpu" and given is None:
        raise ConfigError(
            "training.token_budget=auto measures on a GPU, and the training would run on the CPU: give the memory that "
            "a process may take by training.memory_limit_gib, or the budget as a number"
        )
    there = device_memory() if device.type != "cpu" else None
    limit = min(given, there) if given is not None and there is not None else given or there
    assert limit is not None
    return limit


def _probe(config: RunConfig, world_size: int, base: Path) -> Probe:
    training = config.training
    limit, device = _limit(training), device_of(training)
    shared = mode_of(training.parallel, world_size) == "fsdp2" or stage_of(training.parallel) is not None
    if device.type == "cpu":
        return Predicted(config, limit, world_size, base)
    if shared and world_size > 1:
        return Predicted(config, round(USABLE * limit), world_size, base)
    model = build_model(config, None)
    nn.Module.to(model, device)
    return Measured(model, round(USABLE * limit), device, world_size, base)


def _find(stage: StageData, probe: Probe) -> int:
    part = _part(stage)
    name, micro_batches = stage.settings.name, stage.plan.micro_batches_per_step
    longest = int(stage.plan.positions.max())
    whole = math.ceil(int(stage.plan.positions.sum()) / micro_batches)  # an epoch in one step

    def fits(budget: int) -> bool:
        peak = probe.peak(with_budget(stage, part, budget))
        told = "more than there are" if peak is None else in_bytes(peak)
        logger.info("stage %r: a budget of %d positions takes %s of %s", name, budget, told, in_bytes(probe.limit))
        return peak is not None and peak <= probe.limit

    found = search(fits, low=longest, high=max(whole, longest))
    if found is None:
        raise ConfigError(
            f"stage {name!r}: not even the longest example ({longest} positions) fits into {in_bytes(probe.limit)}; "
            "set training.gradient_checkpointing=true, data.max_duration_s, training.lora_adapters, or "
            "training.parallel=zero3 on several GPUs"
        )
    return found


def _part(stage: StageData) -> NDArray[np.int64]:
    """Numbers of the examples that largest micro-batches are sought among."""
    positions, frames = stage.plan.positions, stage.plan.frames
    longest = (np.argsort(-lengths, kind="stable")[:EXAMPLES] for lengths in (positions, frames))
    step = max(len(positions) // EXAMPLES, 1)
    return np.unique(np.concatenate([*longest, np.arange(0, len(positions), step)]))


def with_budget(stage: StageData, part: NDArray[np.int64], budget: int) -> StageData:
    """A stage of some of its examples, with a token budget; the frame budget is what it would be for all of them."""
    plan, training = stage.plan, stage.settings.training
    smaller = BatchPlan(
        plan.positions[part],
        plan.frames[part],
        token_budget=budget,
        frame_budget=frames_for(budget, plan.positions, plan.frames),
        micro_batches_per_step=1,
        seed=plan.seed,
        window=plan.window,
        packed=training.packed,
        oversized="alone",
        mix=Mix.plain(len(part)),
    )
    settings = changed(stage.settings, token_budget=budget)
    return replace(stage, settings=settings, plan=smaller, indices=stage.indices[part], world_size=1)

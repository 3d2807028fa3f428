"""What `plan` says of a stage's memory, its micro-batches and its padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from speechlmm_core.errors import SpeechLMMError
from speechlmm_train.config import RunConfig
from speechlmm_train.parallel_names import mode_of
from speechlmm_train.preflight.memory import MemoryEstimate, StageModel, changed, shared_otherwise
from speechlmm_train.preflight.padding import padding_share
from speechlmm_train.preflight.synthetic import stand_in_processor, synthetic_batch
from speechlmm_train.preflight.units import in_bytes
from speechlmm_train.preflight.worst import worst_batches
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.stage_data import StageData

USABLE = 0.9
"""Share of a GPU's memory that tensors may take; the rest is for the driver, libraries and gaps."""
GIB = 2**30


def memory_lines(
    config: RunConfig, data: list[StageData], *, world_size: int, gpu_memory: float | None = None
) -> Iterator[str]:
    """A table for each stage of what a process allocates at the peak of a step, and what an epoch is.

    Args:
        config: The run.
        data: Its stages with their data; empty where they are not there, so that made-up examples fill the budget.
        world_size: Processes that will share the training.
        gpu_memory: GiB of a GPU, to say what fits into it.

    Raises:
        DataError: An example of a largest micro-batch cannot be loaded.
        ConfigError: A stage does not fit the model.
    """
    opened = {stage.settings.name: stage for stage in data}
    for stage in config.resolved_stages():
        own = opened.get(stage.name)
        if own is not None:
            yield from epoch_lines(own)
        yield from _stage_lines(config, stage, own, world_size, gpu_memory)


def epoch_lines(stage: StageData) -> Iterator[str]:
    """What an epoch of a stage is: micro-batches, steps, hours, padding, and what is left out."""
    steps = stage.plan.epoch_steps()
    micro_batches = steps * stage.plan.micro_batches_per_step
    positions, frames = padding_share(stage)
    hours = stage.mixture.seconds.sum() / 3600
    yield (
        f"an epoch of {stage.settings.name}: {micro_batches:,.0f} micro-batches, {steps:,.1f} steps, {hours:,.2f} h of "
        f"media; padding is {100 * positions:.1f} % of the positions and {100 * frames:.1f} % of the encoder frames"
    )
    if stage.skipped:
        yield f"left out of {stage.settings.name}, as they are longer than a budget: {len(stage.skipped):,} examples"


def _stage_lines(
    config: RunConfig, stage: ResolvedStage, data: StageData | None, world_size: int, gpu_memory: float | None
) -> Iterator[str]:
    try:
        batches = largest_batches(config, stage, data)
        model = StageModel(config, stage)
        estimate = model.estimate(batches, world_size=world_size, on_gpu=_on_gpu(gpu_memory))
    except (DataDependentOutputException, DynamicOutputShapeException) as exc:
        yield f"the memory of {stage.name} is not predicted: a component decides by content ({exc.func})"
        return
    except SpeechLMMError as exc:
        if data is not None:
            raise
        yield f"the memory of {stage.name} is not predicted: {str(exc).splitlines()[0]}"
        return
    mode = mode_of(stage.training.parallel, world_size)
    name = "" if mode == "none" else f", {stage.training.parallel if mode != 'ddp' else 'ddp'}"
    number = f"each of {world_size} processes" if world_size > 1 else "one process"
    of = "" if data is not None else " (made-up examples, as the data or the tokenizer cannot be read)"
    yield f"memory of {stage.name} at the peak of a step, {number}{name}{of}"
    yield from table(estimate)
    if gpu_memory is not None:
        yield from _Fit(config, model, batches, world_size, gpu_memory).lines(estimate)


def _on_gpu(gpu_memory: float | None) -> bool | None:
    """Whether a plan is for GPUs, which this machine need not have."""
    return None if gpu_memory is None else True


def largest_batches(config: RunConfig, stage: ResolvedStage, data: StageData | None) -> list[Mapping[str, Any]]:
    """The largest micro-batches of a stage's data, or one that is made up where there are none."""
    if data is None:
        return [synthetic_batch(stage, stand_in_processor(config.model))]
    loader = data.batches(0, rank=0)
    return [loader.load(batch) for batch in worst_batches(data.plan)]


def table(estimate: MemoryEstimate) -> Iterator[str]:
    """A line for each part, and the sum."""
    rows = [(field.name, in_bytes(getattr(estimate, field.name))) for field in fields(estimate) if field.name != "host"]
    rows.append(("total", in_bytes(estimate.total)))
    if estimate.host:
        rows.append(("in the host's memory", in_bytes(estimate.host)))
    width, numbers = max(len(name) for name, _ in rows), max(len(size) for _, size in rows)
    for name, size in rows:
        yield f"  {name.ljust(width)}  {size.rjust(numbers)}"


@dataclass(frozen=True)
class _Fit:
    """Whether a stage fits into a GPU, and what would make it fit."""

    config: RunConfig
    model: StageModel
    batches: list[Mapping[str, Any]]
    world_size: int
    gpu_memory: float

    def lines(self, estimate: MemoryEstimate) -> Iterator[str]:
        limit = USABLE * self.gpu_memory * GIB
        if estimate.total <= limit:
            yield f"  fits into {self.gpu_memory:g} GiB"
            return
        yield f"  does not fit into {self.gpu_memory:g} GiB, of which {100 * USABLE:.0f} % can be used"
        found = [*self.otherwise(estimate, limit), *self.smaller(estimate, limit)]
        least = "train fewer parts (training.freeze_modules, training.lora_adapters), or use more GPUs"
        yield f"  would fit with {'; or '.join(found)}" if found else f"  no such setting makes it fit: {least}"

    def otherwise(self, estimate: MemoryEstimate, limit: float) -> Iterator[str]:
        """Gradient checkpointing, and other ways to share, that make it fit."""
        stage = self.model.stage
        options = {"": (self.model, estimate)}
        if not stage.training.gradient_checkpointing:
            lean = StageModel(self.config, changed(stage, gradient_checkpointing=True))
            option = "training.gradient_checkpointing=true"
            options[option] = (lean, lean.estimate(self.batches, world_size=self.world_size, on_gpu=True))
        for option, (model, own) in options.items():
            if own.total <= limit:
                yield f"{option} ({in_bytes(own.total)})"
                continue
            for parallel in ("zero2", "zero3", "zero3_offload") if self.world_size > 1 else ("zero2_offload",):
                other = shared_otherwise(own, model, parallel, self.world_size)
                if other.total <= limit:
                    yield f"{option} training.parallel={parallel} ({in_bytes(other.total)})".lstrip()
                    break

    def smaller(self, estimate: MemoryEstimate, limit: float) -> Iterator[str]:
        """A smaller budget that makes it fit, by proportion."""
        held, tokens = estimate.total - estimate.activations, self.model.stage.training.token_budget
        if held < limit and isinstance(tokens, int) and estimate.activations:
            yield f"training.token_budget={int(0.95 * tokens * (limit - held) / estimate.activations)} or so"

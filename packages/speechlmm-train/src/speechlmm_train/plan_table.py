"""The tables that `speechlmm-train plan` prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from speechlmm_core.checkpoint.coverage import Coverage
from speechlmm_core.errors import DataError, SpeechLMMError
from speechlmm_core.lora.plain import plain_names
from speechlmm_core.model.describe import ComponentDescription, describe_model
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.config import RunConfig
from speechlmm_train.preflight.units import in_bytes
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.checks import check_stage, freeze_for
from speechlmm_train.trainer.initial_model import initial_coverage, planned_model
from speechlmm_train.trainer.mixture import table
from speechlmm_train.trainer.open_sets import absent
from speechlmm_train.trainer.stage_data import StageData, open_stages

_HEAD = ("COMPONENT", "CLASS", "SOURCE", "PARAMETERS", "TRAINABLE", "DTYPE", "BYTES", "ATTENTION")


def component_table(config: RunConfig) -> Iterator[str]:
    """A line for each component in the first stage, and their sum; on the meta device, so that no weight is loaded.

    Raises:
        ConfigError: The components do not fit together, or a name in `freeze_modules` matches no module.
    """
    stage = config.resolved_stages()[0]
    model = planned_model(config)
    freeze_for(model, stage)
    rows = describe_model(model)
    coverage = initial_coverage(config)
    cells = [
        (
            row.name,
            row.class_name,
            _source(row, coverage),
            f"{row.num_parameters:,}",
            f"{row.num_trainable:,}",
            row.dtype or "-",
            in_bytes(row.num_bytes),
            row.attn_implementation or "-",
        )
        for row in rows
    ]
    parameters, trainable = sum(row.num_parameters for row in rows), sum(row.num_trainable for row in rows)
    total = ("total", "", "", f"{parameters:,}", f"{trainable:,}", "", in_bytes(sum(row.num_bytes for row in rows)), "")
    table = [_HEAD, *cells, total]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEAD))]
    for row in table:
        pairs = zip(row, widths, _HEAD, strict=True)
        yield "  ".join(cell.rjust(w) if head in _NUMBERS else cell.ljust(w) for cell, w, head in pairs).rstrip()


def _source(row: ComponentDescription, coverage: Coverage | None) -> str:
    """Where a component's weights come from: `pretrained_checkpoint` before its own base checkpoint."""
    found = coverage.components.get(row.name) if coverage is not None else None
    if coverage is None or found is None or not found.loaded:
        return row.source
    return f"{coverage.folder}{f' and {row.source}' if found.new else ''}"


def coverage_lines(config: RunConfig) -> Iterator[str]:
    """What `pretrained_checkpoint` has for each component; nothing without one.

    Raises:
        CheckpointError: It is missing or does not fit.
        ConfigError: An adapter is another than the checkpoint's of its name.
    """
    if (coverage := initial_coverage(config)) is not None:
        yield from coverage.lines()
        yield ""


_NUMBERS = ("PARAMETERS", "TRAINABLE", "BYTES")


def stage_lines(config: RunConfig) -> Iterator[str]:
    """A line for each stage: its steps, what is trained, and its batches; each is checked as `run` checks it.

    Raises:
        ConfigError: A stage does not fit the model, or a training argument is wrong.
        MissingDependencyError: Figures are to go where nothing that is installed can take them.
    """
    model = planned_model(config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    fixed = _fixed(model)
    for stage in config.resolved_stages():
        check_stage(model, stage, max_steps=stage.max_steps or 1, world_size=world_size, planned=True)
        yield f"stage {stage.name}: {_steps(config, stage)}, {_trained(stage)} ({_share(model)}), {_size(stage)}"
    if fixed:
        yield f"never trained, as their components fix them: {fixed}"


def processes_of(config: RunConfig) -> int:
    """Processes that will share a run: what it says, else those that this one is of."""
    processes = config.training.num_processes
    return processes if isinstance(processes, int) else int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class PlanData:
    """A run's data as a plan sees them."""

    stages: list[StageData] = field(default_factory=list[StageData])
    """The stages with their data; none where data are missing."""
    note: str | None = None
    """Why there are none."""


def open_plan_data(config: RunConfig, base: Path, *, world_size: int | None = None) -> PlanData:
    """Opens the data of a run, if they are there.

    Args:
        config: The run.
        base: Folder where relative paths start.
        world_size: Processes that will share the training; by default those that this one is of.

    Raises:
        DataError: The data are there, and wrong.
        ConfigError: The sizes of a stage contradict each other, or the model and its data.
    """
    if not any(stage.data.train or stage.data.data_config_path for stage in config.resolved_stages()):
        return PlanData()
    world_size = world_size or int(os.environ.get("WORLD_SIZE", "1"))
    try:
        processor = SpeechLMMProcessor.from_config(config.model)
    except SpeechLMMError as exc:  # a tokenizer that is not downloaded, say
        return PlanData(note=f": {str(exc).splitlines()[0]}")
    try:
        return PlanData(open_stages(config, processor, base=base, world_size=world_size))
    except DataError:
        missing = [path for stage in config.resolved_stages() for path in absent(stage.data, base)]
        if not missing:
            raise
        return PlanData(note=f", as these data are not there: {', '.join(dict.fromkeys(missing))}")


def mixture_lines(config: RunConfig, base: Path, data: PlanData | None = None) -> Iterator[str]:
    """A table for each stage of the datasets and tasks in its first epoch; a line that says why where there is none.

    Data that are not there (yet, or on this machine) leave the rest of a plan as it is; faulty ones do not.

    Args:
        config: The run.
        base: Folder where relative paths start.
        data: Its data, where they are open already.

    Raises:
        DataError: The data are there, and wrong.
        ConfigError: The sizes of a stage contradict each other, or the model and its data.
    """
    data = data or open_plan_data(config, base)
    if data.note is not None:
        yield f"the mixture is not shown{data.note}"
    for stage in data.stages:
        epoch = stage.plan.epoch_steps()
        yield f"data of {stage.settings.name}: {stage.settings.data.mixing} mixing, an epoch takes {epoch:,.1f} steps"
        yield from table(stage.mixture.rows())


def _steps(config: RunConfig, stage: ResolvedStage) -> str:
    return f"{config.training.num_epochs:g} epochs" if stage.max_steps is None else f"{stage.max_steps} steps"


def _trained(stage: ResolvedStage) -> str:
    if stage.trainable_modules is not None:
        return f"trains {', '.join(stage.trainable_modules)}"
    return f"freezes {', '.join(stage.training.freeze_modules) or 'nothing'}"


def _share(model: SpeechLMM) -> str:
    """Trainable parameters of the components that have any."""
    counts = {
        name: sum(parameter.numel() for parameter in component.parameters() if parameter.requires_grad)
        for name, component in model.components().items()
    }
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return f"{sum(counts.values()):,} trainable parameters: {parts}"


def _fixed(model: SpeechLMM) -> str:
    """Parameters that are fixed before anything is frozen, such as the positions of Whisper."""
    plain = plain_names(model)
    found = [
        f"{plain[name]} {parameter.numel():,}"
        for name, parameter in model.named_parameters()
        if plain.get(name) in model.constants
    ]
    return ", ".join([*found[:3], *([f"and {len(found) - 3} more"] if len(found) > 3 else [])])


def _size(stage: ResolvedStage) -> str:
    training = stage.training
    budgets = {
        "tokens": training.token_budget,
        "frames": training.frame_budget,
        "examples": training.per_device_train_batch_size,
    }
    size = ", ".join(
        "as many tokens as fit" if value == "auto" else f"{value} {name}" for name, value in budgets.items() if value
    )
    number = training.micro_batches_per_step
    return f"{number} micro-batch{'' if number == 1 else 'es'} of at most {size} a step"

"""Takes over a checkpoint of the first SpeechLMM: its trained tensors, on the base checkpoints that it names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError, create_model

from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.wiring import refuse_speech_output, wire
from speechlmm_train.compose import compose_plain, import_file
from speechlmm_train.config_errors import explain
from speechlmm_train.import_checkpoint.files import FirstTensors, LowRank, Stored, open_first
from speechlmm_train.import_checkpoint.rules import Rule, Target, place, rules_of
from speechlmm_train.import_checkpoint.sections import (
    INPUTS,
    NoCounterpartError,
    Section,
    components_of,
    model_section,
    read_first_config,
)
from speechlmm_train.import_checkpoint.table import Coverage
from speechlmm_train.replacing import check_apart, replaced

if TYPE_CHECKING:
    from torch import Tensor

    from speechlmm_core.model.speechlmm import SpeechLMM

logger = logging.getLogger(__name__)

MAX_ADDED_TOKENS = 16
"""Tokens that the first one may add to a vocabulary: those around each medium, and one for padding."""


@dataclass
class Plan:
    """What is to be built, and how the tensors are called there."""

    config: ModelConfig
    rules: dict[str, tuple[Rule, ...]]
    without: dict[str, str] = field(default_factory=dict[str, str])
    """Components that are not taken over, and why."""


def plan_import(
    folder: Path, overrides: Sequence[str], *, config_dir: Path | None = None, imports: Sequence[Path] = ()
) -> Plan:
    """Works out the model from the checkpoint's configuration, and from components that are given.

    Raises:
        CheckpointError: It is no checkpoint of the first SpeechLMM, or a component that is needed has no counterpart.
        ConfigError: What is given is wrong, or computes something else than the checkpoint was trained with.
    """
    for path in imports:
        import_file(path)
    first = read_first_config(folder)
    composed = compose_plain("_components", overrides, config_dir=config_dir)
    if others := [key for key, value in composed.items() if key != "model" and value]:
        raise ConfigError(
            f"`import-checkpoint` takes components only, got {', '.join(map(repr, others))}; name them as in "
            "model/text_decoder=llama_3_8b"
        )
    given: Section = {key: value for key, value in (composed.get("model") or {}).items() if value is not None}
    model: Section = dict(given)
    rules: dict[str, tuple[Rule, ...]] = {}
    without: dict[str, str] = {}
    theirs: Section = {}
    for component, section in components_of(first).items():
        try:
            theirs[component] = model_section(component, section, first)
        except NoCounterpartError as exc:
            without[component] = str(exc)
        model.setdefault(component, theirs.get(component))
        if component in given and component.endswith(("_encoder", "_decoder")):
            without.pop(component, None)
        if component not in without and _same_type(given.get(component), theirs.get(component)):
            rules[component] = rules_of(component, section)
    model = {key: value for key, value in model.items() if value is not None}
    _check_complete(model, without)
    config = _typed(model)
    _check_adapters(config, model, {key: theirs[key] for key in given if key in theirs and key in rules})
    refuse_speech_output(config)
    wire(config)
    return Plan(config, rules, without)


def _same_type(given: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> bool:
    return given is None or theirs is None or given.get("type", theirs["type"]) == theirs["type"]


def _check_complete(model: Section, without: dict[str, str]) -> None:
    needed = ["text_decoder", *(f"{name}_{part}" for name in INPUTS for part in ("encoder", "adapter"))]
    faults = [
        f"{name}: {without[name]}; give one as model/{name}=<preset>"
        for name in needed
        if name in without and name not in model
    ]
    if faults:
        raise CheckpointError("\n".join(faults))


def _typed(model: Section) -> ModelConfig:
    root = create_model("Imported", model=(ModelConfig, ...))
    try:
        return root.model_validate({"model": model}).model  # pyright: ignore[reportAttributeAccessIssue]  # just made
    except ValidationError as exc:
        raise ConfigError("\n".join(explain(exc, root, {"model": model}))) from exc


def _check_adapters(config: ModelConfig, model: Section, theirs: Section) -> None:
    """Refuses adapters that are given and compute something else than the checkpoint's."""
    adapters = {key: value for key, value in theirs.items() if key.endswith("_adapter")}
    if not adapters:
        return
    meant = _typed({**model, **adapters})
    faults: list[str] = []
    for name, options in adapters.items():
        key = name.removesuffix("_adapter")
        ours = config.inputs[key].adapter.model_dump(mode="json")
        there = meant.inputs[key].adapter.model_dump(mode="json")
        for option in options:
            if ours[option] != there[option]:
                faults.append(
                    f"model.{name}.{option}: got {ours[option]!r}, but the checkpoint was trained with "
                    f"{there[option]!r}; leave model/{name} out to take the checkpoint's"
                )
    if faults:
        raise ConfigError("\n".join(faults))


def load_first(model: SpeechLMM, tensors: FirstTensors, rules: Mapping[str, tuple[Rule, ...]]) -> Coverage:
    """Copies the tensors into a model that has its base weights, and says what became of each.

    Args:
        model: The model.
        tensors: The checkpoint's.
        rules: How they are called here, by component.
    """
    from speechlmm_core.checkpoint.save import component_of, tied_aliases

    aliases = tied_aliases(model)
    own: dict[str, Tensor] = {k: v for k, v in model.state_dict(keep_vars=True).items() if k not in aliases}
    coverage = Coverage()
    later: list[tuple[Stored | LowRank, Target]] = []
    for one in tensors.stored:
        target = place(one.name, rules)
        if target is not None and target.how == "leave_out":
            coverage.constants.append(one.name)
            continue
        if target is None or (name := aliases.get(target.name, target.name)) not in own:
            coverage.unexpected.append(one.name)
            continue
        if target.how == "add":
            later.append((one, Target(name, "add")))
            continue
        _copy(own[name], one, Target(name, target.how), coverage)
    for low_rank in tensors.low_rank:
        target = place(low_rank.name, rules)
        name = aliases.get(target.name, target.name) if target else None
        if name is None or name not in own:
            coverage.unexpected.append(f"{low_rank.name} ({low_rank.adapter})")
            continue
        later.append((low_rank, Target(name, "add")))
    for addition, target in later:  # onto what has been copied, or onto base weights
        _add(own[target.name], addition, target, coverage)
    coverage.finish(
        {name: value.numel() for name, value in own.items()},
        component=lambda name: component_of(model, name),
        based=set(model.base_sources),
    )
    return coverage


def _copy(target: Tensor, one: Stored, where: Target, coverage: Coverage) -> None:
    import torch

    shape = one.shape[1:] if where.how == "squeeze" and one.shape[:1] == (1,) else one.shape
    rows = target.shape[0] if target.ndim else 0
    if where.how == "rows" and shape[1:] == tuple(target.shape[1:]) and 0 < shape[0] - rows <= MAX_ADDED_TOKENS:
        coverage.rows[where.name] = shape[0] - rows
        shape = tuple(target.shape)
    if shape != tuple(target.shape):
        coverage.wrong.append(f"{one.name} (got {one.shape}, expected {tuple(target.shape)})")
        return
    tensor = one.read()
    with torch.no_grad():
        target.copy_(tensor[:rows] if where.name in coverage.rows else tensor.reshape(target.shape))
    coverage.loaded.append(where.name)


def _add(target: Tensor, one: Stored | LowRank, where: Target, coverage: Coverage) -> None:
    import torch

    if one.shape != tuple(target.shape):
        coverage.wrong.append(f"{one.name} (got {one.shape}, expected {tuple(target.shape)})")
        return
    with torch.no_grad():
        target.copy_(target.float() + one.read().float())
    coverage.added.append(where.name)


def import_checkpoint(
    folder: Path,
    output: Path,
    plan: Plan,
    *,
    allow_partial: bool = False,
    save: Literal["full", "trainable"] = "full",
    dtype: str = "auto",
    show: Callable[[str], object] = lambda line: None,
) -> Coverage:
    """Writes a checkpoint of this SpeechLMM with the weights of one of the first.

    Args:
        folder: The first one's checkpoint.
        output: Where to; it appears whole or not at all, and keeps what else lies there.
        plan: What `plan_import` found.
        allow_partial: Whether tensors may be left out, and components at random.
        save: Whether every weight is written, or those that were taken over and references to the base checkpoints.
        dtype: Type of the weights; `auto` for the first one's.
        show: Is told the lines of the coverage table.

    Raises:
        CheckpointError: Something has no place here, is left at random or is of another shape.
        ConfigError: The output is the checkpoint or a base of it, holds one or lies in one.
    """
    import torch

    from speechlmm_core.checkpoint.save import save_model
    from speechlmm_core.model.speechlmm import SpeechLMM
    from speechlmm_core.processor.processor import SpeechLMMProcessor

    check_apart(output, [folder, *_named_folders(plan.config.model_dump(mode="json"))])
    name = str(read_first_config(folder).get("torch_dtype") or "float32") if dtype == "auto" else dtype
    chosen = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(chosen, torch.dtype):
        raise CheckpointError(f"unknown torch_dtype {name!r} in config.json; choose one with --dtype")
    with open_first(folder) as tensors:
        processor = SpeechLMMProcessor.from_config(plan.config)
        model = SpeechLMM.from_model_config(plan.config, dtype=chosen)
        coverage = load_first(model, tensors, plan.rules)
    for line in coverage.lines(plan.without):
        show(line)
    if faults := coverage.faults(allow_partial=allow_partial):
        hint = "" if allow_partial else "; --allow-partial takes over the rest"
        raise CheckpointError(f"{str(folder)!r} cannot be taken over as a whole: {'; '.join(faults)}{hint}")
    # What was taken over was trained, whatever is frozen from now on.
    model.requires_grad_(False)
    model.ever_trainable = {*coverage.loaded, *coverage.added}
    with replaced(output) as temporary:
        save_model(model, processor, temporary, save=save)
    return coverage


def _named_folders(config: Any) -> Iterator[str]:
    """What the configuration takes weights and tokenizers from."""
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key in ("pretrained", "tokenizer") and isinstance(value, str):
            yield value
        else:
            yield from _named_folders(value)

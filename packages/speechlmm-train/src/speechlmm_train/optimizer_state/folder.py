"""The folder `optimizer/` of a checkpoint: an optimiser's state, the schedule and the loss scale.

``{state.json, state.safetensors}``, or several numbered files with an index; a tensor's key is ``<parameter>/<key>``
(``text_decoder.model.lm_head.weight/exp_avg``). Nothing says how many processes wrote it, or how the model was spread:
what one process, DDP, FSDP2 or a stage of ZeRO wrote, any of the others reads. Nothing in it is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from speechlmm_core.checkpoint.shards import ShardWriter, stream
from speechlmm_core.errors import CheckpointError
from speechlmm_train.optimizer_state.kinds import FOLDER, FORMAT, STATE, STEM, check_kind, read_state
from speechlmm_train.optimizer_state.loss_scale import take_up_scale
from speechlmm_train.optimizer_state.named import PlainStates, States
from speechlmm_train.optimizer_state.zero import ZeroStates, find_zero
from speechlmm_train.parallel.gather import gather

SEPARATOR = "/"


def states_of(optimizer: Any, model: nn.Module) -> States:
    """An optimiser's state by the names of a model's parameters, whatever they are wrapped in.

    Args:
        optimizer: The optimiser, or what accelerate or DeepSpeed made of it.
        model: The model, without wrappers.

    Raises:
        CheckpointError: It trains tensors that are no parameters of the model.
    """
    zero = find_zero(optimizer)
    if zero is not None:
        return ZeroStates(zero, model)
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return PlainStates(optimizer, model)


def write_optimizer(
    folder: Path | None, states: States, *, scheduler: Any = None, scaler: Mapping[str, Any] | None = None
) -> Exception | None:
    """Writes an optimiser's state, one gathered tensor at a time.

    Args:
        folder: The checkpoint; None in a process that only takes part in gathering.
        states: The state.
        scheduler: The learning rate's schedule.
        scaler: The state of the loss scale of fp16.

    Returns:
        What went wrong, for the caller to raise when all processes have come so far.

    Raises:
        OutOfStepError: A tensor cannot be gathered.
    """
    tensors = ((f"{name}{SEPARATOR}{key}", tensor) for name, key, tensor in states.tensors())
    if folder is None:
        return stream(tensors, None, gather)
    target = folder / FOLDER
    try:
        target.mkdir()
        content = {
            "format": FORMAT,
            "optimizer": states.kind,
            "groups": [_plain(group) for group in states.groups()],
            "numbers": states.scalars(),
            "scheduler": _plain(_inner(scheduler).state_dict()) if scheduler is not None else None,
            "scaler": _plain(dict(scaler)) if scaler else None,
            "torch": torch.__version__,
        }
        (target / STATE).write_text(json.dumps(content) + "\n", encoding="utf-8")
        writer = ShardWriter(target, STEM)
    except Exception as exc:  # whatever it is, the other processes wait for this one's part
        stream(tensors, None, gather)
        return exc
    return stream(tensors, writer, gather)


def read_optimizer(folder: Path, states: States, *, scheduler: Any = None, scaler: Any = None) -> list[str]:
    """Takes over an optimiser's state, the schedule's place and the loss scale; each process reads what it needs.

    Settings of the configuration (learning rates, decays, betas) hold where they were changed.

    Args:
        folder: The checkpoint.
        states: The state.
        scheduler: The learning rate's schedule.
        scaler: The loss scale of fp16, torch's or DeepSpeed's.

    Returns:
        The settings that were changed, in words.

    Raises:
        CheckpointError: The files are damaged, or are another optimiser's.
    """
    source = folder / FOLDER
    content = read_state(folder)
    try:
        files = _Files(source)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{str(source)!r} cannot be read: {exc}") from exc
    check_kind(folder, content["optimizer"], states.kind)
    states.load(files.held, files.read, content["numbers"])
    changed = _take_settings(states, content["groups"], scheduler)
    if scheduler is not None and content["scheduler"] is not None:
        inner = _inner(scheduler)
        # Rates are the configuration's; of the schedule, only its place is taken over.
        own = {"base_lrs": inner.base_lrs} if hasattr(inner, "base_lrs") else {}
        inner.load_state_dict({**inner.state_dict(), **content["scheduler"], **own})
    if scaler is not None and content["scaler"] is not None:
        take_up_scale(scaler, content["scaler"])
    return changed


class _Files:
    """Reads tensors by parameter and key."""

    def __init__(self, folder: Path) -> None:
        self.held: dict[str, list[str]] = {}
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob(f"{STEM}*.safetensors")):
            file = safe_open(path, framework="pt")
            keys: list[str] = list(file.keys())
            for key in keys:
                name, _, part = key.rpartition(SEPARATOR)
                self.held.setdefault(name, []).append(part)
                self._files[key] = file

    def read(self, name: str, key: str) -> Tensor:
        """A tensor of its own: what the file gives may be the file itself."""
        full = f"{name}{SEPARATOR}{key}"
        return self._files[full].get_tensor(full).clone()


def _take_settings(states: States, before: list[dict[str, Any]], scheduler: Any) -> list[str]:
    """Takes over where the groups' settings stand; those of the configuration hold where they differ."""
    old = {name: group for group in before for name in group["params"]}
    changed: dict[str, None] = {}
    for group, target in zip(states.groups(), states.settings, strict=True):
        former = next((old[name] for name in group["params"] if name in old), None)
        if former is None:
            continue
        factor = 1.0
        for key, value in former.items():
            now = _plain(group.get(key))
            if key in ("params", "lr") or now == value or (key == "initial_lr" and now is None):
                continue
            if key == "initial_lr":
                factor = group[key] / value if value else 1.0
            elif key not in states.defaults:
                target[key] = value  # where the optimiser stands, such as its count of steps
                continue
            changed[f"{_TOLD.get(key, key)} {_word(value)} → {_word(now)}"] = None
        rate = former["lr"] * factor if scheduler is not None else group["lr"]
        if isinstance(target["lr"], Tensor):
            target["lr"].fill_(rate)
        else:
            target["lr"] = rate
    return list(changed)


_TOLD = {"initial_lr": "learning rate", "weight_decay": "weight decay"}


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _inner(scheduler: Any) -> Any:
    """A schedule without accelerate's wrapper."""
    while hasattr(scheduler, "scheduler"):
        scheduler = scheduler.scheduler
    return scheduler


def _plain(value: Any) -> Any:
    """A value as JSON has it: tuples as lists, tensors of one number as that number."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)

# pyright: strict
"""Which optimisers' states can be part of checkpoints that any way to spread a training reads. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_train.parallel_names import Mode

FOLDER, STATE, STEM = "optimizer", "state.json", "state"
FORMAT = 1
DEFAULT = "adamw_torch"
"""Stands for what `TrainingArguments` takes where `optim` is not given; its class is the same."""

_UNSAVED = ("galore", "apollo", "lomo", "adalomo")
"""Keep objects beside tensors, or tensors of their own outside the state."""
_OTHER_SHAPES = ("adafactor", "8bit", "4bit", "paged", "ademamix", "grokadamw")
"""Keep tensors of other shapes than the parameters', or quantised ones."""
_CLASSES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_torch_xla"), "AdamW"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"), "AdamW"),
    "adamw_torch_npu_fused": "NpuFusedAdamW",
    "adafactor": "Adafactor",
    "adamw_anyprecision": "AnyPrecisionAdamW",
    "adamw_torch_4bit": "AdamW4bit",
    "adamw_torch_8bit": "AdamW8bit",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    **dict.fromkeys(("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"), "AdEMAMix"),
    **dict.fromkeys(("lion_8bit", "lion_32bit", "paged_lion_32bit", "paged_lion_8bit"), "Lion"),
    **dict.fromkeys(("rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"), "RMSprop"),
    "grokadamw": "GrokAdamW",
    "schedule_free_radam": "RAdamScheduleFree",
    "schedule_free_adamw": "AdamWScheduleFree",
    "schedule_free_sgd": "SGDScheduleFree",
    "stable_adamw": "StableAdamW",
}
"""The classes of transformers' optimisers that can be saved, by the names in `TrainingArguments`."""


def check_optimizer(optim: str, mode: Mode, *, saves: bool) -> None:
    """Checks that an optimiser's state can be saved and taken up again.

    Args:
        optim: The name in `TrainingArguments`.
        mode: How the model is spread.
        saves: Whether checkpoints are written.

    Raises:
        ConfigError: It cannot.
    """
    if not saves:
        return
    advice = "choose another, such as adamw_torch, or write no checkpoints (training.save_steps: null)"
    if any(part in optim for part in _UNSAVED):
        raise ConfigError(
            f"training.optim {optim!r} keeps what cannot be saved, so that no run could go on from its checkpoints; "
            f"{advice}"
        )
    if mode in ("zero", "fsdp2") and any(part in optim for part in _OTHER_SHAPES):
        raise ConfigError(
            f"training.optim {optim!r} keeps states of other shapes than the parameters', which cannot be saved whole "
            f"where they are spread over processes; use it with ddp, or {advice}"
        )


def class_of(optim: str) -> str | None:
    """Name of an optimiser's class; None where that is not known.

    Args:
        optim: The name in `TrainingArguments`.
    """
    return _CLASSES.get(optim)


def is_known(kind: str) -> bool:
    """Whether a class is one that `training.optim` chooses, and no other that stands in for it."""
    return kind in _CLASSES.values()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its optimiser, but for the tensors.

    Raises:
        CheckpointError: The file is damaged, or of another version.
    """
    source = checkpoint / FOLDER
    try:
        content: dict[str, Any] = json.loads((source / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{str(source)!r} cannot be read: {exc}") from exc
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{str(source)!r} has the format {content.get('format')!r}; expected {FORMAT}")
    return content


def check_kind(checkpoint: Path, held: str, kind: str) -> None:
    """Checks that a checkpoint holds the state of the optimiser that goes on.

    Args:
        checkpoint: The checkpoint.
        held: The class whose state it holds.
        kind: The class that goes on.

    Raises:
        CheckpointError: It is another's.
    """
    if held != kind:
        raise CheckpointError(
            f"{str(checkpoint / FOLDER)!r} holds the state of {held}, and this run trains with {kind}; go on with the "
            "same training.optim, or start from the weights with training.pretrained_checkpoint"
        )


def check_spread(checkpoint: Path, optim: str, mode: Mode) -> None:
    """Checks that an optimiser's state that one process or DDP has saved can be spread.

    Raises:
        CheckpointError: It cannot.
    """
    if mode == "zero" and any(part in optim for part in _OTHER_SHAPES):
        raise CheckpointError(
            f"{str(checkpoint / FOLDER)!r} holds states of other shapes than the parameters' ({optim}), which ZeRO "
            "cannot spread; go on with ddp or one process"
        )

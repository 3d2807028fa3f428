"""What a run is called, and the folder that it writes to where the user names none.

A run is called `{type}-{modality}-{modules}-{setting}`, and its folder
`$CHECKPOINTS_HOME/{wandb_project}/{speechlmm|lora-speechlmm}-{run}`; without the variable, `runs/` takes its place.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechlmm_train.composing.tree import SETTING
from speechlmm_train.training_config import TrainingConfig

HOME = "CHECKPOINTS_HOME"
WITHOUT_HOME = "runs"
PROJECT: str = TrainingConfig.model_fields["wandb_project"].default
_LONGEST = 120
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.=-]+")


@dataclass(frozen=True)
class RunName:
    """What a run is called."""

    kind: str
    """`pretrain` or `finetune`."""
    rest: str
    """What follows that: modalities, modules, setting."""
    suffix: str = ""
    """What tells it from the other runs of a sweep."""
    lora: bool = False
    own: str | None = None
    """What the user calls it, in place of all this."""

    def __str__(self) -> str:
        return f"{self.own or f'{self.kind}-{self.rest}'}{self.suffix}"

    @property
    def folder(self) -> str:
        """The last part of the output folder."""
        return str(self) if self.own else f"{'lora-' if self.lora else ''}speechlmm-{self}"


def run_name(
    plain: Mapping[str, Any], choices: Mapping[str, str], *, finetune: bool, varied: Sequence[str] = (), number: int = 0
) -> RunName:
    """What a composed run is called.

    Args:
        plain: Its configuration.
        choices: The presets that it was composed from.
        finetune: Whether it starts from a trained model.
        varied: In a sweep, the overrides that are not the same for all of its runs.
        number: In a sweep, the run's number, which is put behind the user's own names.
    """
    model, training = plain.get("model") or {}, plain.get("training") or {}
    modalities = [key.removesuffix("_encoder") for key in model if key.endswith("_encoder") and model[key]]
    parts = [*(f"{name}_{part}" for name in modalities for part in ("encoder", "adapter")), "text_decoder"]
    modules = [name for part in parts if (name := _module(part, model, choices))]
    setting = choices.get(SETTING)
    rest = ["_".join(modalities) or "text", *modules, *([setting.replace("/", ".")] if setting else [])]
    own = training.get("run_name")
    return RunName(
        kind="finetune" if finetune else "pretrain",
        rest="-".join(rest),
        suffix=(f"-{number}" if own else _told_apart(varied)) if varied else "",
        lora=bool(training.get("lora_adapters")),
        own=own if isinstance(own, str) else None,
    )


def _module(part: str, model: Mapping[str, Any], choices: Mapping[str, str]) -> str | None:
    component = model.get(part)
    if not component:
        return None
    named = choices.get(f"model/{part}") or (component.get("type") if isinstance(component, Mapping) else None)
    return str(named or part).replace("/", ".")


def _told_apart(varied: Sequence[str]) -> str:
    """The varied values that the name does not hold already; cut off where they are very long."""
    told: list[str] = []
    for text in varied:
        key, _, value = text.lstrip("+~").partition("=")
        if key != SETTING and not key.startswith("model/"):
            told.append(_NOT_IN_NAMES.sub("_", f"{key.rpartition('.')[2]}={value}").strip("_"))
    suffix = "".join(f"-{one}" for one in told)
    if len(suffix) <= _LONGEST:
        return suffix
    # File systems take names of 255 bytes; the hash keeps runs apart that differ in what is cut off.
    digest = hashlib.sha256("\0".join(varied).encode()).hexdigest()[:8]
    return f"{suffix[: _LONGEST - 9]}-{digest}"


def output_dir(name: RunName, project: str | None) -> str:
    """The folder of a run for which the user names none."""
    home = os.environ.get(HOME) or WITHOUT_HOME
    return str(Path(home, project or PROJECT, name.folder))


def numbered(folder: str, number: int) -> str:
    """A folder that the user names, for one run of a sweep."""
    return f"{folder.rstrip('/')}-{number}"

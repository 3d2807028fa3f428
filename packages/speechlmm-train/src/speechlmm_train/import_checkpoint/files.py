"""The tensors of a checkpoint of the first SpeechLMM by their plain names, read when they are asked for.

What was trained lies in `model.safetensors` (or its shards). A training with LoRA left a folder of PEFT's for each
adapter instead, and one more (`other_modules`) whose `modules_to_save` are what was trained beside them.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.checkpoint.save import INDEX, WEIGHTS
from speechlmm_core.checkpoint.torch_file import unreadable
from speechlmm_core.checkpoint.weights import read_shards
from speechlmm_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNMERGEABLE = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "lora_bias")
"""Options of PEFT with which an adapter is more than the product of its two matrices, times one scale."""

_PREFIX = re.compile(r"^(?:module\.)?(?:base_model\.model\.)?")
_SAVED_COPY = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.)")
_CHECKPOINT = re.compile(r"checkpoint-\d+")
"""Folders within a run's: each is a checkpoint of its own."""
_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")


@dataclass(frozen=True)
class Stored:
    """A tensor of the checkpoint."""

    key: str
    """Its name in the file."""
    name: str
    """Its name without what PEFT puts around it."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one matrix."""

    adapter: str
    name: str
    """The matrix's plain name."""
    down: Stored
    up: Stored
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return (self.up.shape[0], self.down.shape[1])

    def read(self) -> Tensor:
        """What is to be added, in fp32."""
        return (self.up.read().float() @ self.down.read().float()) * self.scale


@dataclass
class FirstTensors:
    """All tensors of a checkpoint."""

    stored: list[Stored] = field(default_factory=list[Stored])
    low_rank: list[LowRank] = field(default_factory=list[LowRank])


def plain_name(key: str) -> str:
    """A tensor's name without the wrappers of PEFT and DDP."""
    name = _SAVED_COPY.sub("", _PREFIX.sub("", key))
    return name.replace(".base_layer.", ".")


@contextmanager
def open_first(folder: Path) -> Iterator[FirstTensors]:
    """Opens a checkpoint's files.

    Raises:
        CheckpointError: There are none, one is damaged or no safetensors file, an adapter cannot be merged, or adds
            to one matrix twice.
    """
    adapters = _adapter_folders(folder)
    files = _weight_files(folder)
    if not files and not adapters:
        raise CheckpointError(
            f"{str(folder)!r} holds no weights; expected {WEIGHTS}, its shards with {INDEX}, or folders of LoRA "
            f"adapters ({ADAPTER_CONFIG} with {ADAPTER_WEIGHTS})"
        )
    found = FirstTensors()
    with ExitStack() as stack:
        for file in files:
            found.stored += _open(file, stack)
        for adapter in adapters:
            _add_adapter(found, adapter, stack)
        _refuse_twice(found)
        yield found


def _adapter_folders(folder: Path) -> list[Path]:
    """The checkpoint's own adapters: PEFT leaves the one named `default` in the folder, and others beside it."""
    inner = sorted(one for one in folder.iterdir() if one.is_dir() and not _is_checkpoint(one))
    found = [one for one in (folder, *inner) if (one / ADAPTER_CONFIG).is_file()]
    deeper = [file.parent for one in inner for file in sorted(one.glob(f"*/**/{ADAPTER_CONFIG}"))]
    if deeper:
        logger.warning("adapters in %s are not this checkpoint's, and left out", ", ".join(map(str, deeper)))
    return found


def _is_checkpoint(folder: Path) -> bool:
    return _CHECKPOINT.fullmatch(folder.name) is not None or (folder / "config.json").is_file()


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        names = read_shards(folder / INDEX)
    else:
        names = [WEIGHTS] if (folder / WEIGHTS).is_file() else []
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"the checkpoint {str(folder)!r} is incomplete: {name} is missing")
    return [folder / name for name in names]


def _open(file: Path, stack: ExitStack) -> list[Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        handle: Any = stack.enter_context(safe_open(file, framework="pt"))
        keys = list(handle.keys())
    except (SafetensorError, OSError) as exc:
        raise unreadable(file, f"it is no safetensors file, or cut off ({' '.join(str(exc).split())})") from exc
    # PEFT keeps the module that a trained copy stands for beside it: it is the base checkpoint's.
    return [
        Stored(key, plain_name(key), tuple(handle.get_slice(key).get_shape()), lambda key=key: handle.get_tensor(key))
        for key in keys
        if ".original_module." not in key
    ]


def _add_adapter(found: FirstTensors, folder: Path, stack: ExitStack) -> None:
    """Adds an adapter's matrices, and the modules that were trained whole."""
    options = _read_options(folder / ADAPTER_CONFIG)
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"the adapter {str(folder)!r} is incomplete: {ADAPTER_WEIGHTS} is missing")
    halves: dict[str, dict[str, Stored]] = {}
    for one in _open(file, stack):
        match = _LORA.fullmatch(one.name)
        if match is None:
            found.stored.append(one)
        else:
            pair = halves.setdefault(f"{match[1]}.weight", {})
            if match[2] in pair:
                raise _twice(folder.name, f"{match[1]}.weight")
            pair[match[2]] = one
    if halves and (wrong := [key for key in UNMERGEABLE if options.get(key)]):
        raise CheckpointError(
            f"the adapter {str(folder)!r} cannot be merged: its {ADAPTER_CONFIG} sets {', '.join(wrong)}"
        )
    for name, pair in halves.items():
        if len(pair) != 2:
            raise CheckpointError(f"the adapter {str(folder)!r} holds one half of {name!r} only; the file is damaged")
        rank, alpha = pair["A"].shape[0], float(options.get("lora_alpha", 8))
        scale = alpha / math.sqrt(rank) if options.get("use_rslora") else alpha / rank
        found.low_rank.append(LowRank(folder.name, name, pair["A"], pair["B"], scale))


def _read_options(file: Path) -> dict[str, Any]:
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"cannot read {str(file)!r}: {exc}") from exc
    if not isinstance(options, dict) or options.get("peft_type", "LORA") != "LORA":
        got = options.get("peft_type") if isinstance(options, dict) else type(options).__name__
        raise CheckpointError(f"{str(file)!r} is of no LoRA adapter: got peft_type {got!r}")
    return options


def _refuse_twice(found: FirstTensors) -> None:
    seen: dict[str, str] = {}
    for one in found.stored:
        if one.name in seen:
            raise CheckpointError(f"{seen[one.name]!r} and {one.key!r} are the same tensor, {one.name!r}")
        seen[one.name] = one.key
    added: set[tuple[str, str]] = set()
    for one in found.low_rank:
        if (key := (one.adapter, one.name)) in added:
            raise _twice(*key)
        added.add(key)


def _twice(adapter: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"the adapter {adapter!r} is there twice for {name!r}; leave one of the two, or they would both be added"
    )

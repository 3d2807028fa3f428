"""Loads a base checkpoint's weights into a module that is already built, or says exactly what does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechlmm_core.checkpoint.source import fetch_pretrained
from speechlmm_core.errors import CheckpointError

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")

# Written by early versions of transformers, and recomputed by all.
_RECOMPUTED = re.compile(r"(.*\.)?rotary_emb\.inv_freq$|(.*\.)?(attn|attention)\.(masked_)?bias$")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, safetensors before pickles.

    Raises:
        CheckpointError: There are none, or some of them are missing.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        single, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError) as exc:
                raise CheckpointError(f"cannot read the index {str(index)!r}: {exc!r}") from exc
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise CheckpointError(f"{str(folder)!r} lacks {', '.join(missing)}, which its index names")
            return [folder / name for name in names]
    raise CheckpointError(f"{str(folder)!r} holds no weights (model.safetensors or pytorch_model.bin)")


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one file, one at a time where the format allows it.

    Raises:
        CheckpointError: The file is truncated or no file of weights.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    yield key, file.get_tensor(key)
        else:
            yield from torch.load(path, map_location="cpu", weights_only=True).items()
    except Exception as exc:  # safetensors and torch raise errors of their own
        raise CheckpointError(f"cannot read the weights in {str(path)!r}: {exc}") from exc


def load_strictly(model: Any, name: str) -> None:
    """Loads a transformers checkpoint into a transformers model of the same architecture.

    Weights that the model ties need to be in the checkpoint only once. Every fault is found before any is reported.

    Args:
        model: A `PreTrainedModel` on a real device.
        name: Folder, name below `$PRETRAINED_COMPONENTS`, or hub name.

    Raises:
        CheckpointError: Tensors are missing, left over, or have another shape.
    """
    folder = fetch_pretrained(name, WEIGHT_FILES)
    assert isinstance(model, nn.Module)
    own = model.state_dict(keep_vars=True)
    tied: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    prefix = f"{model.base_model_prefix}."  # a base model was saved without the head, so without this prefix
    ignored = [re.compile(rule) for rule in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    faults: list[str] = []
    seen: dict[str, Tensor | None] = {}
    with torch.no_grad():
        for path in weight_files(folder):
            for stored, tensor in read_tensors(path):
                key = stored if stored in own or prefix + stored not in own else prefix + stored
                if key not in own:
                    if not (_RECOMPUTED.match(key) or any(rule.search(key) for rule in ignored)):
                        faults.append(f"{stored} is not in the model")
                elif tuple(tensor.shape) != tuple(own[key].shape):
                    faults.append(f"{stored} has the shape {tuple(tensor.shape)}, expected {tuple(own[key].shape)}")
                    seen[key] = None
                else:
                    other = next((k for k in seen if own[k] is own[key]), None)
                    if other is not None and not torch.equal(own[key], tensor.to(own[key])):
                        faults.append(f"{stored} differs from {other}, to which the model ties it")
                    own[key].copy_(tensor)
                    seen[key] = None
    aliases = {id(own[key]) for key in seen}
    faults += [
        f"{key} is missing from the checkpoint"
        for key, value in own.items()
        if key not in seen and id(value) not in aliases and key not in tied
    ]
    if faults:
        shown = "; ".join(faults[:10]) + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")
        raise CheckpointError(f"the checkpoint {str(folder)!r} does not fit the model {type(model).__name__}: {shown}")

"""Saving checkpoints: weights as safetensors, the configuration, the processor; atomically."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from speechlmm_core.checkpoint.provenance import component_versions

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM
    from speechlmm_core.processor.processor import SpeechLMMProcessor

Save = Literal["full", "trainable"]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def save_model(model: SpeechLMM, processor: SpeechLMMProcessor, folder: str | Path, *, save: Save = "full") -> None:
    """Saves a model with its processor.

    Args:
        model: The model.
        processor: Its processor.
        folder: Where to; what stands there is replaced only once everything new is safely on the disk.
        save: `full` for every tensor; `trainable` for what was trained and references to frozen bases.

    Raises:
        OSError: The disk is full or read-only; an older checkpoint in the folder stays valid.
    """
    with staged(Path(folder)) as temporary:
        write_weights(model, temporary, save=save)
        processor.save_pretrained(temporary)


def save_weights(model: SpeechLMM, folder: Path, *, save: Save = "full") -> None:
    """Saves weights and `config.json` only."""
    with staged(folder) as temporary:
        write_weights(model, temporary, save=save)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder whose files move into ``folder`` when all of them are written and synced.

    `config.json` moves last: a folder without it is no checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".saving-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        yield temporary
        readable = temporary.stat().st_mode & 0o666  # what the umask leaves
        files = sorted((f for f in temporary.rglob("*") if f.is_file()), key=lambda f: f.name == "config.json")
        for file in files:
            file.chmod(readable)  # safetensors makes its files private, and a checkpoint is often shared
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        written = {str(file.relative_to(temporary)) for file in files}
        stale = [f for f in folder.glob("model*.safetensors*") if f.name not in written]
        for file in files:
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        if WEIGHTS in written or INDEX in written:
            for file in stale:
                file.unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_weights(model: SpeechLMM, folder: Path, *, save: Save) -> None:
    """Writes the weights and `config.json` into an empty folder."""
    state = dict(kept_tensors(model, save))
    split = split_torch_state_dict_into_shards(
        state, max_shard_size="5GB", filename_pattern="model{suffix}.safetensors"
    )
    for name, keys in split.filename_to_tensors.items():
        shard = {key: state[key].detach().to("cpu").contiguous() for key in keys}
        save_file(shard, folder / name, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    config = model.config
    config.versions = component_versions(model.model_config)
    config.saved = save
    config.bases = dict(model.base_sources) if save == "trainable" else None
    config.tensors = sorted(state) if save == "trainable" else None
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.to_json_file(folder / "config.json", use_diff=False)
    model.generation_config.save_pretrained(folder)


def kept_tensors(model: SpeechLMM, save: Save) -> list[tuple[str, Tensor]]:
    """The tensors that a checkpoint holds; tied ones once, under their first name."""
    aliases = tied_aliases(model)
    state = {key: value for key, value in model.state_dict().items() if key not in aliases}
    if save == "full":
        return list(state.items())
    trained = model.ever_trainable | {name for name, p in model.named_parameters() if p.requires_grad}
    trained_components = {component_of(model, key) for key in trained}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    def in_base(key: str) -> bool:
        component = component_of(model, key)
        if component not in model.base_sources or key in trained:
            return False
        # Buffers of a component that was trained in part may have moved with it (batch norm).
        return key in parameters or component not in trained_components

    return [(key, value) for key, value in state.items() if not in_base(key)]


def tied_aliases(model: torch.nn.Module) -> dict[str, str]:
    """Parameters that share their storage with an earlier one: alias → first name."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return aliases


def component_of(model: SpeechLMM, key: str) -> str:
    """The component that a state-dict key belongs to."""
    parts = key.split(".")
    return ".".join(parts[:2]) if parts[0] == "objectives" else parts[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object."""
    return json.loads(path.read_text(encoding="utf-8"))

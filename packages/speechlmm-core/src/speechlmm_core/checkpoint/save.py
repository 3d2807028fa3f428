"""Saving checkpoints: weights as safetensors, the configuration, the processor; atomically."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor
from torch.nn import Module, Parameter

from speechlmm_core.checkpoint.atomic import UNFINISHED, atomic_folder, sweep, sync, sync_all
from speechlmm_core.checkpoint.provenance import component_versions
from speechlmm_core.checkpoint.shards import MAX_SHARD_SIZE, Gather, ShardWriter, as_it_is, stream
from speechlmm_core.errors import CheckpointError
from speechlmm_core.lora.folder import ADAPTERS, STEM, adapter_tensors, write_adapter_config
from speechlmm_core.lora.plain import plain_names, plain_state

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM
    from speechlmm_core.processor.processor import SpeechLMMProcessor

Save = Literal["full", "trainable"]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def save_model(
    model: SpeechLMM,
    processor: SpeechLMMProcessor,
    folder: str | Path | None,
    *,
    save: Save = "full",
    gather: Gather = as_it_is,
) -> None:
    """Saves a model with its processor.

    A model that is spread over processes is saved by all of them together: one gives the folder, the others None.

    Args:
        model: The model.
        processor: Its processor.
        folder: Where to; what stands there is replaced only once everything new is safely on the disk. None in a
            process that only takes part in gathering.
        save: `full` for every tensor; `trainable` for what was trained and references to frozen bases.
        gather: Makes a whole tensor of the part that this process has.

    Raises:
        OSError: The disk is full or read-only; an older checkpoint in the folder stays valid.
    """
    if folder is None:
        raise_if(write_weights(model, None, save=save, gather=gather))
        return
    taken_part = False
    try:
        with staged(Path(folder)) as temporary:
            taken_part = True
            raise_if(write_weights(model, temporary, save=save, gather=gather))
            processor.save_pretrained(temporary)
    except OSError:
        if not taken_part:  # the others would wait for this one
            write_weights(model, None, save=save, gather=gather)
        raise


def save_weights(
    model: SpeechLMM, folder: Path, *, save: Save = "full", max_shard_size: int | str = MAX_SHARD_SIZE
) -> None:
    """Saves weights and `config.json` only."""
    with staged(folder) as temporary:
        raise_if(write_weights(model, temporary, save=save, max_shard_size=max_shard_size))


def raise_if(fault: Exception | None) -> None:
    """Raises what went wrong."""
    if fault is not None:
        raise fault


@contextmanager
def staged(folder: Path, *, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of ``folder`` when everything in it is written and synced.

    Files of the old folder that are no weights and are not written anew stay. Until the one rename at the end nothing
    in it changes, so that it is either the old checkpoint or the new one.

    Args:
        folder: The folder.
        stale: Patterns of names in it that do not stay either.
    """
    target = folder.resolve()  # a link stays a link
    shutil.rmtree(target / UNFINISHED, ignore_errors=True)  # of a save that was killed
    if target.is_dir() and not any(target.iterdir()):
        # Nothing to protect; the folder may be one that cannot be replaced (a mount), or another's temporary one.
        with _filled(target) as temporary:
            yield temporary
            _make_readable(temporary)
        return
    sweep(target)
    with atomic_folder(target) as temporary:
        yield temporary
        _make_readable(temporary)
        if target.is_dir():
            fresh = any((temporary / name).exists() for name in (WEIGHTS, INDEX))
            weights = ("model*.safetensors*", ADAPTERS) if fresh else ()
            _keep_others(target, temporary, stale=(*weights, *stale))
            shutil.copymode(target, temporary)


@contextmanager
def _filled(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder whose files move into an empty one; `config.json` last, which makes a checkpoint."""
    temporary = folder / UNFINISHED
    temporary.mkdir()
    try:
        yield temporary
        for entry in sorted(temporary.iterdir(), key=lambda entry: entry.name == "config.json"):
            sync_all(entry)
            os.replace(entry, folder / entry.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(folder)


def _make_readable(folder: Path) -> None:
    readable = folder.stat().st_mode & 0o666  # what the umask leaves
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(readable)  # safetensors makes its files private, and a checkpoint is often shared


def _keep_others(old: Path, new: Path, *, stale: Sequence[str]) -> None:
    """Takes over the files of an old folder that the new one lacks, but those that match one of ``stale``."""
    for entry in old.iterdir():
        if (new / entry.name).exists() or any(entry.match(pattern) for pattern in stale):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(str(entry), str(new / entry.name))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)


def write_weights(
    model: SpeechLMM,
    folder: Path | None,
    *,
    save: Save,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    gather: Gather = as_it_is,
) -> Exception | None:
    """Writes the weights and `config.json` into an empty folder.

    Args:
        model: The model.
        folder: The folder; None in a process that only takes part in gathering.
        save: See `save_model`.
        max_shard_size: Size that one file of weights may have.
        gather: Makes a whole tensor of the part that this process has.

    Returns:
        What went wrong, for the caller to raise when all processes have come so far.

    Raises:
        OutOfStepError: A tensor cannot be gathered.
    """
    if (refused := _refuse_quantised(model, save)) is not None:
        return refused
    writer = None if folder is None else ShardWriter(folder, max_shard_size=max_shard_size)
    fault = stream(kept_tensors(model, save), writer, gather)
    fault = _write_adapters(model, folder, gather) or fault
    if fault is not None or folder is None or writer is None:
        return fault
    config = model.config
    config.versions = component_versions(model.model_config)
    config.saved = save
    config.bases = dict(model.base_sources) if save == "trainable" else None
    config.tensors = sorted(writer.names) if save == "trainable" else None
    config.adapters = [adapter.model_dump(mode="json") for adapter in model.lora_adapters] or None
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype if gather is as_it_is else writer.dtype or model.dtype
    try:
        config.to_json_file(folder / "config.json", use_diff=False)
        model.generation_config.save_pretrained(folder)
    except OSError as exc:
        return exc
    return None


def _refuse_quantised(model: SpeechLMM, save: Save) -> Exception | None:
    """What is wrong with saving a model that no longer has its weights in full precision; None if nothing is."""
    for name in model.quantised_modules:
        if save == "full" or name.partition(".")[0] not in model.base_sources:
            return CheckpointError(
                f"the weights of {name} are quantised and cannot be saved: use save: trainable, which refers to its "
                "base checkpoint"
            )
    return None


def _write_adapters(model: SpeechLMM, folder: Path | None, gather: Gather) -> Exception | None:
    """Writes a folder that PEFT loads for each adapter; the processes without a folder only take part in gathering."""
    fault: Exception | None = None
    for adapter in model.lora_adapters:
        writer = None
        if folder is not None and fault is None:
            own = folder / ADAPTERS / adapter.name
            try:
                own.mkdir(parents=True)
                write_adapter_config(model, adapter, own)
                writer = ShardWriter(own, STEM, max_shard_size="1000GB")  # PEFT reads one file
            except OSError as exc:
                fault = exc
        fault = stream(adapter_tensors(model, adapter).items(), writer, gather) or fault
    return fault


def kept_tensors(model: SpeechLMM, save: Save) -> list[tuple[str, Tensor]]:
    """The tensors that `model.safetensors` holds, under their plain names; tied ones once, under their first name."""
    aliases = tied_aliases(model)
    # Parameters, not their values: what is spread over processes is known by them.
    state = {key: value for key, value in plain_state(model).items() if key not in aliases}
    if save == "full":
        return list(state.items())
    parameters = {key for key, value in state.items() if isinstance(value, Parameter)}
    trained = model.ever_trainable | {key for key in parameters if state[key].requires_grad}
    trained_components = {component_of(model, key) for key in trained}

    def in_base(key: str) -> bool:
        component = component_of(model, key)
        if component not in model.base_sources or key in trained:
            return False
        # Buffers of a component that was trained in part may have moved with it (batch norm).
        return key in parameters or component not in trained_components

    return [(key, value) for key, value in state.items() if not in_base(key)]


def tied_aliases(model: Module) -> dict[str, str]:
    """Parameters that share their storage with an earlier one, by plain names: alias → first name."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    plain = plain_names(model)
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if (name := plain.get(key)) is None:
            continue
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return aliases


def component_of(model: SpeechLMM, key: str) -> str:
    """The component that a state-dict key belongs to."""
    parts = key.split(".")
    return ".".join(parts[:2]) if parts[0] == "objectives" else parts[0]

"""What a checkpoint has for a model that starts from it: by component, what is loaded, new, or has no place.

Unlike a checkpoint that is resumed or served, one that another training starts from may have other components than the
model. What it lacks starts at random only where that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from speechlmm_core.checkpoint.adapters import put_back
from speechlmm_core.checkpoint.fill import fill, full_shape
from speechlmm_core.checkpoint.load import checkpoint_files, load_bases, read_adapters, read_config
from speechlmm_core.checkpoint.provenance import base_source
from speechlmm_core.checkpoint.save import component_of, tied_aliases
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.lora.plain import plain_state
from speechlmm_core.registry import nearest

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM

SHOWN = 3
_HEAD = ("COMPONENT", "LOADED", "NEW", "UNEXPECTED", "")


@dataclass
class ComponentCoverage:
    """One component's tensors."""

    name: str
    loaded: list[str] = field(default_factory=list[str])
    """From the checkpoint."""
    new: list[str] = field(default_factory=list[str])
    """Not from the checkpoint."""
    unexpected: list[str] = field(default_factory=list[str])
    """In the checkpoint only."""
    base: str | None = None
    """The base checkpoint that its other tensors come from."""
    in_model: bool = True


@dataclass(frozen=True)
class Coverage:
    """What a checkpoint has for a model."""

    folder: Path
    components: dict[str, ComponentCoverage]
    adapters: tuple[str, ...]
    """Names of the checkpoint's adapters."""

    def lines(self) -> Iterator[str]:
        """The table, in numbers of tensors."""
        rows = [_HEAD, *(_row(component) for component in self.components.values())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        yield f"weights of {self.folder}"
        for row in rows:
            cells = [
                cell.rjust(w) if 0 < at < 4 else cell.ljust(w)
                for at, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            yield "  ".join(cells).rstrip()
        if self.adapters:
            yield f"with the adapters {', '.join(self.adapters)}"


def _row(component: ComponentCoverage) -> tuple[str, str, str, str, str]:
    note = "" if component.in_model else "not in this model"
    if component.base is not None and component.new:
        note = f"what is new comes from {component.base}"
    numbers = (len(component.loaded), len(component.new), len(component.unexpected))
    loaded, new, unexpected = (f"{number}" if number else "-" for number in numbers)
    return component.name, loaded, new, unexpected, note


def cover(model: SpeechLMM, folder: Path, *, new_components: Sequence[str] = ()) -> Coverage:
    """Compares a checkpoint with a model; nothing is loaded.

    Args:
        model: The model, without adapters; it may be on the meta device.
        folder: The checkpoint.
        new_components: Modules that the checkpoint may lack, by name or glob. One of which it does not have every
            tensor is new as a whole.

    Raises:
        CheckpointError: Something would start at random without being named, a tensor has no place in a component that
            both have, or another shape; or a file is missing or damaged.
        ConfigError: A name in `new_components` matches nothing.
    """
    data = read_config(folder)
    aliases = tied_aliases(model)
    own = {key: tuple(full_shape(value)) for key, value in plain_state(model).items() if key not in aliases}
    saved = {aliases.get(key, key): shape for key, shape in _shapes(folder)}
    bases: dict[str, dict[str, Any]] = (data.get("bases") or {}) if data.get("saved") == "trainable" else {}
    new = _new(own, saved, new_components)
    found: dict[str, ComponentCoverage] = {}
    for key in own:
        part = found.setdefault(component_of(model, key), ComponentCoverage(component_of(model, key)))
        (part.loaded if key in saved and key not in new else part.new).append(key)
    for key in saved:
        name = component_of(model, key)
        part = found.setdefault(name, ComponentCoverage(name, in_model=name in model.components()))
        if key not in own or key in new:
            part.unexpected.append(key)
    for name, component in model.components().items():
        pretrained = getattr(getattr(component, "config", None), "pretrained", None)
        if name in found and found[name].new and (name in bases or not found[name].loaded):
            found[name].base = bases[name]["pretrained"] if name in bases else pretrained
    lost = [key for key in data.get("tensors") or [] if aliases.get(key, key) not in saved] if bases else []
    faults = [f"it should hold {_shown(lost)}; it is incomplete"] if lost else []
    faults += [
        fault
        for part in found.values()
        if part.in_model
        for fault in _faults(part, own, saved, new, lambda name: _kinds(model, data, name))
    ]
    if faults:
        raise CheckpointError("\n".join(f"the checkpoint {str(folder)!r} does not fit: {fault}" for fault in faults))
    return Coverage(folder, found, tuple(adapter.name for adapter in read_adapters(folder)))


def load_covered(model: SpeechLMM, coverage: Coverage, *, after_weights: Callable[[], None] | None = None) -> None:
    """Loads what a checkpoint has for a model: base checkpoints, the checkpoint's own tensors, its adapters.

    Args:
        model: The model that `cover` was given, or one like it with memory, as it was built.
        coverage: What `cover` found.
        after_weights: Called when the weights are loaded, before adapters are put on them.

    Raises:
        CheckpointError: A base checkpoint is not the one that was trained on, or a file is damaged.
    """
    folder, parts = coverage.folder, coverage.components
    bases: dict[str, dict[str, Any]] = read_config(folder).get("bases") or {}
    sources: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        if part.base is None:
            continue
        sources[name] = bases[name] if name in bases else base_source(part.base)
    load_bases(model, sources)
    wanted = {key for part in parts.values() for key in part.loaded}
    aliases = tied_aliases(model)
    targets = plain_state(model)
    for file in checkpoint_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in list(tensors.keys()):
                    name = aliases.get(key, key)
                    if name in wanted:
                        fill(targets[name], tensors.get_tensor(key))
        except (SafetensorError, OSError) as exc:
            raise _damaged(file, exc) from exc
    model.base_sources = sources
    model.ever_trainable |= {key for name, part in parts.items() if name in sources for key in part.loaded}
    if after_weights is not None:
        after_weights()
    put_back(model, folder, read_adapters(folder))


def _shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for file in checkpoint_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in list(tensors.keys()):
                    yield key, tuple(tensors.get_slice(key).get_shape())
        except (SafetensorError, OSError) as exc:
            raise _damaged(file, exc) from exc


def _damaged(file: Path, exc: Exception) -> CheckpointError:
    return CheckpointError(f"cannot read {str(file)!r}: {exc}; the file is damaged, save it again")


def _places(key: str) -> list[str]:
    """The modules that a tensor is in."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _new(own: Mapping[str, object], saved: Mapping[str, object], names: Sequence[str]) -> set[str]:
    """The tensors, of the model or the checkpoint, that are not taken from the checkpoint, as was asked for."""
    new: set[str] = set()
    for name in names:

        def within(key: str, name: str = name) -> bool:
            return any(fnmatchcase(place, name) for place in _places(key))

        here, there = {key for key in own if within(key)}, {key for key in saved if within(key)}
        if not here:
            modules = sorted({place for key in own for place in _places(key)})
            raise ConfigError(f"new_components: {name!r} matches no module with weights{nearest(name, modules)}")
        if here != there or any(own[key] != saved[key] for key in here):
            new |= here | there
    return new


def _faults(
    part: ComponentCoverage,
    own: Mapping[str, tuple[int, ...]],
    saved: Mapping[str, tuple[int, ...]],
    new: set[str],
    kinds: Callable[[str], str],
) -> Iterator[str]:
    if not part.loaded and part.base is None and any(key not in new for key in part.new) and not part.unexpected:
        yield (
            f"it holds nothing of {part.name}, which would start at random; if that is meant, say "
            f"training.new_components=[{part.name}]"
        )
        return
    missing = [key for key in part.new if key not in new] if part.base is None else []
    extra = [key for key in part.unexpected if key not in new]
    advice = f"; configure {part.name} as it was trained, or name it in training.new_components to start it anew"
    if missing or extra:
        lacks = f"it lacks {_shown(missing)}" if missing else ""
        more = f"it has {_shown(extra)}, for which there is no place" if extra else ""
        yield f"{part.name}{kinds(part.name)}: {' and '.join(filter(None, (lacks, more)))}{advice}"
    wrong = [key for key in part.loaded if own[key] != saved[key]]
    if wrong:
        shapes = ", ".join(f"{key} is {saved[key]}, expected {own[key]}" for key in wrong[:SHOWN])
        rows = next((key for key in wrong if own[key][1:] == saved[key][1:] and "embed" in key), None)
        if rows is not None and part.name == "text_decoder":
            advice = (
                f"; its vocabulary has {saved[rows][0]} rows and the model's {own[rows][0]}: take the tokenizer and "
                "the vocab_size that it was trained with"
            )
        yield f"{part.name}{kinds(part.name)}: {shapes}{', …' if len(wrong) > SHOWN else ''}{advice}"


def _shown(keys: Sequence[str]) -> str:
    names = ", ".join(keys[:SHOWN])
    return f"{len(keys)} tensor{'' if len(keys) == 1 else 's'} ({names}{', …' if len(keys) > SHOWN else ''})"


def _kinds(model: SpeechLMM, data: Mapping[str, Any], name: str) -> str:
    """How a component's type differs from the checkpoint's; empty where it does not."""
    theirs = (data["model"].get(name) or {}).get("type") if isinstance(data["model"].get(name), dict) else None
    ours = getattr(getattr(model.components().get(name), "config", None), "type", None)
    return f" (a {theirs!r} there, a {ours!r} here)" if theirs and ours and theirs != ours else ""

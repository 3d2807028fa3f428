"""Loading checkpoints strictly: no tensor missing, unexpected or of another shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from speechlmm_core.checkpoint.provenance import base_source
from speechlmm_core.checkpoint.source import fetch_pretrained
from speechlmm_core.checkpoint.weights import read_shards
from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import CheckpointError
from speechlmm_core.lora.config import LoraAdapterConfig

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM


def resolve_model_path(path: str | Path) -> Path:
    """The folder of a model path: one with `config.json`, or one that holds `model/`, or a name on the hub.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    folder = Path(path).expanduser()
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if not folder.exists():
        if str(path).count("/") == 1 and not str(path).startswith(("~", ".", "/")) and not folder.parent.exists():
            return fetch_pretrained(str(path), ["*.json", "*.safetensors", "*.jinja", "tokenizer*"])
        raise CheckpointError(
            f"no checkpoint at {str(path)!r}: the folder does not exist; give the folder of a model that was "
            "saved, such as a run's model/"
        )
    checkpoints = sorted(folder.glob("**/checkpoint-*/config.json"))
    hint = f"; it holds {str(checkpoints[-1].parent)!r}, give that path to use it" if checkpoints else ""
    raise CheckpointError(f"no checkpoint at {str(path)!r}: expected a config.json there or in its model/{hint}")


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's `config.json`.

    Raises:
        CheckpointError: It is not a SpeechLMM checkpoint.
    """
    file = folder / "config.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as exc:
        raise CheckpointError(f"cannot read {str(file)!r}: {exc}") from exc
    if not isinstance(data, dict) or data.get("model_type") != "speechlmm" or "model" not in data:
        got = data.get("model_type") if isinstance(data, dict) else type(data).__name__
        raise CheckpointError(f"{str(file)!r} is not of a SpeechLMM checkpoint: got model_type {got!r}")
    return data


def read_model_config(folder: Path) -> ModelConfig:
    """The typed model configuration of a checkpoint, without loading a weight.

    Raises:
        CheckpointError: A component's plugin is not installed (it names the distribution), or the config is invalid.
    """
    data = read_config(folder)
    try:
        return ModelConfig.model_validate(data["model"])
    except ValidationError as exc:
        raise CheckpointError(_explain(exc, data)) from exc


def _explain(exc: ValidationError, data: dict[str, Any]) -> str:
    providers: dict[str, Any] = (data.get("versions") or {}).get("components") or {}
    lines: list[str] = []
    for error in exc.errors():
        place = ".".join(str(part) for part in error["loc"])
        line = f"{place}: {error['msg']}"
        provider = providers.get(place)
        if error["type"] == "unknown_component" and provider and provider.get("distribution"):
            name, number = provider["distribution"], provider["version"]
            line += f"; it was saved with {name} {number}: pip install '{name}=={number}'"
        lines.append(line)
    return "the checkpoint's configuration does not fit what is installed: " + "; ".join(lines)


def restore(model: SpeechLMM, folder: Path, *, after_weights: Callable[[], None] | None = None) -> None:
    """Brings a model to the state of a checkpoint: base checkpoints that it refers to, its own tensors, its adapters.

    Used wherever a checkpoint is read (loading, resuming, going on from the best one). What it holds of a component
    with a base counts as trained from then on, so that a later `save: trainable` keeps it, whatever is frozen by then.

    Args:
        model: The model, with the checkpoint's adapters or without any.
        folder: The checkpoint.
        after_weights: Called when the weights are loaded, before adapters are put on them (to quantise them).

    Raises:
        CheckpointError: A tensor is missing, unexpected, or of another shape, a file is damaged, a base checkpoint is
            not the one that was trained on, or the model has other adapters.
        MissingDependencyError: The checkpoint has adapters, and PEFT is not installed.
    """
    from speechlmm_core.checkpoint.adapters import put_back
    from speechlmm_core.checkpoint.save import component_of

    data = read_config(folder)
    adapters = read_adapters(folder)
    _check_adapters(model, adapters, folder)
    bases: dict[str, dict[str, Any]] = {}
    listed: set[str] | None = None
    if data.get("saved") == "trainable":
        bases, names = data.get("bases") or {}, data.get("tensors")
        if not isinstance(names, list) or not isinstance(bases, dict):
            raise CheckpointError(f"{str(folder / 'config.json')!r} does not list the tensors that were saved")
        listed = set(names)
    load_bases(model, bases)
    seen = _load_tensors(model, folder, listed, referred=set(bases))
    model.base_sources = dict(bases)
    model.ever_trainable |= {key for key in seen if component_of(model, key) in bases}
    if after_weights is not None:
        after_weights()
    put_back(model, folder, adapters)


def read_adapters(folder: Path) -> list[LoraAdapterConfig]:
    """The adapters of a checkpoint.

    Raises:
        CheckpointError: Its `config.json` says something else of them.
    """
    listed = read_config(folder).get("adapters") or []
    try:
        return TypeAdapter(list[LoraAdapterConfig]).validate_python(listed)
    except ValidationError as exc:
        faults = "; ".join(error["msg"] for error in exc.errors())
        raise CheckpointError(
            f"the adapters that {str(folder / 'config.json')!r} lists are not ones: {faults}"
        ) from exc


def _check_adapters(model: SpeechLMM, saved: Sequence[LoraAdapterConfig], folder: Path) -> None:
    theirs = {adapter.name: adapter for adapter in saved}
    for own in model.lora_adapters:
        if theirs.get(own.name) != own:
            what = "another adapter of that name" if own.name in theirs else f"only {', '.join(theirs) or 'none'}"
            raise CheckpointError(f"the model has the adapter {own.name!r}, but {str(folder)!r} holds {what}")


def load_bases(model: SpeechLMM, bases: Mapping[str, dict[str, Any]]) -> None:
    """Loads the base checkpoints that a checkpoint refers to, by component.

    Raises:
        CheckpointError: The model names none for a component, or it is not the one that was trained on.
    """
    components = model.components()
    for name, saved in bases.items():
        component = components.get(name)
        pretrained = getattr(getattr(component, "config", None), "pretrained", None)
        if component is None or pretrained is None:
            raise CheckpointError(
                f"the checkpoint refers to the base checkpoint {saved['pretrained']!r} of {name}, but the "
                f"configuration names none; set model.{name}.pretrained to where that is"
            )
        now = base_source(pretrained)
        if now["fingerprint"] != saved["fingerprint"]:
            raise CheckpointError(
                f"the base checkpoint {pretrained!r} of {name} is not the one that this checkpoint was "
                f"trained on (fingerprint {now['fingerprint']}, expected {saved['fingerprint']}); restore that one"
            )
        if not any(root.split(".")[0] == name for root in model.quantised_modules):  # which have not changed since
            component.load_base_weights()


def _load_tensors(model: SpeechLMM, folder: Path, listed: set[str] | None, *, referred: set[str]) -> set[str]:
    """Copies the tensors of a checkpoint's files; gives back their names.

    Args:
        model: The model.
        folder: The checkpoint.
        listed: The names that must be there; None for all of the model's.
        referred: Components whose other tensors come from base checkpoints.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from speechlmm_core.checkpoint.fill import fill, full_shape
    from speechlmm_core.checkpoint.save import component_of, tied_aliases
    from speechlmm_core.lora.plain import plain_state

    aliases = tied_aliases(model)
    targets = {key: value for key, value in plain_state(model).items() if key not in aliases}
    required = {key for key in targets if component_of(model, key) not in referred}
    allowed = set(targets)
    if listed is not None:
        allowed = {aliases.get(key, key) for key in listed}
        required |= allowed
    seen: set[str] = set()
    unexpected: list[str] = []
    wrong: list[str] = []
    for file in checkpoint_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors, torch.no_grad():
                names: list[str] = list(tensors.keys())
                for key in names:
                    name = aliases.get(key, key)
                    target = targets.get(name) if name in allowed else None
                    if target is None:
                        unexpected.append(key)
                        continue
                    tensor = tensors.get_tensor(key)
                    seen.add(name)
                    if tensor.shape != full_shape(target):
                        wrong.append(f"{key} (got {tuple(tensor.shape)}, expected {tuple(full_shape(target))})")
                        continue
                    fill(target, tensor)
        except (SafetensorError, OSError) as exc:
            raise CheckpointError(f"cannot read {str(file)!r}: {exc}; the file is damaged, save it again") from exc
    faults = [
        f"{len(keys)} {what}: {', '.join(sorted(keys)[:5])}{', …' if len(keys) > 5 else ''}"
        for what, keys in (("missing", required - seen), ("unexpected", unexpected), ("of another shape", wrong))
        if keys
    ]
    if faults:
        raise CheckpointError(f"the checkpoint {str(folder)!r} does not fit its configuration: {'; '.join(faults)}")
    return seen


def checkpoint_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's own tensors.

    Raises:
        CheckpointError: One is missing.
    """
    index = folder / "model.safetensors.index.json"
    names = read_shards(index) if index.is_file() else ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"the checkpoint {str(folder)!r} is incomplete: {name} is missing")
    return [folder / name for name in names]

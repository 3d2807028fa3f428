"""Which checkpoints the named components need. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model

from speechlmm_core.config import SPEECH_OUTPUT
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.decoder import AnyDecoder, DecoderConfig
from speechlmm_core.interfaces.encoder import AnyEncoder, EncoderConfig
from speechlmm_core.interfaces.parts import CheckpointParts
from speechlmm_train.compose import compose_plain, import_file
from speechlmm_train.config_errors import explain

USAGE = "name components, as in model/audio_encoder=whisper model/text_decoder=llama_3_1b"


@dataclass(frozen=True)
class Wanted:
    """A checkpoint, and what is needed of it."""

    name: str
    """As the components call it: a name on the hub, with a revision or without."""
    parts: tuple[CheckpointParts, ...]

    @property
    def patterns(self) -> list[str]:
        """Names or patterns of the files beside the weights."""
        return sorted({pattern for part in self.parts for pattern in part.files})

    @property
    def needs_weights(self) -> bool:
        """Whether any tensor is needed; a tokenizer alone has none."""
        return any(part.keep for part in self.parts)

    @property
    def needs_all(self) -> bool:
        """Whether every tensor is needed."""
        return any("" in part.keep and not part.skip for part in self.parts)

    @property
    def revision(self) -> str | None:
        """The revision that the name ends in."""
        return self.name.partition("@")[2] or None

    def identity(self) -> dict[str, Any]:
        """What tells one download from another, but for the hub's content."""
        tensors = [{"keep": list(part.keep), "skip": list(part.skip)} for part in self.parts]
        return {
            "repo": self.name.partition("@")[0],
            "revision": self.revision,
            "tensors": [part for i, part in enumerate(tensors) if part not in tensors[:i]],
            "patterns": self.patterns,
        }

    @property
    def by_hand(self) -> str | None:
        """Where to get it if it is not on the hub."""
        return next((part.by_hand for part in self.parts if part.by_hand), None)

    def wants(self, tensor: str) -> bool:
        """Whether a tensor of that name is needed."""
        return any(part.wants(tensor) for part in self.parts)


def wanted_checkpoints(
    overrides: Sequence[str], *, config_dir: Path | None = None, imports: Sequence[Path] = ()
) -> tuple[list[Wanted], list[str]]:
    """The checkpoints that components need, and the components that need none.

    Args:
        overrides: ``model/<part>=<preset>`` and ``model.<part>.<key>=<value>``, in Hydra's grammar.
        config_dir: The user's folder of presets, searched first.
        imports: Python files that register the user's own components.

    Raises:
        ConfigError: Everything that is wrong, a line each.
    """
    for path in imports:
        import_file(path)
    plain = compose_plain("_components", overrides, config_dir=config_dir)
    others = [key for key, value in plain.items() if key != "model" and value]
    if others:
        raise ConfigError(f"`download` takes components only, got {', '.join(map(repr, others))}; {USAGE}")
    needed: dict[str, list[CheckpointParts]] = {}
    without: list[str] = []
    for key, component in _components(plain.get("model") or {}).items():
        if isinstance(component, DecoderConfig):
            own = component.checkpoint_parts()
        elif isinstance(component, EncoderConfig) and component.pretrained is not None:
            own = {component.pretrained: component.checkpoint_parts()}
        else:
            own = {}
        if not own:
            without.append(key)
        for name, part in own.items():
            parts = needed.setdefault(name, [])
            if part not in parts:
                parts.append(part)
    if not needed and not without:
        raise ConfigError(f"nothing to download; {USAGE}")
    return [Wanted(name, tuple(parts)) for name, parts in needed.items()], without


def _components(model: dict[str, Any]) -> dict[str, Any]:
    """The typed encoders and the decoder; everything else has no base checkpoint and stays as it is."""
    given = {key: value for key, value in model.items() if value is not None}
    kinds: dict[str, Any] = {}
    for key in given:
        if key == "text_decoder":
            kinds[key] = (AnyDecoder, ...)
        elif key.endswith("_encoder"):
            kinds[key] = (AnyEncoder, ...)
        elif not key.endswith("_adapter") and key not in SPEECH_OUTPUT:
            raise ConfigError(f"model.{key}: no component; {USAGE}")
    root = create_model("Components", model=(create_model("Parts", **kinds), ...))
    data = {"model": {key: given[key] for key in kinds}}
    try:
        found: Any = root.model_validate(data)
    except ValidationError as exc:
        raise ConfigError("\n".join(explain(exc, root, data))) from exc
    return {key: getattr(found.model, key) if key in kinds else None for key in given}

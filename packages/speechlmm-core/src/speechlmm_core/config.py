"""The typed configuration of a composite model: the `model:` section of every configuration file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from speechlmm_core.faults import checked, fault, faults_of
from speechlmm_core.interfaces.adapter import AdapterConfig, AnyAdapter
from speechlmm_core.interfaces.codec import AnyCodec
from speechlmm_core.interfaces.decoder import AnyDecoder
from speechlmm_core.interfaces.encoder import AnyEncoder, EncoderConfig
from speechlmm_core.interfaces.objective import AnyObjective, ObjectiveConfig
from speechlmm_core.interfaces.talking_head import AnyTalkingHead
from speechlmm_core.registry import nearest

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""What inputs and objectives may be called: they become parts of attributes and of keys."""

SPEECH_OUTPUT = ("codec", "talking_head", "backfeeding_adapter", "conditioning_adapter")
"""The parts of speech output."""

RESERVED = ("text_decoder", *SPEECH_OUTPUT, "objectives")

ATTENTIONS: tuple[str, ...] = ("auto", "eager", "sdpa", "flash_attention_2")
"""What may be asked for as `attn_implementation`."""

RESERVED_INPUTS = ("text", "get", "set", "add", "delete", "load")
"""What an input may not be called: text is no medium, and models have methods like `get_encoder` and `add_adapter`."""


@dataclass(frozen=True)
class InputConfig:
    """The towers of one input."""

    name: str
    encoder: EncoderConfig
    adapter: AdapterConfig


class ModelConfig(BaseModel):
    """A composite model.

    Beside the fields below it takes ``<input>_encoder`` and ``<input>_adapter`` for any number of inputs; an input
    is a role (`audio`, `video`, `speaker`, …), by default named like its modality.
    """

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    text_decoder: AnyDecoder
    """The language model."""
    objectives: dict[str, AnyObjective] = Field(default_factory=dict)
    """Terms of the training loss by name; next-token prediction (`lm`) is added where it is not named."""
    codec: AnyCodec | None = None
    """The neural codec of speech output."""
    talking_head: AnyTalkingHead | None = None
    """The module that predicts codec tokens."""
    backfeeding_adapter: AnyAdapter | None = None
    """Adapter from the previous frame's codes to the next input embedding."""
    conditioning_adapter: AnyAdapter | None = None
    """Adapter of the speaker prompt."""
    attn_implementation: dict[str, str] | str = "auto"
    """`auto`, `eager`, `sdpa` or `flash_attention_2`, for all components or by component. One that cannot do what is
    asked for runs on the best that it can do; `speechlmm-train plan` shows on what."""

    @model_validator(mode="wrap")
    @classmethod
    def _inputs(cls, data: Any, handler: Any) -> ModelConfig:
        faults: list[InitErrorDetails] = []
        if isinstance(data, dict):
            given = cast("dict[str, Any]", data)
            data = {key: value for key, value in given.items() if value is not None or key in cls.model_fields}
            # Keys that are no text are for pydantic to refuse.
            extras = [key for key in data if isinstance(key, str) and key not in cls.model_fields]
            towers = {key: data[key] for key in extras if key.endswith(("_encoder", "_adapter"))}
            for key in extras:
                if key not in towers:
                    known = [*cls.model_fields, "audio_encoder", "audio_adapter", "video_encoder", "video_adapter"]
                    listed = f"(known: {', '.join(cls.model_fields)}, and <input>_encoder, <input>_adapter)"
                    faults.append(fault(f"unknown key {key!r}{nearest(key, known)} {listed}", given))
            for key in list(towers):
                try:
                    _check_name("an input", key.rpartition("_")[0], reserved=RESERVED_INPUTS)
                except PydanticCustomError as exc:
                    faults.append(fault(exc.message(), given))
                    del towers[key]
            if towers:
                kinds: dict[str, Any] = {
                    key: (AnyEncoder if key.endswith("_encoder") else AnyAdapter, ...) for key in towers
                }
                try:
                    found = create_model("Inputs", **kinds).model_validate(towers)
                    data = {**data, **{key: getattr(found, key) for key in towers}}
                except ValidationError as exc:
                    faults += faults_of(exc)
        config: ModelConfig = checked(cls.__name__, handler, data, faults)
        config._check_pairs()
        return config

    def _check_pairs(self) -> None:
        extras = self.__pydantic_extra__ or {}
        for key in extras:
            name, _, kind = key.rpartition("_")
            other = f"{name}_{'adapter' if kind == 'encoder' else 'encoder'}"
            if other not in extras:
                raise PydanticCustomError(
                    "unpaired_tower",
                    "{key} has no {other}; an input needs both (the adapter `identity` passes frames through)",
                    {"key": key, "other": other},
                )
        self._check_attention()
        for name in self.objectives:
            _check_name("an objective", name)
        for name, towers in self.inputs.items():
            for own in towers.adapter.objectives(f"{name}_adapter"):
                if f"{name}_adapter_{own}" in self.objectives:
                    raise PydanticCustomError(
                        "taken_objective",
                        "{name} is the name of a loss that {adapter} brings itself; call this objective otherwise",
                        {"name": repr(f"{name}_adapter_{own}"), "adapter": f"{name}_adapter"},
                    )

    def _check_attention(self) -> None:
        asked = self.attn_implementation
        if isinstance(asked, str):
            asked = {"": asked}
        else:
            known = ["text_decoder", *(self.__pydantic_extra__ or {})]
            known += [part for part in SPEECH_OUTPUT if getattr(self, part) is not None]
            for name in asked:
                if name not in known:
                    raise PydanticCustomError(
                        "unknown_component",
                        "attn_implementation names {name}{hint}, but the components of this model are: {known}",
                        {"name": repr(name), "hint": nearest(name, known), "known": ", ".join(known)},
                    )
        for name, value in asked.items():
            if value not in ATTENTIONS:
                raise PydanticCustomError(
                    "unknown_attention",
                    "unknown {what} {value}{hint} (known: {known})",
                    {
                        "what": f"attn_implementation.{name}" if name else "attn_implementation",
                        "value": repr(value),
                        "hint": nearest(value, list(ATTENTIONS)),
                        "known": ", ".join(ATTENTIONS),
                    },
                )

    @property
    def inputs(self) -> dict[str, InputConfig]:
        """The inputs by name, in the order in which the configuration names their encoders."""
        extras = self.__pydantic_extra__ or {}
        names = [key.removesuffix("_encoder") for key in extras if key.endswith("_encoder")]
        return {name: InputConfig(name, extras[f"{name}_encoder"], extras[f"{name}_adapter"]) for name in names}

    @property
    def all_objectives(self) -> dict[str, ObjectiveConfig]:
        """The objectives with the default one, and those that adapters bring, as ``<input>_adapter_<name>``."""
        from speechlmm_core.objectives.next_token.config import NextTokenObjectiveConfig

        found: dict[str, ObjectiveConfig] = {} if "lm" in self.objectives else {"lm": NextTokenObjectiveConfig()}
        found.update(self.objectives)
        for name, towers in self.inputs.items():
            for own, objective in towers.adapter.objectives(f"{name}_adapter").items():
                found[f"{name}_adapter_{own}"] = objective
        return found

    def attention_of(self, component: str) -> str:
        """The attention implementation asked for a component."""
        if isinstance(self.attn_implementation, str):
            return self.attn_implementation
        return self.attn_implementation.get(component, "auto")


def _check_name(what: str, name: str, *, reserved: Sequence[str] = ()) -> None:
    if not NAME.fullmatch(name) or name in reserved:
        raise PydanticCustomError(
            "bad_name",
            "{what} may not be called {name}; use small letters, digits and _, beginning with a letter{others}",
            {"what": what, "name": repr(name), "others": f", but not {', '.join(reserved)}" if reserved else ""},
        )

"""Typed numbers of a published architecture, inline or from a checkpoint's `config.json`. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from speechlmm_core.checkpoint.source import read_json_config
from speechlmm_core.errors import CheckpointError

Size = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Architecture(BaseModel):
    """Base of the typed numbers of an architecture; the fields bear transformers' names."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    training_only: ClassVar[frozenset[str]] = frozenset()
    """Fields that act at training only, and may therefore differ from the checkpoint's."""


A = TypeVar("A", bound=Architecture)


def architecture_of(data: Any, cls: type[A]) -> Any:
    """Fills the key `model` of a configuration from the checkpoint it names, where it is not given.

    Done at validation, so that a saved configuration says all that is needed to build the module again.

    Raises:
        CheckpointError: The checkpoint or its `config.json` cannot be found.
    """
    if not isinstance(data, dict) or data.get("model") is not None or not data.get("pretrained"):
        return data
    published = read_json_config(data["pretrained"])
    return {**data, "model": {key: published[key] for key in cls.model_fields if key in published}}


def check_architecture(inline: Architecture, pretrained: str) -> None:
    """Compares the numbers in force with the checkpoint's, except for those that act at training only.

    Raises:
        CheckpointError: They differ; the message names the keys.
    """
    published = read_json_config(pretrained)
    wrong = [
        f"{key} is {value!r} here and {published[key]!r} there"
        for key, value in inline.model_dump(mode="json").items()
        if key in published and published[key] != value and key not in inline.training_only
    ]
    if wrong:
        raise CheckpointError(
            f"the checkpoint {pretrained!r} has another architecture than the configuration: {'; '.join(wrong)}; "
            "leave `model` out to take the checkpoint's"
        )

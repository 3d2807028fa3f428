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
    model_types: ClassVar[tuple[str, ...]] = ()
    """What `model_type` of a checkpoint that fits may be; empty where that is not checked."""
    unstated: ClassVar[dict[str, Any]] = {}
    """What transformers takes for fields that a `config.json` leaves out, where it differs from the defaults here."""


class MaskedArchitecture(Architecture):
    """An architecture whose frames can be masked at training (SpecAugment)."""

    mask_time_prob: Probability = 0.05
    """SpecAugment: share of frames masked, where `apply_spec_augment` is set."""
    mask_time_length: Size = 10
    """SpecAugment: frames in a span."""
    mask_time_min_masks: Annotated[int, Field(ge=0)] = 2
    """SpecAugment: spans of frames at least."""
    mask_feature_prob: Probability = 0.0
    """SpecAugment: share of features masked."""
    mask_feature_length: Size = 10
    """SpecAugment: features in a span."""
    mask_feature_min_masks: Annotated[int, Field(ge=0)] = 0
    """SpecAugment: spans of features at least."""


MASK_NUMBERS = frozenset(MaskedArchitecture.model_fields)
"""Names of the numbers above, which act at training only."""

A = TypeVar("A", bound=Architecture)


def architecture_of(data: Any, cls: type[A]) -> Any:
    """Fills the key `model` of a configuration from the checkpoint it names, where it is not given.

    Done at validation, so that a saved configuration says all that is needed to build the module again.

    Raises:
        CheckpointError: The checkpoint or its `config.json` cannot be found, or is a model of another type.
    """
    if not isinstance(data, dict) or data.get("model") is not None or not data.get("pretrained"):
        return data
    published = published_numbers(data["pretrained"], cls)
    return {**data, "model": {key: published[key] for key in cls.model_fields if key in published}}


def check_architecture(inline: Architecture, pretrained: str) -> None:
    """Compares the numbers in force with the checkpoint's, except for those that act at training only.

    Raises:
        CheckpointError: They differ (the message names the keys), or the checkpoint is a model of another type.
    """
    published = published_numbers(pretrained, type(inline))
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


def published_numbers(pretrained: str, cls: type[Architecture]) -> dict[str, Any]:
    """A checkpoint's `config.json`, with what transformers takes for the fields that it leaves out.

    Raises:
        CheckpointError: It cannot be read, or is of a model of another type.
    """
    published = read_json_config(pretrained)
    found = published.get("model_type")
    if cls.model_types and found is not None and found not in cls.model_types:
        raise CheckpointError(
            f"the checkpoint {pretrained!r} is a model of type {found!r}, expected {' or '.join(cls.model_types)}; "
            "name such a checkpoint, or take the encoder that belongs to it (`hf_audio` for audio encoders of "
            "transformers that have none of their own)"
        )
    return {**cls.unstated, **published}

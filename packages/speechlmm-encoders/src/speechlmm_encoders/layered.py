"""What the configurations of layered encoders have in common: rates, chunks, and the layer that is put out.

Imports no torch.
"""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction
from typing import Any, Literal, TypeVar

from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.chunking import Chunk, Chunker
from speechlmm_core.interfaces.encoder import EncoderConfig

SAMPLING_RATE = 16_000
"""Samples per second that every audio encoder here takes."""

Self = TypeVar("Self", bound="LayeredEncoderConfig")


class LayeredEncoderConfig(EncoderConfig):
    """Base of the encoders that are a stack of layers over a front end with a constant hop."""

    layer: int | Literal["weighted"] = -1
    """Hidden state to put out: -1 the last, k >= 0 the one after k layers, -2 the last but one, …; or `weighted` for a
    learned weighted sum of all of them (its weights are outside `.model`, so that they train while that is frozen)."""

    @field_validator("layer", mode="before")
    @classmethod
    def _number_or_weighted(cls, layer: Any) -> Any:
        # Said here in one line: of a union, each member would report what it misses.
        if layer == "weighted" or (isinstance(layer, int) and not isinstance(layer, bool)):
            return layer
        raise PydanticCustomError("layer", "expected a number of layers or `weighted`", {})

    @model_validator(mode="after")
    def _check_layer(self: Self) -> Self:
        depth = self.num_layers
        if self.layer != "weighted" and not -depth - 1 <= self.layer <= depth:
            raise ValueError(f"layer must be between {-depth - 1} and {depth}, or `weighted`, got {self.layer!r}")
        _ = self.chunker
        return self

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Layers that `layer` counts."""

    @property
    @abstractmethod
    def hop(self) -> int:
        """Samples from one frame that comes out to the next."""

    @property
    def wanted_layer(self) -> int | None:
        """Layers to run before the output is taken; None for all, with a weighted sum."""
        if self.layer == "weighted":
            return None
        return self.layer if self.layer >= 0 else self.num_layers + 1 + self.layer

    def names_above(self, layers: str, norm: str | None = None) -> tuple[str, ...]:
        """Beginnings of the names of what stands above the wanted layer, and is not built.

        Args:
            layers: Name of the list of layers.
            norm: Name of the norm after the last layer.
        """
        wanted, depth = self.wanted_layer, self.num_layers
        if wanted is None or wanted >= depth:
            return ()
        names = tuple(f"{layers}.{number}." for number in range(wanted, depth))
        return names if norm is None else (*names, f"{norm}.")

    def split(self, num_samples: int) -> list[Chunk]:
        """The chunks of a medium; one, where it is encoded whole."""
        if self.chunker is None:
            return [Chunk(0, num_samples, 0, self.output_lengths(num_samples))]
        return self.chunker.split(num_samples)

    @property
    def sampling_rate(self) -> int:
        """16 kHz."""
        return SAMPLING_RATE

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second."""
        return Fraction(self.sampling_rate, self.hop)

    @property
    def chunker(self) -> Chunker | None:
        """How longer media are cut; None where they are encoded whole."""
        if self.chunk_seconds is None:
            return None
        return Chunker.from_seconds(
            self.chunk_seconds,
            self.chunk_overlap_seconds,
            sampling_rate=self.sampling_rate,
            hop=self.hop,
            num_frames=self.output_lengths,
        )

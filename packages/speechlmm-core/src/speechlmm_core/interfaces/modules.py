"""Base classes of the modules behind the component configurations.

Shapes: B batch, L samples, T frames, N tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from speechlmm_core.errors import DataError
from speechlmm_core.features import Features, Loss, length_mask

if TYPE_CHECKING:
    from speechlmm_core.interfaces.adapter import AdapterConfig
    from speechlmm_core.interfaces.decoder import DecoderConfig
    from speechlmm_core.interfaces.encoder import EncoderConfig
    from speechlmm_core.interfaces.objective import ObjectiveConfig
    from speechlmm_core.media.medium import Medium


class Preprocessor(ABC):
    """Turns loaded media into an encoder's input tensors, on the CPU, in the data worker."""

    @abstractmethod
    def __call__(self, media: Sequence[Medium]) -> dict[str, Tensor]:
        """Batches media.

        Returns:
            The model's input (`input_values` (B, L) or `input_features` (B, M, T)) and `lengths` (B,) int64, its
            valid length in every row. Where media are cut into chunks there are more rows than media, and
            `merge_index` (B, T) says which flat output frame each merged frame is (see `speechlmm_core.chunking`).
        """


class Component(nn.Module):
    """What encoders, adapters, decoders and objectives have in common."""

    def load_base_weights(self) -> None:
        """Loads the base checkpoint that the configuration names; nothing where it names none.

        Raises:
            CheckpointError: The checkpoint is missing or does not fit.
        """

    def reset_buffers(self) -> None:
        """Recomputes buffers that are not saved (positions, windows); nothing where there are none."""


class Encoder(Component, ABC):
    """An encoder; the network that does the work is `.model`."""

    config: EncoderConfig
    model: nn.Module

    @abstractmethod
    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes the rows of a preprocessor's output."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes media, and joins the chunks of long ones.

        Args:
            inputs: What the encoder's preprocessor returned.

        Raises:
            DataError: Media were cut, and one of the encoder's `extras` is not by frame.
        """
        features = self.encode(inputs)
        if "merge_index" not in inputs:
            return features
        rows, frames, _ = features.values.shape
        index = inputs["merge_index"].clamp(min=0)  # (B, T); -1 is padding
        lengths = inputs["merged_lengths"]
        padding = ~length_mask(lengths, index.shape[1])  # (B, T)

        def merge(name: str, values: Tensor) -> Tensor:
            if values.shape[:2] != (rows, frames):
                raise DataError(
                    f"the encoder's {name!r} of shape {tuple(values.shape)} cannot be joined over the chunks of a "
                    f"medium; expected a value for each of the ({rows}, {frames}) frames"
                )
            joined = values.flatten(0, 1)[index]  # (B, T, ...)
            return joined.masked_fill(padding.view(*padding.shape, *[1] * (joined.dim() - 2)), 0)

        extras = {name: merge(name, values) for name, values in features.extras.items()}
        return Features(merge("values", features.values), lengths, extras)


class Adapter(Component, ABC):
    """An adapter."""

    config: AdapterConfig

    @abstractmethod
    def forward(self, features: Features, target_lengths: Tensor | None = None) -> Features:
        """Adapts frames to the text decoder.

        Args:
            features: (B, T, D_in).
            target_lengths: (B,) int64 tokens of each medium's transcript, -1 where it is not known; None where an
                answer is generated, and for adapters whose lengths do not depend on the content. They are given
                for losses in training and in eval mode alike.

        Returns:
            (B, T_out, D_out), and whatever the component's own objectives need in `extras`.
        """


class TextDecoder(Component, ABC):
    """A causal language model; the transformers module is `.model`."""

    config: DecoderConfig
    model: Any

    @abstractmethod
    def embed(self, input_ids: Tensor) -> Tensor:
        """Input embeddings (..., D) of token ids (...)."""

    @property
    @abstractmethod
    def embedding_weight(self) -> Tensor:
        """(V, D) the embedding table."""

    @property
    @abstractmethod
    def output_weight(self) -> Tensor:
        """(V, D) the language-model head."""

    @abstractmethod
    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        segments: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Last hidden states, without the head and without a cache.

        Args:
            inputs_embeds: (R, N, D).
            position_ids: (R, N) int64.
            attention_mask: (R, N), 1 on valid positions; only where nothing is packed.
            segments: Bounds of the samples that are packed into the one row; attention never crosses them.

        Returns:
            (R, N, D).
        """


class Objective(Component, ABC):
    """One term of the training loss."""

    config: ObjectiveConfig
    name: str = ""
    """The objective's name in the model, set by the composite."""

    @abstractmethod
    def forward(self, stages: Mapping[str, Features], batch: Mapping[str, Any], text_decoder: TextDecoder) -> Loss:
        """The loss as a sum over its unit.

        Args:
            stages: Outputs by stage name; `text_decoder` holds the hidden states (R, N, D).
            batch: The collator's batch; this objective's targets are ``batch["targets"][name]``, where name is
                the attribute `name` that the composite sets.
            text_decoder: For its embedding table and its head.
        """

"""What the conformers of SeamlessM4T v2 and w2v-BERT 2.0 have in common, over padded batches.

Gulati et al., 2020, "Conformer: Convolution-augmented Transformer for Speech Recognition" (arXiv:2005.08100). The
modules and their names are transformers'; the loops over them are ours, because theirs let padding into the adapter's
convolutions.

Shapes: B batch, M mel bins, T frames, D hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from speechlmm_core.features import Features, zero_padding
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_encoders.relative_key import RelativeKeyAttention
from speechlmm_encoders.transformer import LayerMix, attention_mask, keep_layers, run_layers

if TYPE_CHECKING:
    from speechlmm_encoders.fbank.config import FbankEncoderConfig


class ConformerEncoder(Encoder):
    """Base of the two encoders; `.model` is the module of transformers."""

    config: FbankEncoderConfig
    model: Any

    last_norm: ClassVar[str | None] = None
    """Name of the norm after the last layer."""

    def __init__(self, config: FbankEncoderConfig, model: Any) -> None:
        super().__init__()
        self.config = config
        self.model = model
        keep_layers(model, "encoder.layers", config.wanted_layer, norm=self.last_norm)
        use_kernels(model.encoder)
        self.layer_mix = LayerMix(config.num_layers + 1) if config.layer == "weighted" else None

    def load(self, prefix: str, unused: Sequence[str] = ()) -> None:
        """Loads the base checkpoint's weights, if the configuration names one.

        Args:
            prefix: What stands before the network's names where it is a part of a model.
            unused: Names of the network's tensors that this one has not, beside the layers above the wanted one.
        """
        if self.config.pretrained is None:
            return
        from speechlmm_core.checkpoint.weights import load_weights
        from speechlmm_encoders.architecture import check_architecture

        check_architecture(self.config.architecture, self.config.pretrained)
        unused = (*unused, *self.config.names_above("encoder.layers", self.last_norm))
        ignore = (*self.config.unused_tensors, *unused, *(prefix + name for name in unused))
        load_weights(self.model, self.config.pretrained, prefixes=(prefix, ""), ignore=ignore)

    @abstractmethod
    def run(self, values: Tensor, lengths: Sequence[Tensor]) -> Tensor:
        """Encodes features.

        Args:
            values: (B, T, 2 M).
            lengths: Tensors (B,): the valid frames before the adapter and after each of its layers.

        Returns:
            (B, T_out, D); what stands beyond the valid frames is undefined.
        """

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes what `FbankPreprocessor` returned."""
        values = inputs["input_features"].to(self.model.feature_projection.projection.weight.dtype)
        lengths = self.config.adapter_lengths(inputs["lengths"])
        longest = self.config.adapter_lengths(values.shape[1])[-1]
        if 0 in (values.shape[0], longest):
            return Features(values.new_zeros(values.shape[0], longest, self.config.hidden_size), lengths[-1])
        return Features(zero_padding(self.run(values, lengths), lengths[-1]), lengths[-1])


def use_kernels(encoder: Any) -> None:
    """Has the layers of a conformer encoder attend by scaled-dot-product kernels, unless it is set to `eager`."""
    if encoder.config._attn_implementation == "sdpa":
        for layer in encoder.layers:
            layer.self_attn = RelativeKeyAttention(layer.self_attn)


def run_conformers(
    encoder: Any,
    values: Tensor,
    lengths: Tensor,
    *,
    mix: LayerMix | None,
    layerdrop: float,
    norm: nn.Module | None = None,
    chunks: tuple[int, int] | None = None,
) -> Tensor:
    """Runs the layers of a conformer encoder of transformers.

    Args:
        encoder: The module that holds the layers, and the dropout before them.
        values: (B, T, D).
        lengths: (B,) valid frames.
        mix: As in `run_layers`.
        layerdrop: As in `run_layers`.
        norm: As in `run_layers`.
        chunks: Frames in a chunk, and the number of chunks before its own that a frame attends to (negative for all);
            None where it attends to all frames.

    Returns:
        (B, T, D); what stands beyond the valid frames is undefined.
    """
    mask = attention_mask(lengths, values.shape[1], encoder.config._attn_implementation, values.dtype)  # (B, 1, 1, T)
    if chunks is not None and values.shape[1] > chunks[0]:
        seen = chunk_mask(values.shape[1], *chunks, device=values.device)  # (T, T)
        # (B, 1, T, T), bool or what is added to the scores
        mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
    # The layers' convolutions look back only, so that the frames after a clip's end are nothing to those before.
    return run_layers(
        encoder.layers,
        encoder.dropout(zero_padding(values, lengths)),
        lambda layer, states: layer(states, attention_mask=mask),
        norm=norm,
        mix=mix,
        layerdrop=layerdrop,
    )


def chunk_mask(num_frames: int, size: int, num_left: int, *, device: torch.device) -> Tensor:
    """(T, T) bool: whether a frame (row) attends to another: to its own chunk, and to so many before it."""
    number = torch.arange(num_frames, device=device) // size  # (T,)
    back = number[:, None] - number[None, :]  # (T, T)
    return (back >= 0) & (back <= num_left) if num_left >= 0 else back >= 0


def run_adapter(layers: Sequence[Any], values: Tensor, lengths: Sequence[Tensor], implementation: str) -> Tensor:
    """Runs the layers of an adapter of transformers, each of which shortens the clips.

    None is left out at training: the lengths would not be what they are.

    Args:
        layers: N layers.
        values: (B, T, D).
        lengths: N + 1 tensors (B,): the valid frames before the adapter and after each layer.
        implementation: That of the layers' attention.

    Returns:
        (B, T_out, D); what stands beyond the valid frames is undefined.
    """
    for layer, before, after in zip(layers, lengths[:-1], lengths[1:], strict=True):
        # A convolution sees zeros beyond the end of a clip that is alone, and so must it in a batch.
        residual = zero_padding(layer.residual_layer_norm(values), before)
        residual = layer.activation(layer.residual_conv(residual.transpose(1, 2))).transpose(1, 2)  # (B, T_out, D)
        values = zero_padding(layer.self_attn_layer_norm(values), before)
        values = layer.activation(layer.self_attn_conv(values.transpose(1, 2))).transpose(1, 2)  # (B, T_out, D)
        mask = attention_mask(after, values.shape[1], implementation, values.dtype)
        values, _ = layer.self_attn(values, attention_mask=mask)
        values = layer.self_attn_dropout(values) + residual
        values = layer.ffn(layer.ffn_layer_norm(values)) + values
    return values

"""Whisper's encoder: log-mel at 100 Hz -> frames at 50 Hz (with the published strides).

Radford et al., 2022, "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv:2212.04356). The checkpoints
are under the MIT licence (Apache-2.0 on the Hugging Face hub). The modules and their names are transformers'; only the
loop over them is ours, because theirs takes nothing but 30 s.

Shapes: B batch, M mel bins, T frames, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as TransformersWhisperEncoder

from speechlmm_core.attention.choice import choose_attention
from speechlmm_core.features import Features, length_mask, zero_padding
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_encoders.transformer import LayerMix, attention_mask, keep_layers, run_layers
from speechlmm_encoders.whisper.log_mel import TAIL, expand_silence

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.whisper.config import UnrestrictedWhisperEncoderConfig, WhisperBase, WhisperEncoderConfig


class WhisperEncoderBase(Encoder):
    """The network and its weights; the two encoders differ in what they feed it."""

    config: WhisperBase
    model: Any
    """Transformers' `WhisperEncoder`."""

    def __init__(self, config: WhisperBase, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        options: dict[str, Any] = config.architecture.model_dump()
        options["attn_implementation"] = choose_attention(ctx, TransformersWhisperEncoder)
        self.model = TransformersWhisperEncoder(WhisperConfig(**options))
        keep_layers(self.model, "layers", config.wanted_layer, norm="layer_norm")
        self.layer_mix = LayerMix(config.num_layers + 1) if config.layer == "weighted" else None
        convolutions = (self.model.conv1, self.model.conv2)
        for convolution, stride in zip(convolutions, config.conv_strides, strict=True):
            convolution.stride = (stride,)
            if config.init == "kaiming":
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")

    def load_base_weights(self) -> None:
        """Loads an encoder saved alone, or the encoder's part of a whole Whisper checkpoint."""
        if self.config.pretrained is None:
            return
        from speechlmm_core.checkpoint.weights import load_weights
        from speechlmm_encoders.architecture import check_architecture

        check_architecture(self.config.architecture, self.config.pretrained)
        prefixes = ("model.encoder.", "encoder.", "")
        above = [prefix + name for prefix in prefixes for name in self.config.names_above("layers", "layer_norm")]
        load_weights(
            self.model, self.config.pretrained, prefixes=prefixes, ignore=(*self.config.unused_tensors, *above)
        )

    def run(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Encodes log-mel features as if every row were alone.

        Args:
            features: (B, M, T).
            lengths: (B,) valid frames.

        Returns:
            (B, T_out, D); what stands beyond the valid frames is undefined.
        """
        model = self.model
        values = features.to(model.conv1.weight.dtype)
        first, second = self.config.conv_lengths(lengths)
        # A convolution sees zeros beyond the end of a clip that is alone, and so must it in a batch.
        values = _zero_beyond(values, lengths)
        values = _zero_beyond(nn.functional.gelu(model.conv1(values)), first)  # (B, D, T)
        values = nn.functional.gelu(model.conv2(values)).transpose(1, 2)  # (B, T_out, D)
        values = values + self._positions(values.shape[1])
        values = nn.functional.dropout(values, p=model.dropout, training=model.training)
        mask = attention_mask(second, values.shape[1], model.config._attn_implementation, values.dtype)
        return run_layers(
            model.layers,
            values,
            lambda layer, states: layer(states, attention_mask=mask),
            norm=model.layer_norm,
            mix=self.layer_mix,
            layerdrop=model.layerdrop,
        )

    def _positions(self, num_frames: int) -> Tensor:
        """(T, D): those of the checkpoint, and beyond them further sinusoids."""
        table = self.model.embed_positions.weight
        if num_frames > table.shape[0]:
            more = sinusoids(table.shape[0], num_frames, table.shape[1], table.device).to(table.dtype)
            table = torch.cat([table, more])
        return table[:num_frames] * self.config.position_scale

    def _empty(self, features: Tensor, num_frames: int) -> Features:
        width = self.config.hidden_size
        rows = features.shape[0]
        values = features.new_zeros(rows, num_frames, width, dtype=self.model.conv1.weight.dtype)
        return Features(values, torch.zeros(rows, dtype=torch.long, device=features.device))


class WhisperEncoder(WhisperEncoderBase):
    """Whisper's encoder over windows padded with silence, as it was trained."""

    config: WhisperEncoderConfig

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes what `WhisperPreprocessor` returned."""
        compact, lengths = inputs["input_features"], inputs["lengths"]
        window = self.config.architecture.max_source_positions
        if 0 in (compact.shape[0], compact.shape[2] - TAIL):
            return self._empty(compact, 0)
        strides = self.config.conv_strides
        features = expand_silence(compact, lengths, inputs["silence"], window * strides[0] * strides[1])  # (B, M, T)
        values = self.run(features, torch.full_like(lengths, features.shape[2]))
        if self.config.keep_padding:
            return Features(values, torch.where(lengths > 0, window, 0))
        num_frames = self.config.conv_lengths(lengths)[1]
        longest = self.config.conv_lengths(compact.shape[2] - TAIL)[1]
        return Features(zero_padding(values[:, :longest], num_frames), num_frames)


class UnrestrictedWhisperEncoder(WhisperEncoderBase):
    """Whisper's encoder over clips of any length."""

    config: UnrestrictedWhisperEncoderConfig

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes what `UnrestrictedWhisperPreprocessor` returned."""
        features, lengths = inputs["input_features"], inputs["lengths"]
        if 0 in (features.shape[0], features.shape[2]):
            return self._empty(features, 0)
        num_frames = self.config.conv_lengths(lengths)[1]
        return Features(zero_padding(self.run(features, lengths), num_frames), num_frames)


def sinusoids(start: int, stop: int, width: int, device: torch.device) -> Tensor:
    """(``stop`` - ``start``, D) rows of Whisper's positions: sines in the first half, cosines in the second."""
    half = width // 2
    timescales = torch.exp(torch.arange(half, device=device) * (-math.log(10_000) / max(half - 1, 1)))
    angles = torch.arange(start, stop, device=device)[:, None] * timescales[None, :]  # (T, D / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)  # (T, D)


def _zero_beyond(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, D, T) with zeros beyond each row's length."""
    return values.masked_fill(~length_mask(lengths, values.shape[2])[:, None, :], 0.0)

"""AutoAVSR's visual speech encoder: 25 mouth crops a second -> frames at 25 Hz.

Ma et al., 2023, "Auto-AVSR: Audio-Visual Speech Recognition with Automatic Labels" (arXiv:2303.14307). The checkpoints
are published for comparison and benchmarking, not for commercial use. The network is ours; its parameters bear the
published names.

Shapes: R rows, T frames, H x W pixels, N frames of all rows, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from speechlmm_core.attention.choice import choose_attention
from speechlmm_core.features import Features
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_encoders.auto_avsr.config import WRAPPERS
from speechlmm_encoders.auto_avsr.conformer import LAYER_NORM_EPS, ConformerLayer, FrameLayout, relative_positions
from speechlmm_encoders.auto_avsr.frontend import VisualFrontend, frame_windows
from speechlmm_encoders.transformer import LayerMix, keep_layers, run_layers

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.auto_avsr.config import AutoAvsrArchitecture, AutoAvsrEncoderConfig

PIXEL_MEAN = 0.421
"""Mean grey level, of 1, of the crops that the checkpoints were trained on."""

PIXEL_STD = 0.165
"""Its standard deviation."""


class AutoAvsrNetwork(nn.Module):
    """The modules by the names of the published checkpoints (there, below `encoder.`)."""

    _supports_sdpa: ClassVar[bool] = True
    # Its kernels take no term for the distance between query and key.
    _supports_flash_attn: ClassVar[bool] = False

    def __init__(self, architecture: AutoAvsrArchitecture, implementation: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=implementation)
        self.frontend = VisualFrontend(architecture.frontend_hidden_sizes)
        embedding = nn.Linear(architecture.frontend_hidden_sizes[-1], architecture.hidden_size)
        self.embed = nn.Sequential(embedding, nn.Dropout(architecture.hidden_dropout))
        self.encoders = nn.ModuleList(
            ConformerLayer(
                architecture.hidden_size,
                architecture.num_attention_heads,
                architecture.intermediate_size,
                architecture.conv_depthwise_kernel_size,
                dropout=architecture.hidden_dropout,
                attention_dropout=architecture.attention_dropout,
                implementation=implementation,
            )
            for _ in range(architecture.num_hidden_layers)
        )
        self.after_norm = nn.LayerNorm(architecture.hidden_size, eps=LAYER_NORM_EPS)


class AutoAvsrEncoder(Encoder):
    """See `AutoAvsrEncoderConfig`."""

    config: AutoAvsrEncoderConfig
    model: AutoAvsrNetwork

    def __init__(self, config: AutoAvsrEncoderConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        implementation = choose_attention(ctx, AutoAvsrNetwork)
        self.model = AutoAvsrNetwork(config.model, implementation)
        keep_layers(self.model, "encoders", config.wanted_layer, norm="after_norm")
        self.layer_mix = LayerMix(config.num_layers + 1) if config.layer == "weighted" else None

    def load_base_weights(self) -> None:
        """Loads the encoder of a published model: a file or a folder, with the decoder and the CTC head or without."""
        if self.config.pretrained is None:
            return
        from speechlmm_core.checkpoint.weights import load_weights

        prefixes = (*(f"{wrapper}encoder." for wrapper in WRAPPERS), "")
        above = [prefix + name for prefix in prefixes for name in self.config.names_above("encoders", "after_norm")]
        load_weights(
            self.model, self.config.pretrained, prefixes=prefixes, ignore=(*self.config.unused_tensors, *above)
        )

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes what `AutoAvsrPreprocessor` returned."""
        model, width = self.model, self.config.hidden_size
        pixels, lengths, index = inputs["pixel_values_videos"], inputs["lengths"], inputs["frame_index"]
        num_rows, num_frames = pixels.shape[:2]
        embedding, dropout = model.embed
        weight = next(embedding.parameters())
        if not len(index):
            return Features(weight.new_zeros(num_rows, num_frames, width), lengths)
        # In place on what indexing copied: further copies of all frames would cost more than the arithmetic.
        frames = pixels.flatten(0, 1)[torch.cat([index, index[:1]])].float()  # (N + 1, H, W)
        frames = frames.sub_(255 * PIXEL_MEAN).div_(255 * PIXEL_STD)
        # Beyond its ends, a clip goes on with zeros, after they are normalised.
        frames[-1].zero_()
        hidden = model.frontend(frames.to(weight.dtype), frame_windows(index, lengths, num_frames))  # (N, C)
        hidden = dropout(embedding(hidden) * math.sqrt(width))  # (N, D)
        layout = FrameLayout(index, lengths, num_frames)
        positions = dropout(relative_positions(num_frames, width, device=hidden.device, dtype=hidden.dtype))  # (P, D)
        hidden = run_layers(
            model.encoders,
            hidden,
            lambda layer, values: layer(values, positions, layout),
            norm=model.after_norm,
            mix=self.layer_mix,
        )
        return Features(layout.spread(hidden), lengths)

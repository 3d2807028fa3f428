"""Learned queries over windows of frames.

Li et al., 2023, "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language
Models" (arXiv:2301.12597), for the Q-Former; Tang et al., 2023, "SALMONN: Towards Generic Hearing Abilities for Large
Language Models" (arXiv:2310.13289), for the windows.

Shapes: B batch, T frames, W windows, Q queries, D hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from speechlmm_adapters.attention import Attention, initialise
from speechlmm_adapters.qformer.model import QFormer, Windows
from speechlmm_core.attention.choice import choose_attention
from speechlmm_core.features import Features, zero_padding
from speechlmm_core.interfaces.modules import Adapter
from speechlmm_core.lengths import ceil_div

if TYPE_CHECKING:
    from speechlmm_adapters.qformer.config import QFormerAdapterConfig
    from speechlmm_core.interfaces.context import BuildContext


class QFormerAdapter(Adapter):
    """See `QFormerAdapterConfig`; the queries and layers are `.model`, a linear layer follows."""

    config: QFormerAdapterConfig

    def __init__(self, config: QFormerAdapterConfig, ctx: BuildContext) -> None:
        """Builds the layers between the widths of the context.

        Raises:
            ConfigError: transformers knows no such activation, or windows are measured in seconds without a rate.
        """
        super().__init__()
        self.config = config
        choose_attention(ctx, Attention)  # there is one, and who asked for another is told
        self.frame_rate = ctx.frame_rate
        self.window, self.context = 0, 0
        if not config.whole_utterance:
            self.window, self.context = config.window(ctx.frame_rate), config.context(ctx.frame_rate)
        self.input_norm = nn.LayerNorm(ctx.input_size, eps=config.layer_norm_eps)
        self.model = QFormer(config, ctx.input_size)
        self.output = nn.Linear(config.hidden_size, ctx.output_size)
        self.apply(initialise)

    def windows(self, num_frames: int) -> Windows:
        """How rows of so many frames are cut: into one window where they fit into it."""
        if self.config.whole_utterance or num_frames <= self.window:
            return Windows(1, max(num_frames, 1), 0)
        return Windows(ceil_div(num_frames, self.window), self.window, self.context)

    def forward(self, features: Features, target_lengths: Tensor | None = None) -> Features:
        """Adapts (B, T, D_in) to (B, W * Q, D_out); padding comes out as zeros."""
        frames = features.values.shape[1]
        values = self.input_norm(zero_padding(features.values, features.lengths))  # (B, T, D_in)
        values = self.output(self.model(values, features.lengths, self.windows(frames)))  # (B, W * Q, D_out)
        lengths = self.config.output_lengths(features.lengths, self.frame_rate)
        # A batch without frames went through as one window of padding.
        values = values[:, : self.config.output_lengths(frames, self.frame_rate)]
        return Features(zero_padding(values, lengths), lengths)

"""WavLM's encoder: raw audio at 16 kHz -> frames at 50 Hz (with the published strides).

Chen et al., 2021, "WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing"
(arXiv:2110.13900). The checkpoints are under CC BY-SA 3.0. It is HuBERT with a relative position bias that each layer
gates by its input; the bias itself belongs to the first layer, and is computed once for all.

Shapes: B batch, T frames, D hidden, H heads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from transformers import WavLMConfig, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from speechlmm_core.features import length_mask
from speechlmm_encoders.raw_audio.encoder import RawAudioEncoder

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.wavlm.config import WavLMEncoderConfig

logger = logging.getLogger(__name__)


class MaskedAttention(WavLMAttention):
    """WavLM's attention with the mask of padded keys put into the bias.

    Transformers hands PyTorch a mask and a bias of different types, which PyTorch has deprecated.
    """

    def torch_multi_head_self_attention(
        self, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attention of (B, T, D) with a bias (B * H, T, T) and a mask (B, 1, 1, T) that is true on valid frames."""
        if attention_mask is not None:
            bias = gated_position_bias.unflatten(0, (-1, self.num_heads))  # (B, H, T, T)
            gated_position_bias = bias.masked_fill(~attention_mask, float("-inf")).flatten(0, 1)  # (B * H, T, T)
        return super().torch_multi_head_self_attention(hidden_states, None, gated_position_bias)  # pyright: ignore[reportArgumentType]  # it takes None


class WavLMEncoder(RawAudioEncoder):
    """See `WavLMEncoderConfig`; `.model` is transformers' `WavLMModel`."""

    model_class: ClassVar[Any] = WavLMModel
    config_class: ClassVar[Any] = WavLMConfig

    def __init__(self, config: WavLMEncoderConfig, ctx: BuildContext) -> None:
        super().__init__(config, ctx)
        for layer in self.model.encoder.layers:
            # The same module with the same parameters; only what it does with the mask is another.
            layer.attention.__class__ = MaskedAttention

    def layer_call(self, num_frames: Tensor, hidden: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
        """Attention over the valid frames (B,) of (B, T, D), an empty row's first frame counting as valid."""
        if not len(self.model.encoder.layers):
            return lambda _, values: values
        rows, frames, _ = hidden.shape
        mask = length_mask(num_frames.clamp(min=1), frames)[:, None, None, :]  # (B, 1, 1, T)
        bias: Tensor = self.model.encoder.layers[0].attention.compute_bias(frames, frames)  # (H, T, T)
        bias = bias.repeat(rows, 1, 1)  # (B * H, T, T)
        return lambda layer, values: layer(values, attention_mask=mask, position_bias=bias)[0]

    def normalisation_differs(self, name: str, trained: object) -> None:
        """Warns: the published feature extractors are not sure to say how their models were trained."""
        logger.warning(
            "the feature extractor of %r says do_normalize %r; by do_normalize %r of the configuration, clips are %s",
            name,
            trained,
            self.config.do_normalize,
            "normalised" if self.config.do_normalize else "left as they are",
        )

"""HuBERT's encoder: raw audio at 16 kHz -> frames at 50 Hz (with the published strides).

Hsu et al., 2021, "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units"
(arXiv:2106.07447). The checkpoints are under Apache-2.0.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from speechlmm_encoders.raw_audio.encoder import RawAudioEncoder
from speechlmm_encoders.transformer import attention_mask


class HubertEncoder(RawAudioEncoder):
    """See `HubertEncoderConfig`; `.model` is transformers' `HubertModel`."""

    model_class: ClassVar[Any] = HubertModel
    config_class: ClassVar[Any] = HubertConfig

    def layer_call(self, num_frames: Tensor, hidden: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
        """Attention over the valid frames (B,) of (B, T, D)."""
        mask = attention_mask(num_frames, hidden.shape[1], self.model.config._attn_implementation, hidden.dtype)
        return lambda layer, values: layer(values, attention_mask=mask)

"""SeamlessM4T v2's speech encoder: filter banks at 50 Hz -> frames at 6.25 Hz (with the published strides).

Seamless Communication et al., 2023, "Seamless: Multilingual Expressive and Streaming Speech Translation"
(arXiv:2312.05187). The checkpoint is under CC-BY-NC-4.0. The modules and their names are transformers'; the loop over
them is ours, see `speechlmm_encoders.conformer`.

Shapes: B batch, M mel bins, T frames, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import SeamlessM4Tv2Config
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

from speechlmm_core.attention.choice import choose_attention
from speechlmm_core.features import Features, zero_padding
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_encoders.conformer import run_adapter, run_conformers, use_kernels
from speechlmm_encoders.transformer import LayerMix

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.seamless.config import SeamlessEncoderConfig


class SeamlessEncoder(Encoder):
    """See `SeamlessEncoderConfig`; `.model` is transformers' `SeamlessM4Tv2SpeechEncoder`."""

    config: SeamlessEncoderConfig
    model: Any

    def __init__(self, config: SeamlessEncoderConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        options: dict[str, Any] = config.architecture.model_dump()
        options["attn_implementation"] = choose_attention(
            ctx.attn_implementation, SeamlessM4Tv2SpeechEncoder, component=ctx.component
        )
        self.model = SeamlessM4Tv2SpeechEncoder(SeamlessM4Tv2Config(**options))
        use_kernels(self.model.encoder)
        self.layer_mix = LayerMix(config.num_layers + 1) if config.layer == "weighted" else None

    def load_base_weights(self) -> None:
        """Loads a speech encoder saved alone, or that of a whole SeamlessM4T v2 checkpoint."""
        if self.config.pretrained is None:
            return
        from speechlmm_core.checkpoint.weights import load_weights
        from speechlmm_encoders.architecture import check_architecture

        check_architecture(self.config.architecture, self.config.pretrained)
        load_weights(
            self.model,
            self.config.pretrained,
            prefixes=("speech_encoder.", ""),
            ignore=self.config.unused_tensors,
        )

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes what `FbankPreprocessor` returned."""
        model, config = self.model, self.config
        values = inputs["input_features"].to(model.feature_projection.projection.weight.dtype)
        lengths = config.adapter_lengths(inputs["lengths"])
        longest = config.adapter_lengths(values.shape[1])[-1]
        if 0 in (values.shape[0], longest):
            return Features(values.new_zeros(values.shape[0], longest, config.hidden_size), lengths[-1])
        values = run_conformers(
            model.encoder,
            model.feature_projection(values),  # (B, T, D)
            lengths[0],
            wanted=config.wanted_layer,
            mix=self.layer_mix,
            layerdrop=model.config.speech_encoder_layerdrop,
            norm=model.encoder.layer_norm,
            chunks=(config.architecture.speech_encoder_chunk_size, config.architecture.speech_encoder_left_chunk_num),
        )
        values = values + 0.5 * model.intermediate_ffn(values)
        if model.adapter is not None:
            values = run_adapter(model.adapter.layers, values, lengths, model.config._attn_implementation)
        return Features(zero_padding(model.inner_layer_norm(values), lengths[-1]), lengths[-1])

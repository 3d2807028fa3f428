"""SeamlessM4T v2's speech encoder: filter banks at 50 Hz -> frames at 6.25 Hz (with the published strides).

Seamless Communication et al., 2023, "Seamless: Multilingual Expressive and Streaming Speech Translation"
(arXiv:2312.05187). The checkpoint is under CC-BY-NC-4.0. The modules and their names are transformers'; the loop over
them is ours, see `speechlmm_encoders.conformer`.

Shapes: B batch, M mel bins, T frames, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from transformers import SeamlessM4Tv2Config
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

from speechlmm_core.attention.choice import choose_attention
from speechlmm_encoders.conformer import ConformerEncoder, run_adapter, run_conformers

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.seamless.config import SeamlessEncoderConfig


class SeamlessEncoder(ConformerEncoder):
    """See `SeamlessEncoderConfig`; `.model` is transformers' `SeamlessM4Tv2SpeechEncoder`."""

    config: SeamlessEncoderConfig
    last_norm: ClassVar[str | None] = "encoder.layer_norm"

    def __init__(self, config: SeamlessEncoderConfig, ctx: BuildContext) -> None:
        options: dict[str, Any] = config.architecture.model_dump()
        options["attn_implementation"] = choose_attention(ctx, SeamlessM4Tv2SpeechEncoder)
        super().__init__(config, SeamlessM4Tv2SpeechEncoder(SeamlessM4Tv2Config(**options)))

    def load_base_weights(self) -> None:
        """Loads a speech encoder saved alone, or that of a whole SeamlessM4T v2 checkpoint."""
        self.load("speech_encoder.")

    def run(self, values: Tensor, lengths: Sequence[Tensor]) -> Tensor:
        """Encodes features, see `ConformerEncoder.run`."""
        model, numbers = self.model, self.config.architecture
        values = run_conformers(
            model.encoder,
            model.feature_projection(values),  # (B, T, D)
            lengths[0],
            mix=self.layer_mix,
            layerdrop=model.config.speech_encoder_layerdrop,
            norm=model.encoder.layer_norm,
            chunks=(numbers.speech_encoder_chunk_size, numbers.speech_encoder_left_chunk_num),
        )
        values = values + 0.5 * model.intermediate_ffn(values)
        if model.adapter is not None:
            values = run_adapter(model.adapter.layers, values, lengths, model.config._attn_implementation)
        return model.inner_layer_norm(values)

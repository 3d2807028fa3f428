"""w2v-BERT 2.0's encoder: filter banks at 50 Hz -> frames at 50 Hz, or fewer with an adapter.

Seamless Communication et al., 2023, "Seamless: Multilingual Expressive and Streaming Speech Translation"
(arXiv:2312.05187). The checkpoint is under the MIT licence. The modules and their names are transformers'; the loop
over them is ours, see `speechlmm_encoders.conformer`.

Shapes: B batch, M mel bins, T frames, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

from speechlmm_core.attention.choice import choose_attention
from speechlmm_encoders.conformer import ConformerEncoder, run_adapter, run_conformers
from speechlmm_encoders.spec_augment import mask_spans

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.w2v_bert_2.config import W2vBert2EncoderConfig


class W2vBert2Encoder(ConformerEncoder):
    """See `W2vBert2EncoderConfig`; `.model` is transformers' `Wav2Vec2BertModel`."""

    config: W2vBert2EncoderConfig

    def __init__(self, config: W2vBert2EncoderConfig, ctx: BuildContext) -> None:
        options: dict[str, Any] = config.architecture.model_dump()
        if not config.apply_spec_augment:
            # Without a mask there is no vector to put in its place: it would be a parameter without a gradient.
            options.update(mask_time_prob=0.0, mask_feature_prob=0.0)
        options.update(
            apply_spec_augment=config.apply_spec_augment,
            attn_implementation=choose_attention(ctx, Wav2Vec2BertModel),
        )
        super().__init__(config, Wav2Vec2BertModel(Wav2Vec2BertConfig(**options)))

    def load_base_weights(self) -> None:
        """Loads a w2v-BERT model saved alone or with a head (CTC, classification)."""
        self.load("wav2vec2_bert.", unused=() if hasattr(self.model, "masked_spec_embed") else ("masked_spec_embed",))

    def run(self, values: Tensor, lengths: Sequence[Tensor]) -> Tensor:
        """Encodes features, see `ConformerEncoder.run`."""
        model = self.model
        values, _ = model.feature_projection(values)  # (B, T, D)
        if model.training and self.config.apply_spec_augment:
            vector = getattr(model, "masked_spec_embed", None)
            values = mask_spans(values, lengths[0], vector, self.config.architecture)
        values = run_conformers(
            model.encoder,
            values,
            lengths[0],
            mix=self.layer_mix,
            layerdrop=model.config.layerdrop,
        )
        if model.intermediate_ffn is not None:
            values = values + 0.5 * model.intermediate_ffn(values)
        if model.adapter is not None:
            if model.adapter.proj is not None:
                values = model.adapter.proj_layer_norm(model.adapter.proj(values))  # (B, T, D)
            values = run_adapter(model.adapter.layers, values, lengths, model.config._attn_implementation)
        return values

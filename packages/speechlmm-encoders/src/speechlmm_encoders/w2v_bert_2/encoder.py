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
from speechlmm_core.features import length_mask
from speechlmm_encoders.conformer import ConformerEncoder, run_adapter, run_conformers

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
        if self.config.pretrained is None:
            return
        from speechlmm_core.checkpoint.weights import load_weights
        from speechlmm_encoders.architecture import check_architecture

        check_architecture(self.config.architecture, self.config.pretrained)
        masked = ("wav2vec2_bert.masked_spec_embed", "masked_spec_embed")
        load_weights(
            self.model,
            self.config.pretrained,
            prefixes=("wav2vec2_bert.", ""),
            ignore=(*self.config.unused_tensors, *(() if hasattr(self.model, "masked_spec_embed") else masked)),
        )

    def run(self, values: Tensor, lengths: Sequence[Tensor]) -> Tensor:
        """Encodes features, see `ConformerEncoder.run`."""
        model = self.model
        values, _ = model.feature_projection(values)  # (B, T, D)
        values = run_conformers(
            model.encoder,
            self._augment(values, lengths[0]),
            lengths[0],
            wanted=self.config.wanted_layer,
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

    def _augment(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Masks spans of frames at training (SpecAugment, arXiv:1904.08779), in clips that are long enough."""
        if not (self.model.training and self.config.apply_spec_augment):
            return values
        if values.shape[1] < self.config.architecture.mask_time_length:
            return values
        return self.model._mask_hidden_states(values.clone(), attention_mask=length_mask(lengths, values.shape[1]))

"""The network of encoders of raw audio: convolutions, a projection, positions and a transformer.

The modules and their names are transformers'; the loop over them is ours, so that padding has no influence: theirs
lets it into the group norm of the base models.

Shapes: B batch, L samples, C channels, T frames, D hidden.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from speechlmm_core.attention.choice import choose_attention
from speechlmm_core.errors import CheckpointError
from speechlmm_core.features import Features, length_mask, zero_padding
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_encoders.transformer import LayerMix, run_layers

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.raw_audio.config import RawAudioEncoderConfig


class RawAudioEncoder(Encoder):
    """See `RawAudioEncoderConfig`; `.model` is a model of transformers."""

    config: RawAudioEncoderConfig
    model: Any
    model_class: ClassVar[Any]
    config_class: ClassVar[Any]

    def __init__(self, config: RawAudioEncoderConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        options: dict[str, Any] = config.architecture.model_dump()
        if not config.apply_spec_augment:
            # Without a mask there is no vector to put in its place: it would be a parameter without a gradient.
            options.update(mask_time_prob=0.0, mask_feature_prob=0.0)
        options.update({key: list(options[key]) for key in ("conv_dim", "conv_kernel", "conv_stride")})
        options.update(
            num_feat_extract_layers=len(config.architecture.conv_dim),
            mask_feature_min_masks=0,
            apply_spec_augment=config.apply_spec_augment,
            attn_implementation=choose_attention(ctx, self.model_class),
        )
        self.model = self.model_class(self.config_class(**options))
        self.layer_mix = LayerMix(config.num_layers + 1) if config.layer == "weighted" else None

    @abstractmethod
    def layer_call(self, num_frames: Tensor, hidden: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
        """How a layer is applied to (B, T, D).

        Args:
            num_frames: (B,) valid frames.
            hidden: (B, T, D) what the first layer gets.
        """

    def load_base_weights(self) -> None:
        """Loads a model saved alone or with a head (CTC, classification, pretraining)."""
        name = self.config.pretrained
        if name is None:
            return
        from speechlmm_core.checkpoint.weights import checkpoint_file, load_weights
        from speechlmm_encoders.architecture import check_architecture

        check_architecture(self.config.architecture, name)
        file = checkpoint_file(name, "preprocessor_config.json")
        trained = json.loads(file.read_text(encoding="utf-8")).get("do_normalize") if file else None
        if trained not in (None, self.config.do_normalize):
            self.normalisation_differs(name, trained)
        prefix = f"{self.model_class.base_model_prefix}."
        unused = () if hasattr(self.model, "masked_spec_embed") else (f"{prefix}masked_spec_embed", "masked_spec_embed")
        load_weights(
            self.model, name, prefixes=(prefix, ""), ignore=(*self.config.unused_tensors, *unused), rename=current_name
        )

    def normalisation_differs(self, name: str, trained: object) -> None:
        """What happens where the checkpoint's feature extractor disagrees with `do_normalize`.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            f"the checkpoint {name!r} was trained with do_normalize {trained!r}, "
            f"and the configuration says {self.config.do_normalize!r}; change it there"
        )

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes what `RawAudioPreprocessor` returned."""
        model = self.model
        values, lengths = inputs["input_values"], inputs["lengths"]
        num_frames = self.config.output_lengths(lengths)
        longest = self.config.output_lengths(values.shape[1])
        if 0 in (values.shape[0], longest):
            empty = values.new_zeros(values.shape[0], longest, self.config.hidden_size, dtype=self._dtype)
            return Features(empty, num_frames)
        hidden = self._convolve(values.to(self._dtype), lengths)  # (B, C, T)
        projected = model.feature_projection(hidden.transpose(1, 2))  # (B, T, D)
        hidden = projected[0] if isinstance(projected, tuple) else projected
        hidden = self._augment(hidden, num_frames)
        # The positional convolution sees zeros beyond the end of a clip that is alone, and so must it in a batch.
        hidden = zero_padding(hidden, num_frames)
        encoder = model.encoder
        hidden = hidden + encoder.pos_conv_embed(hidden)
        stable = self.config.architecture.do_stable_layer_norm
        if not stable:
            hidden = encoder.layer_norm(hidden)
        hidden = encoder.dropout(hidden)
        hidden = run_layers(
            encoder.layers,
            hidden,
            self.layer_call(num_frames, hidden),
            wanted=self.config.wanted_layer,
            norm=encoder.layer_norm if stable else None,
            mix=self.layer_mix,
            layerdrop=model.config.layerdrop,
        )
        return Features(zero_padding(hidden, num_frames), num_frames)

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.feature_projection.projection.weight.dtype

    def _convolve(self, values: Tensor, lengths: Tensor) -> Tensor:
        """(B, L) -> (B, C, T); no layer pads, so a valid frame sees valid samples only."""
        first, *others = self.model.feature_extractor.conv_layers
        hidden = values[:, None]  # (B, 1, L)
        if self.config.architecture.feat_extract_norm == "group":
            hidden = first.conv(hidden)  # (B, C, T_1)
            hidden = masked_channel_norm(hidden, self.config.conv_lengths(lengths)[0], first.layer_norm)
            hidden = first.activation(hidden)
        else:
            hidden = first(hidden)
        for layer in others:
            hidden = layer(hidden)
        return hidden

    def _augment(self, hidden: Tensor, num_frames: Tensor) -> Tensor:
        """Masks spans of frames at training (SpecAugment, arXiv:1904.08779), in clips that are long enough."""
        if not (self.model.training and self.config.apply_spec_augment):
            return hidden
        if hidden.shape[1] < self.config.architecture.mask_time_length:
            return hidden
        return self.model._mask_hidden_states(hidden.clone(), attention_mask=length_mask(num_frames, hidden.shape[1]))


def masked_channel_norm(values: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A group norm with one group a channel, over the valid frames of (B, C, T) only."""
    mask = length_mask(lengths, values.shape[2])[:, None, :]  # (B, 1, T)
    count = lengths.clamp(min=1)[:, None, None]
    exact = values.float()
    mean = exact.masked_fill(~mask, 0.0).sum(2, keepdim=True) / count  # (B, C, 1)
    centred = (exact - mean).masked_fill(~mask, 0.0)
    variance = centred.square().sum(2, keepdim=True) / count  # (B, C, 1)
    normed = centred * torch.rsqrt(variance + norm.eps)
    return (normed * norm.weight[:, None] + norm.bias[:, None]).to(values.dtype)


def current_name(name: str) -> str:
    """Today's name of a tensor of the weight-normalised convolution, which older checkpoints call otherwise."""
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        if name.endswith(f"pos_conv_embed.conv.{old}"):
            return f"{name.removesuffix(old)}parametrizations.weight.{new}"
    return name

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
from speechlmm_core.features import Features, zero_padding
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_encoders.raw_audio.norm import masked_channel_norm
from speechlmm_encoders.spec_augment import mask_spans
from speechlmm_encoders.transformer import LayerMix, keep_layers, run_layers

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
            apply_spec_augment=config.apply_spec_augment,
            attn_implementation=choose_attention(ctx, self.model_class),
        )
        self.model = self.model_class(self.config_class(**options))
        keep_layers(self.model, "encoder.layers", config.wanted_layer, norm=self._last_norm)
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
        unused = list(self.config.names_above("encoder.layers", self._last_norm))
        if not hasattr(self.model, "masked_spec_embed"):
            unused.append("masked_spec_embed")
        ignore = (*self.config.unused_tensors, *unused, *(prefix + name for name in unused))
        load_weights(self.model, name, prefixes=(prefix, ""), ignore=ignore, rename=current_name)

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
        hidden = self._convolve(values.to(self._dtype), inputs)  # (B, C, T)
        projected = model.feature_projection(hidden.transpose(1, 2))  # (B, T, D)
        hidden = projected[0] if isinstance(projected, tuple) else projected
        if model.training and self.config.apply_spec_augment:
            vector = getattr(model, "masked_spec_embed", None)
            hidden = mask_spans(hidden, num_frames, vector, self.config.architecture)
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
            norm=encoder.layer_norm if stable else None,
            mix=self.layer_mix,
            layerdrop=model.config.layerdrop,
        )
        return Features(zero_padding(hidden, num_frames), num_frames)

    @property
    def _last_norm(self) -> str | None:
        """Name of the norm after the last layer; the base models have theirs before the first."""
        return "encoder.layer_norm" if self.config.architecture.do_stable_layer_norm else None

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.feature_projection.projection.weight.dtype

    def _convolve(self, values: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, L) -> (B, C, T); no layer pads, so a valid frame sees valid samples only."""
        first, *others = self.model.feature_extractor.conv_layers
        hidden = values[:, None]  # (B, 1, L)
        if self.config.architecture.feat_extract_norm == "group":
            hidden = first.conv(hidden)  # (B, C, T_1)
            own = inputs.get("norm_lengths")
            own = self.config.conv_lengths(inputs["lengths"])[0] if own is None else own
            hidden = masked_channel_norm(hidden, own, first.layer_norm, inputs.get("norm_media"))
            hidden = first.activation(hidden)
        else:
            hidden = first(hidden)
        for layer in others:
            hidden = layer(hidden)
        return hidden


def current_name(name: str) -> str:
    """Today's name of a tensor of the weight-normalised convolution, which older checkpoints call otherwise."""
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        if name.endswith(f"pos_conv_embed.conv.{old}"):
            return f"{name.removesuffix(old)}parametrizations.weight.{new}"
    return name

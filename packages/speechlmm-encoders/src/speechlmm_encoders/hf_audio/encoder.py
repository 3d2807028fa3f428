"""Any audio encoder of transformers, called as it is: its layers, its attention, its names.

Padding is kept out in one of three ways, by what the model can do (see `FrontEnd.batching`). Models that let padding
into their norms or convolutions get the clips of each length apart, without padding; that is a loop over lengths, and
reads the lengths on the host. (With a mask, it is transformers that looks at it there.)

Shapes: B batch, L samples, T frames, D hidden, N layers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_MAPPING

from speechlmm_core.attention.choice import choose_attention
from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features, length_mask, zero_padding
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_encoders.raw_audio.encoder import current_name
from speechlmm_encoders.transformer import LayerMix

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.hf_audio.config import HFAudioEncoderConfig

logger = logging.getLogger(__name__)

PARTS = {
    "moonshine": ("moonshine.modeling_moonshine", "MoonshineEncoder"),
    "speech_to_text": ("speech_to_text.modeling_speech_to_text", "Speech2TextEncoder"),
    "whisper": ("whisper.modeling_whisper", "WhisperEncoder"),
}
"""Encoders that are a part of their model."""


class HFAudioEncoder(Encoder):
    """See `HFAudioEncoderConfig`; `.model` is the model of transformers, or its encoder."""

    config: HFAudioEncoderConfig
    model: Any

    def __init__(self, config: HFAudioEncoderConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        model_class = find_class(str(config.numbers["model_type"]))
        self._attention = choose_attention(ctx, model_class)
        self.model = self._build(model_class)
        self.layer_mix = LayerMix(config.num_layers + 1) if config.layer == "weighted" else None
        if config.front_end.batching == "apart":
            logger.info(
                "%s encodes the clips of each length apart: a %r would let padding into them",
                ctx.component or "hf_audio",
                config.numbers["model_type"],
            )

    def _build(self, model_class: Any) -> Any:
        config = self.config
        model_type = str(config.numbers["model_type"])
        options = {key: value for key, value in config.numbers.items() if key != "model_type"}
        if not config.apply_spec_augment:
            # Without a mask there is no vector to put in its place: it would be a parameter without a gradient.
            options.update(apply_spec_augment=False, mask_time_prob=0.0, mask_feature_prob=0.0)
        options["attn_implementation"] = self._attention
        if config.layer not in (-1, config.num_layers):
            # Transformers leaves out the states of layers that it drops, so that they could not be told apart.
            options.update(dict.fromkeys(("layerdrop", "encoder_layerdrop"), 0.0))
        try:
            return model_class(CONFIG_MAPPING[model_type](**options))
        except Exception as exc:  # transformers' strict dataclasses raise several errors of their own
            raise ConfigError(f"the encoder's `model:` makes no {model_type!r}: {exc}") from exc

    def load_base_weights(self) -> None:
        """Loads the encoder of a checkpoint, which may hold a decoder or a head besides."""
        name = self.config.pretrained
        if name is None:
            return
        from speechlmm_core.checkpoint.source import read_json_config
        from speechlmm_core.checkpoint.weights import load_weights
        from speechlmm_encoders.hf_audio.config import check_published

        check_published(self.config.numbers, read_json_config(name), name)
        base = self.model.base_model_prefix
        is_part = self.config.numbers["model_type"] in PARTS
        prefixes = ["model.encoder.", "encoder.", ""] if is_part else [f"{base}.", ""]
        ignore = list(self.config.unused_tensors)
        if not hasattr(self.model, "masked_spec_embed"):
            ignore += ["masked_spec_embed", f"{base}.masked_spec_embed"]
        load_weights(self.model, name, prefixes=prefixes, ignore=ignore, rename=current_name)

    def reset_buffers(self) -> None:
        """Recomputes the positions that transformers keeps beside the weights, by building the model once more."""
        saved = self.model.state_dict().keys()
        lost = [name for name, _ in self.model.named_buffers() if name not in saved]
        if not lost:
            return
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            fresh = self._build(type(self.model))
        for name in lost:
            own = self.model.get_buffer(name)
            folder, _, leaf = name.rpartition(".")
            self.model.get_submodule(folder).register_buffer(
                leaf, fresh.get_buffer(name).to(own.device), persistent=False
            )

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes what `HFAudioPreprocessor` returned.

        Raises:
            ConfigError: The model gives another number of frames than its configuration lets expect.
        """
        front_end = self.config.front_end
        frame_mask, lengths = inputs["frame_mask"], inputs["lengths"]
        values = inputs[front_end.input_name].to(next(self.model.parameters()).dtype)
        rows, longest = frame_mask.shape
        num_frames = frame_mask.sum(1)
        if 0 in (rows, longest):
            return Features(values.new_zeros(rows, longest, self.config.hidden_size), num_frames)
        if front_end.batching == "window":
            out = self._run(values, None)
        elif front_end.batching == "masked":
            mask = length_mask(lengths, values.shape[1])  # (B, L)
            out = self._run(values.masked_fill(~mask, 0.0), mask.long())
        else:
            out = self._run_apart(values, lengths, longest)
        return Features(zero_padding(out[:, :longest], num_frames), num_frames)

    def _run_apart(self, values: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """(B, T, D) of the clips of each length, encoded without padding."""
        out = values.new_zeros(len(values), longest, self.config.hidden_size)
        on_host: list[int] = lengths.tolist()
        for length in sorted(set(on_host)):
            frames = self.config.front_end.frames_of_features(length)
            if frames >= self.config.front_end.min_frames:
                rows = torch.tensor([row for row, own in enumerate(on_host) if own == length], device=values.device)
                out[rows, :frames] = self._run(values[rows, :length], None).to(out.dtype)
        return out

    def _run(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, D): the wanted state of the model."""
        depth, layer = self.config.num_layers, self.config.layer
        only_last = layer in (-1, depth)
        found = self.model(values, attention_mask=mask, output_hidden_states=not only_last)
        last: Tensor = found.last_hidden_state
        steps = values.shape[2] if self.config.front_end.batching == "window" else values.shape[1]
        expected = self.config.front_end.frames_of_features(steps)
        if last.shape[1:] != (expected, self.config.hidden_size):
            raise ConfigError(
                f"a model of the type {self.config.numbers['model_type']!r} gave {last.shape[1]} frames of width "
                f"{last.shape[2]} for an input of {steps} steps, expected {expected} of {self.config.hidden_size} by "
                "its configuration; hf_audio cannot take it"
            )
        if only_last:
            return last
        # The last state is the normalised one, which transformers lists for some models only.
        states = [*found.hidden_states[:depth], last]
        if self.layer_mix is None:
            return states[layer if isinstance(layer, int) else -1]
        shares = self.layer_mix.shares().to(last.dtype)
        total = torch.zeros_like(last)
        for share, state in zip(shares, states, strict=True):
            total = total + share * state
        return total


def find_class(model_type: str) -> Any:
    """The class of transformers that does the work.

    Raises:
        ConfigError: There is none for that type.
    """
    if model_type in PARTS:
        module, name = PARTS[model_type]
        return getattr(import_module(f"transformers.models.{module}"), name)
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_MAPPING:
        raise ConfigError(f"transformers has no model of the type {model_type!r}; check `model_type`")
    found = MODEL_MAPPING[CONFIG_MAPPING[model_type]]
    return found[0] if isinstance(found, tuple) else found

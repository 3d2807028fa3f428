"""Any audio encoder of transformers, called as it is: its layers, its attention, its names.

Padding is kept out in one of three ways, by what the model can do (see `FrontEnd.batching`). Models that let padding
into their norms or convolutions get the clips of each length apart, without padding; that is a loop over lengths, and
reads the lengths on the host. (With a mask, it is transformers that looks at it there.)

Shapes: B batch, L samples, T frames, D hidden, N layers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING

from speechlmm_core.attention.choice import choose_attention
from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features, length_mask, zero_padding
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_encoders.hf_audio.network import Network, network_of, take_layerdrop, without_weights
from speechlmm_encoders.raw_audio.encoder import current_name
from speechlmm_encoders.transformer import LayerMix, keep_layers, leave_out

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
        self._component = ctx.component or "hf_audio"
        self._attention = choose_attention(ctx, model_class)
        self.model = self._build(model_class)
        self._drop_layers()
        self.layer_mix = LayerMix(config.num_layers + 1) if config.layer == "weighted" else None
        if config.front_end.batching == "apart":
            logger.info(
                "%s encodes the clips of each length apart: a %r would let padding into them",
                self._component,
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
        try:
            numbers = CONFIG_MAPPING[model_type](**options)
            self._layerdrop = take_layerdrop(numbers)
            model = model_class(numbers)
        except Exception as exc:  # transformers' strict dataclasses raise several errors of their own
            raise ConfigError(f"the encoder's `model:` makes no {model_type!r}: {exc}") from exc
        if self._network is not None:
            keep_layers(model, self._network.layers, config.wanted_layer, norm=self._network.norm)
        return model

    @property
    def _network(self) -> Network | None:
        return network_of(self.config.numbers)

    @property
    def _gives_the_last(self) -> bool:
        """Whether the network's output is what is wanted, and no state within."""
        layer = self.config.layer
        return layer in (-1, self.config.num_layers) or (layer != "weighted" and self._network is not None)

    def _drop_layers(self) -> None:
        """Has the layers drop out at training; weighted sums take all of their states, as transformers lists them."""
        if self._layerdrop <= 0:
            return
        if self._network is None or not self._gives_the_last:
            why = (
                f"where the layers of a {self.config.numbers['model_type']!r} are is not known"
                if self._network is None
                else "`layer: weighted` takes the states of all of them"
            )
            logger.info(
                "%s leaves no layers out at training, although its layerdrop is %s: %s",
                self._component,
                self._layerdrop,
                why,
            )
            return
        for layer in self.model.get_submodule(self._network.layers):
            layer.register_forward_hook(partial(_left_out, probability=self._layerdrop), with_kwargs=True)

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
        unused = [] if hasattr(self.model, "masked_spec_embed") else ["masked_spec_embed"]
        if self._network is not None:
            unused += self.config.names_above(self._network.layers, self._network.norm)
        ignore = [*self.config.unused_tensors, *(prefix + name for prefix in prefixes for name in unused)]
        load_weights(self.model, name, prefixes=prefixes, ignore=ignore, rename=current_name)

    def reset_buffers(self) -> None:
        """Recomputes the positions that transformers keeps beside the weights, by building all but weights again."""
        saved = self.model.state_dict().keys()
        lost = [name for name, _ in self.model.named_buffers() if name not in saved]
        if not lost:
            return
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), without_weights():
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
        found = self.model(values, attention_mask=mask, output_hidden_states=not self._gives_the_last)
        last: Tensor = found.last_hidden_state
        steps = values.shape[2] if self.config.front_end.batching == "window" else values.shape[1]
        expected = self.config.front_end.frames_of_features(steps)
        if last.shape[1:] != (expected, self.config.hidden_size):
            raise ConfigError(
                f"a model of the type {self.config.numbers['model_type']!r} gave {last.shape[1]} frames of width "
                f"{last.shape[2]} for an input of {steps} steps, expected {expected} of {self.config.hidden_size} by "
                "its configuration; hf_audio cannot take it"
            )
        if self._gives_the_last:
            return last
        # The last state is the normalised one, which transformers lists for some models only.
        states = [*found.hidden_states[: self.config.num_layers], last]
        layer = self.config.layer
        return self.layer_mix(states) if self.layer_mix is not None else states[layer if isinstance(layer, int) else -1]


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


def _left_out(
    layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any, *, probability: float
) -> Any:
    """What a layer gave, or what it got, as a forward hook."""
    if not layer.training:
        return None
    before = args[0] if args else options["hidden_states"]
    if isinstance(output, tuple):
        return (leave_out(output[0], before, probability), *output[1:])
    return leave_out(output, before, probability)

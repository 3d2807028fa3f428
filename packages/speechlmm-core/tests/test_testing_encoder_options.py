"""The encoder contract on layers, chunks, video and whole models: clean encoders pass, planted faults are caught."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from speechlmm_core.chunking import Chunker, merge_tensors
from speechlmm_core.features import Features, zero_padding
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.interfaces.modules import Encoder, Preprocessor
from speechlmm_core.testing import encoder_checks, encoder_contract, noise_video
from speechlmm_core.testing.toy_video import ToyVideoEncoder, ToyVideoEncoderConfig, ToyVideoPreprocessor

HOP, WIDTH, DEPTH = 160, 8, 2


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(DEPTH + 1))


class LayeredPreprocessor(Preprocessor):
    def __init__(self, config):
        self.config = config

    def __call__(self, media):
        chunker, fault = self.config.chunker, self.config.fault
        chunks = [chunker.split(one.num_samples) for one in media] if chunker else []
        values = [one.values for one in media]
        if chunker:
            values = [one.values[c.start : c.end] for one, cs in zip(media, chunks, strict=True) for c in cs]
        lengths = torch.tensor([len(one) for one in values], dtype=torch.int64)
        batch = torch.zeros(len(values), int(lengths.max()) if values else 0)
        for row, one in zip(batch, values, strict=True):
            row[: len(one)] = one
        merged = merge_tensors(chunks, batch.shape[1] // HOP) if chunker else {}
        if merged and fault == "a frame of each medium is lost":
            merged["merged_lengths"] = merged["merged_lengths"] - 1
        if merged and fault == "the chunks' rows are mixed up":
            merged["merge_index"] = merged["merge_index"].roll(1, 0)
        return {"input_values": batch, "lengths": lengths, **merged}


class LayeredEncoder(Encoder):
    """Frames of 10 ms, and layers that see one frame each."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = nn.Sequential(nn.Linear(HOP, WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))
        mixed = config.layer == "weighted"
        if mixed and config.fault == "the weights are part of the network":
            self.model.append(Mix())
        self.layer_mix = Mix() if mixed and config.fault != "the weights are part of the network" else None

    def encode(self, inputs):
        values, lengths = inputs["input_values"], inputs["lengths"] // HOP
        frames = values.shape[1] // HOP
        state = self.model[0](values[:, : frames * HOP].reshape(len(values), frames, HOP))  # (B, T, D)
        states = [state]
        for layer in self.model[1 : DEPTH + 1]:
            states.append(states[-1] + torch.tanh(layer(states[-1])))
        if self.layer_mix is not None:
            shares = self.layer_mix.weights.softmax(0)
            shares = shares.detach() if self.config.fault == "the weights do not learn" else shares
            hidden = sum(share * one for share, one in zip(shares, states, strict=True))
        else:
            ignored = self.config.fault == "the layer is ignored" or self.config.layer == "weighted"
            hidden = states[-1 if ignored else self.config.layer]
        if self.config.fault == "chunks differ beside others":
            hidden = hidden + (len(values) if "merge_index" in inputs else 0)
        return Features(zero_padding(hidden, lengths), lengths)


class LayeredConfig(EncoderConfig):
    type: Literal["test.layered"] = "test.layered"
    layer: int | Literal["weighted"] = -1
    fault: str = ""

    @property
    def chunker(self):
        if self.chunk_seconds is None:
            return None
        rates = {"sampling_rate": 16_000, "hop": HOP, "num_frames": lambda n: n // HOP}
        return Chunker.from_seconds(self.chunk_seconds, self.chunk_overlap_seconds, **rates)

    @property
    def sampling_rate(self):
        return 16_000

    @property
    def hidden_size(self):
        return WIDTH

    @property
    def frame_rate(self):
        return Fraction(100)

    def output_lengths(self, num_samples):
        whole = num_samples // HOP
        return whole if self.fault != "chunks are counted otherwise" or self.chunk_seconds is None else whole + 1

    def build_preprocessor(self):
        return LayeredPreprocessor(self)

    def build(self, ctx):
        return LayeredEncoder(self)


LAYERED = {
    "the weights are part of the network": "weighted_layers",
    "the weights do not learn": "weighted_layers",
    "the layer is ignored": "chosen_layer",
    "a frame of each medium is lost": "chunks",
    "chunks are counted otherwise": "chunks",
    "chunks differ beside others": "chunks",
    "the chunks' rows are mixed up": "chunks",
}


def only(config, name, **options):
    (check,) = [check for check in encoder_checks(config, **options) if check.name == name]
    return check


def test_a_clean_encoder_with_layers_passes():
    encoder_contract(LayeredConfig(), skip=("config_import",))
    encoder_contract(LayeredConfig(chunk_seconds=0.2, chunk_overlap_seconds=0.02), skip=("config_import",))


@pytest.mark.parametrize(("fault", "name"), LAYERED.items(), ids=LAYERED.keys())
def test_a_fault_of_layers_and_chunks_is_caught(fault, name):
    with pytest.raises(AssertionError, match=f"encoder 'test.layered' fails '{name}'"):
        only(LayeredConfig(fault=fault), name)()


class PlantedVideo(ToyVideoEncoder):
    """The clean toy with a fault."""

    def encode(self, inputs):
        fault, pixels = self.config.fault, inputs["pixel_values_videos"]
        if fault == "normalised over the batch" and pixels.numel():
            inputs = {**inputs, "pixel_values_videos": pixels.float() - pixels.float().mean()}
        clean = super().encode(inputs)
        values = clean.values
        if fault == "padding seen" and pixels.numel():
            values = values + pixels.float().mean((1, 2, 3)).to(values.dtype)[:, None, None] / 255
        if fault == "pixels ignored":
            values = values * 0 + self.model.bias
        if fault == "neighbours seen":
            values = values + values.mean(0, keepdim=True)
        if fault == "bfloat16 not finite" and values.dtype == torch.bfloat16:
            values = values / 0
        if fault == "detached":
            values = values.detach()
        return Features(values, clean.lengths)


class PlantedVideoConfig(ToyVideoEncoderConfig):
    type: Literal["test.video"] = "test.video"
    fault: str = ""
    preprocessor: ClassVar[Any] = ToyVideoPreprocessor

    def build(self, ctx):
        return PlantedVideo(self)


VIDEO = {
    "normalised over the batch": "padding_amount",
    "padding seen": "padding_content",
    "pixels ignored": "gradients_reach_inputs",
    "neighbours seen": "gradients_reach_inputs",
    "bfloat16 not finite": "in_a_bfloat16_model",
    "detached": "in_a_model",
}


def test_a_clean_video_encoder_passes(caplog):
    with caplog.at_level(logging.INFO, "speechlmm_core.testing"):
        encoder_contract(ToyVideoEncoderConfig(), skip=("config_import",))  # a module of the kit imports torch
    assert "'pixel_values_videos' holds integers, which take no gradient" in caplog.text
    encoder_contract(PlantedVideoConfig(), medium=noise_video(25, 6, 10), skip=("config_import",))


@pytest.mark.parametrize(("fault", "name"), VIDEO.items(), ids=VIDEO.keys())
def test_a_fault_of_a_video_encoder_is_caught(fault, name):
    with pytest.raises(AssertionError, match=f"encoder 'test.video' fails '{name}'"):
        only(PlantedVideoConfig(fault=fault), name, medium=noise_video(25, 8, 8))()


def test_noise_of_a_seed_is_the_same():
    make = noise_video(25, 4, 6)
    assert torch.equal(make(5, 1).values, make(5, 1).values)
    assert make(5, 1).values.shape == (5, 4, 6)
    assert make(5, 1).values.dtype == torch.uint8
    assert make(50, 1).duration_s == 2

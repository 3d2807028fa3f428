"""Every adapter at work in models: text decoders of all widths, packed as padded, and learning from sound and sight."""

from __future__ import annotations

import math
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import pytest
import torch

from speechlmm_core.config import ModelConfig
from speechlmm_core.features import Features
from speechlmm_core.interfaces.adapter import adapters
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.media.medium import Medium
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing import noise_audio, noise_video
from speechlmm_core.testing.composite import new_model, tiny_model_config
from speechlmm_core.testing.in_model import media_in_items, run_in_model
from speechlmm_core.testing.presets import installed_presets
from speechlmm_core.testing.toy import ToyEncoderConfig
from speechlmm_core.testing.toy_video import ToyVideoEncoderConfig
from speechlmm_core.wiring import wire

ADAPTERS: dict[str, dict[str, Any]] = {
    **installed_presets("audio_adapter", "tiny_"),
    "cif_with_ctc": {**installed_presets("audio_adapter", "tiny_cif")["tiny_cif"], "ctc_loss_weight": 0.5},
    "ctc_of_tokens": {"type": "ctc", "vocabulary": "text_decoder", "drop_blanks": True, "max_compressed_length": 0.5},
    "conv_cif": {"type": "stack", "stages": [{"type": "conv"}, {"type": "cif", "hidden_size": 16}]},
    "ctc_mlp": {"type": "stack", "stages": [{"type": "ctc"}, {"type": "mlp", "hidden_size": 32}]},
}
ROLES = ("audio", "video")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Widths, heads and vocabularies in the proportions of language models of 1 to 70 billion parameters.
@pytest.mark.parametrize(("width", "heads", "vocab"), [(64, 2, 300), (96, 3, 301), (128, 4, 512), (256, 8, 640)])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_reach_every_text_decoder(name, width, heads, vocab):
    llama = {"model_type": "llama", "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads}
    model = {**llama, "intermediate_size": width, "num_hidden_layers": 1, "vocab_size": vocab}
    towers = {f"{role}_adapter": ADAPTERS[name] for role in ROLES}
    config = ModelConfig.model_validate(
        {
            "audio_encoder": installed_presets("audio_encoder", "tiny_hubert")["tiny_hubert"],
            "video_encoder": installed_presets("video_encoder", "tiny_auto_avsr")["tiny_auto_avsr"],
            **towers,
            "text_decoder": {"type": "causal_lm", "model": model},
        }
    )
    contexts = wire(config).contexts
    for role, rate in zip(ROLES, (50, 25), strict=True):
        ctx = contexts[f"{role}_adapter"]
        assert (ctx.input_size, ctx.output_size, ctx.vocab_size, ctx.frame_rate) == (32, width, vocab, Fraction(rate))
        adapter = config.inputs[role].adapter.build(ctx).eval()
        out = adapter(Features(torch.randn(2, 30, 32), torch.tensor([30, 17])))
        assert out.values.shape[2] == width
        heads_of_tokens = [p for n, p in adapter.named_parameters() if len(p) == vocab + 1]
        assert bool(heads_of_tokens) == (name in ("ctc_of_tokens", "ctc_mlp"))


def toy(role: str, adapter: Any, frames: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, list[Medium]]]:
    """An adapter behind a toy encoder, and media of so many frames."""
    encoder = ToyEncoderConfig() if role == "audio" else ToyVideoEncoderConfig()
    make, hop = (noise_audio(16_000), 320) if role == "audio" else (noise_video(25, 8, 8), 1)
    media = [make(count * hop, seed) for seed, count in enumerate(frames)]
    return {f"{role}_encoder": encoder, f"{role}_adapter": adapter}, {role: media}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_packed_is_padded(name, role):
    towers, media = toy(role, adapters.validate(ADAPTERS[name]), (60, 34, 47))
    found = []
    for packed in (True, False):
        ran = run_in_model(towers, media, packed=packed)
        ran.output.loss.backward()
        gradients = {key: p.grad for key, p in ran.model.named_parameters() if p.grad is not None}
        found.append((ran.output.losses, gradients))
    (losses, gradients), (padded_losses, padded_gradients) = found
    assert losses.keys() == padded_losses.keys()
    for key, loss in losses.items():
        torch.testing.assert_close(loss.sum, padded_losses[key].sum, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == padded_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, padded_gradients[key], rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}{m}"
        )


TEXTS = ("abab", "cdc", "ee", "fgfgf")


def tones(number: int) -> Medium:
    """One of a few clips of 0.8 s that sound unlike each other."""
    time = torch.arange(12_800) / 16_000
    wave = sum(torch.sin(2 * torch.pi * pitch * time) for pitch in (200.0 * (number + 1), 330.0 * (number + 2)))
    return Medium(0.2 * torch.as_tensor(wave), 16_000)


def stripes(number: int) -> Medium:
    """One of a few clips of 20 frames that look unlike each other."""
    frames = torch.zeros(20, 96, 96, dtype=torch.uint8)
    frames[:, :, 8 * number :: 8 * (number + 2)] = 200
    frames[:, 24 * number : 24 * number + 24] += 50
    return Medium(frames, 25)


def losses_over_training(role: str, name: str, *, steps: int, lr: float) -> list[dict[str, float]]:
    """The losses per unit, step by step, of a tiny model that is trained on four clips."""
    preset, make = ("tiny_hubert", tones) if role == "audio" else ("tiny_auto_avsr", stripes)
    towers = {
        f"{role}_encoder": encoders.validate(installed_presets(f"{role}_encoder", preset)[preset]),
        f"{role}_adapter": adapters.validate(ADAPTERS[name]),
    }
    with ExitStack() as stack:
        config = stack.enter_context(tiny_model_config(towers))
        stack.enter_context(media_in_items(config))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(0)
        model, processor = new_model(config).train(), SpeechLMMProcessor.from_config(config)
        chats = [
            [
                {"role": "user", "content": [{"type": role, "medium": make(number), "transcript": text}]},
                {"role": "assistant", "content": text},
            ]
            for number, text in enumerate(TEXTS)
        ]
        batch = processor.collate([processor.sample(chat, with_answer=True) for chat in chats], packed=True)
        optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
        history: list[dict[str, float]] = []
        for _ in range(steps):
            output = model(**batch)
            found = {key: float(one.sum.detach()) / batch["num_items"][one.unit] for key, one in output.losses.items()}
            history.append({**found, "all": float(output.loss.detach())})
            optimiser.zero_grad()
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    return history


def assert_falls(history: list[dict[str, float]]) -> None:
    first, last = history[0], {key: min(row[key] for row in history[-5:]) for key in history[0]}
    assert last["all"] <= first["all"] / 2, (first, last)
    assert last["lm"] <= first["lm"] / 2, (first, last)
    for key in first:
        assert last[key] < first[key], (key, first, last)


# Four answers to one question cannot be told apart without the medium: ln 4 for each answer of some five tokens.
DEAF = math.log(4) / 5


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_tiny_model_learns_to_hear(name):
    history = losses_over_training("audio", name, steps=60, lr=3e-3)
    assert_falls(history)
    if name.startswith("tiny_"):
        assert history[-1]["lm"] < DEAF / 2


@pytest.mark.parametrize("name", ["tiny_mlp", "tiny_cif"])
def test_a_tiny_model_learns_to_see(name):
    history = losses_over_training("video", name, steps=30, lr=5e-3)
    assert_falls(history)
    assert history[-1]["lm"] < DEAF / 2

"""The FLOPs that a training's figures rest on, against counting a real step, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from speechlmm_core.interfaces.objective import weight_at
from speechlmm_core.media.medium import Medium
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.compose import validate
from speechlmm_train.run import build_model
from speechlmm_train.speed.flops import count_flops
from speechlmm_train.speed.peak import peak_flops
from speechlmm_train.trainer.checks import freeze_for
from speechlmm_train.trainer.tally import Work

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, LAYERS, INNER, VOCAB = 64, 2, 160, 320
DECODER = {
    "type": "causal_lm",
    "tokenizer": "bytes",
    "chat_template": "chatml",
    "model": {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
}
SPEECH = {
    "audio_encoder": {
        "type": "whisper_unrestricted",
        "model": {
            "num_mel_bins": 16,
            "d_model": 48,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 96,
            "max_source_positions": 1500,
        },
    },
    "audio_adapter": {"type": "mlp", "stack": 4, "num_layers": 2},
    "objectives": {"ctc": {"type": "ctc", "weight": 0.5}},
}
LORA = {"name": "asr", "target_module": "text_decoder", "r": 4}


def config_of(model, **training):
    plain = {
        "model": {"text_decoder": DECODER, "attn_implementation": "eager", **model},
        "data": {"train": ["nothing.jsonl"]},
        "training": {"output_dir": "out", "max_steps": 1, "bf16": False, "report_to": [], **training},
    }
    return validate(plain)


def a_batch(processor, seconds):
    """Conversations of other lengths than those that are counted."""
    samples = []
    for number, length in enumerate(seconds):
        text = "the answer to a question " * (1 + number)
        question = [{"type": "text", "text": "what do they say?"}]
        if processor.inputs:
            question.insert(0, {"type": "audio", "path": f"{length}", "transcript": text[:10]})
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        samples.append(processor.sample(chat, with_answer=True))
    return samples


@pytest.fixture
def made_audio(monkeypatch):
    """Audio items of which the path is the length."""
    from speechlmm_encoders.whisper.config import UnrestrictedWhisperEncoderConfig as Config

    monkeypatch.setattr(
        Config, "load", lambda self, item: Medium(torch.zeros(int(float(item["path"]) * 16_000)), 16_000)
    )


@pytest.mark.parametrize(
    ("model", "training"),
    [
        (SPEECH, {}),
        (SPEECH, {"freeze_modules": ["audio_encoder", "text_decoder"]}),
        (SPEECH, {"freeze_modules": ["audio_encoder"], "lora_adapters": [LORA]}),
        ({}, {}),
    ],
    ids=["everything", "adapter", "lora", "text"],
)
def test_the_polynomial_counts_what_a_real_step_computes(made_audio, model, training):
    config = config_of(model, **training)
    stage = config.resolved_stages()[0]
    processor = SpeechLMMProcessor.from_config(config.model)
    flops = count_flops(config, stage, processor)
    trained = build_model(config, None)
    freeze_for(trained, stage)
    trained.train()
    weights = {name: weight_at(o.weight, 1.0) for name, o in config.model.all_objectives.items()}
    work, counted = Work(processor), 0
    for sample in a_batch(processor, (1.3, 3.7, 7.1)):  # one by one: padding is no part of what is needed
        batch = processor.collate([sample])
        work.add(batch)
        # The head's gradient is added up in place, which torch's counter does not know.
        added = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * math.prod(a) * b[1]}
        with FlopCounterMode(display=False, custom_mapping=added) as counter:
            trained(objective_weights=weights, **batch).loss.backward()
        counted += counter.get_total_flops()
    assert flops(work.sums) == pytest.approx(counted, rel=0.02)


WINDOWED = {**SPEECH["audio_encoder"]["model"], "max_source_positions": 300}  # 6 s


def test_of_a_window_counts_what_is_filled(monkeypatch):
    from speechlmm_encoders.whisper.config import WhisperEncoderConfig as Config

    monkeypatch.setattr(
        Config, "load", lambda self, item: Medium(torch.zeros(int(float(item["path"]) * 16_000)), 16_000)
    )
    encoder = {"type": "whisper", "model": WINDOWED}
    config = config_of({**SPEECH, "audio_encoder": encoder}, freeze_modules=["audio_encoder"])
    stage = config.resolved_stages()[0]
    processor = SpeechLMMProcessor.from_config(config.model)
    flops = count_flops(config, stage, processor)
    model = build_model(config, None)
    freeze_for(model, stage)
    model.train()
    weights = {name: weight_at(o.weight, 1.0) for name, o in config.model.all_objectives.items()}
    added = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * math.prod(a) * b[1]}
    # What a window takes by hand: per frame (twice as many before the second convolution), and per pair of frames.
    width, inner, mels, frames = 48, 96, 16, 300
    convolutions = 2 * frames * 2 * 3 * mels * width + 2 * frames * 3 * width * width
    window = convolutions + 2 * (2 * frames * (4 * width**2 + 2 * width * inner) + 4 * frames**2 * width)
    for seconds in (1.2, 6.0, 9.0):
        (sample,) = a_batch(processor, (seconds,))
        batch, work = processor.collate([sample]), Work(processor)
        work.add(batch)
        with FlopCounterMode(display=False, custom_mapping=added) as counter:
            model(objective_weights=weights, **batch).loss.backward()
        real = int(seconds * 50)
        assert work.sums["audio_frames"] == real
        rows = len(batch["media"]["audio"]["inputs"]["lengths"])
        assert rows == math.ceil(seconds / 6)
        rest = counter.get_total_flops() - rows * window
        assert rest > 0
        assert flops(work.sums) == pytest.approx(rest + window * real / frames, rel=0.02)


def test_adapters_of_the_checkpoint_count(made_audio):
    """An adapter that stays as it is takes its forward pass, and the way back to what is before it."""
    config = config_of(SPEECH, freeze_modules=["audio_encoder"], lora_adapters=[{**LORA, "name": "new"}])
    stage = config.resolved_stages()[0]
    processor = SpeechLMMProcessor.from_config(config.model)
    new = list(config.training.lora_adapters)
    old = new[0].model_copy(update={"name": "old"})
    counted = {
        names: count_flops(config, stage, processor, adapters=[*old_ones, *new]).position
        for names, old_ones in (("new", []), ("both", [old]))
    }
    assert count_flops(config, stage, processor).position == counted["new"]
    sizes = [(WIDTH, WIDTH)] * 4 + [(WIDTH, INNER)] * 2 + [(INNER, WIDTH)]
    low_rank = LAYERS * sum(4 * (one + other) for one, other in sizes)
    assert counted["both"] - counted["new"] == pytest.approx(4 * low_rank, rel=0.01)


def test_text_alone_by_hand():
    """Six FLOPs a weight and position (two forward, four backward), and attention's products."""
    config = config_of({})
    flops = count_flops(config, config.resolved_stages()[0], SpeechLMMProcessor.from_config(config.model))
    weights = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
    assert flops.position == pytest.approx(6 * weights, rel=1e-3)
    assert flops.position_square == pytest.approx(LAYERS * 3 * 2 * 2 * WIDTH, rel=1e-3)
    assert flops.supervised == pytest.approx(6 * WIDTH * VOCAB, rel=1e-3)
    assert flops.sample == pytest.approx(0, abs=1e-3 * 100 * flops.position)


def test_padding_is_told_from_what_is_real(made_audio):
    config = config_of(SPEECH)
    processor = SpeechLMMProcessor.from_config(config.model)
    samples = a_batch(processor, (1.0, 2.0, 4.0))
    padded, packed = Work(processor), Work(processor)
    padded.add(processor.collate(samples, packed=False))
    packed.add(processor.collate(samples, packed=True))
    lengths = np.array([sample.layout.num_positions for sample in samples])
    assert padded.sums["positions"] == packed.sums["positions"] == packed.sums["held_positions"] == lengths.sum()
    assert padded.sums["held_positions"] == 3 * lengths.max()
    assert padded.sums["position_squares"] == packed.sums["position_squares"] == (lengths**2).sum()
    assert packed.sums["frames"] == packed.sums["audio_frames"] == 50 * 7
    assert packed.sums["held_frames"] == 3 * 50 * 4
    assert packed.sums["audio_seconds"] == pytest.approx(7.0)
    assert packed.sums["audio_frame_squares"] == 50**2 * (1 + 4 + 16)


@pytest.mark.parametrize(
    ("name", "half", "fp32"),
    [
        ("NVIDIA H200", 989.4, 66.9),
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756.0, 51.0),
        ("NVIDIA H100 NVL", 835.5, 60.0),
        ("NVIDIA A100-SXM4-80GB", 312.0, 19.5),
        ("NVIDIA A100 80GB PCIe", 312.0, 19.5),
        ("NVIDIA GH200 480GB", 989.4, 66.9),
        ("NVIDIA L40S", 362.0, 91.6),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA RTX A4000", None, None),
        ("NVIDIA L40", None, None),
        ("Radeon", None, None),
    ],
)
def test_peaks_by_name(name, half, fp32):
    tera = 1e12
    assert peak_flops(name, half=True, tf32=False) == (half and half * tera)
    assert peak_flops(name, half=False, tf32=False) == (fp32 and fp32 * tera)

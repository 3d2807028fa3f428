"""The losses that adapters bring, from the conversation to the model's output, with audio and video in one batch."""

from __future__ import annotations

import pytest
import torch

from speechlmm_adapters.cif.config import CIFAdapterConfig
from speechlmm_adapters.cif.objective_config import CIFQuantityObjectiveConfig
from speechlmm_adapters.ctc.config import CTCAdapterConfig
from speechlmm_adapters.ctc.objective_config import AdapterCTCObjectiveConfig
from speechlmm_core.features import Features
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing.checks import collect, select
from speechlmm_core.testing.composite import new_model, tiny_model_config
from speechlmm_core.testing.in_model import media_in_items
from speechlmm_core.testing.media import noise_audio, noise_video
from speechlmm_core.testing.objective import ObjectiveKit
from speechlmm_core.testing.toy import ToyEncoderConfig
from speechlmm_core.testing.toy_video import ToyVideoEncoderConfig

CIF = CIFAdapterConfig(mean_frame_rate=20, quantity_loss_weight=0.7, ctc_loss_weight=[(0, 1), (1, 0.5)])
CTC = CTCAdapterConfig(vocabulary="characters", merge="weighted", max_compressed_length=4)


class OwnObjectiveKit(ObjectiveKit):
    """The contract of an objective whose stage is an adapter with extras: they are made of the stage's frames."""

    def stages(self, rows, padding=0.0):
        found = super().stages(rows, padding)
        for name, stage in found.items():
            labels = len(self.config.characters) + 1 if isinstance(self.config, AdapterCTCObjectiveConfig) else 1
            weight = torch.randn(labels, stage.values.shape[2], generator=torch.Generator().manual_seed(0))
            extras = {
                "quantity": torch.where(stage.mask(), stage.values.sigmoid().sum(2), 0).sum(1),
                "ctc_frames": stage.values,
                "ctc_lengths": stage.lengths,
                "ctc_weight": weight,
            }
            found[name] = Features(stage.values, stage.lengths, extras)
        return found

    def output(self, module, dtype=torch.float32):
        return self.loss(module).sum.reshape(1)  # without parameters there is nothing in bfloat16


OWN = [CIFQuantityObjectiveConfig(), AdapterCTCObjectiveConfig(vocabulary="characters")]
CHECKS = [
    check for config in OWN for check in select(collect(OwnObjectiveKit(config, ()), f"objective {config.type!r}"), ())
]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_objective_contract(check):
    check()


@pytest.fixture(scope="module")
def built():
    """A model with CIF on audio and CTC on video."""
    towers = {
        "audio_encoder": ToyEncoderConfig(),
        "audio_adapter": CIF,
        "video_encoder": ToyVideoEncoderConfig(),
        "video_adapter": CTC,
    }
    with tiny_model_config(towers) as config, media_in_items(config):
        yield new_model(config), SpeechLMMProcessor.from_config(config)


def chat(*media, answer="a reply"):
    """A conversation about media: (input, frames of the encoder, transcript or None)."""
    makers = {"audio": (noise_audio(16_000), 320), "video": (noise_video(height=8, width=8), 1)}
    content = []
    for name, frames, transcript in media:
        make, hop = makers[name]
        known = {} if transcript is None else {"transcript": transcript}
        content.append({"type": name, "medium": make(frames * hop, frames), **known})
    content.append({"type": "text", "text": "Write it down."})
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


CHATS = [
    chat(("audio", 40, "one two"), ("video", 33, "see you"), answer="one"),
    chat(("audio", 25, None)),
    chat(("video", 21, "soon")),
    chat(("audio", 30, "yes"), ("audio", 3, "far too long for three frames")),
    chat(answer="text alone"),
]
NAMES = {"lm", "audio_adapter_quantity", "audio_adapter_ctc", "video_adapter_ctc"}


def losses(model: SpeechLMM, processor: SpeechLMMProcessor, chats, *, packed=False):
    batch = processor.collate([processor.sample(one, with_answer=True) for one in chats], packed=packed)
    return model(**batch), batch


def test_a_mixed_batch_keeps_every_loss(built):
    model, processor = built
    model.train()
    out, batch = losses(model, processor, CHATS)
    assert out.losses.keys() == NAMES
    counts = batch["num_items"]
    tokens = [len(processor.tokenizer.encode(text)) for text in ("one two", "yes")]
    assert (counts["audio_adapter_quantity_valid"], counts["audio_adapter_quantity_infeasible"]) == (2, 1)
    assert counts["audio_adapter_quantity_targets"] == sum(tokens)
    assert (counts["audio_adapter_ctc_targets"], counts["audio_adapter_ctc_infeasible"]) == (len("one twoyes"), 1)
    assert (counts["video_adapter_ctc_targets"], counts["video_adapter_ctc_valid"]) == (len("see yousoon"), 2)
    assert {name: loss.unit for name, loss in out.losses.items()} == {
        "lm": "supervised_tokens",
        "audio_adapter_quantity": "audio_adapter_quantity_valid",
        "audio_adapter_ctc": "audio_adapter_ctc_targets",
        "video_adapter_ctc": "video_adapter_ctc_targets",
    }
    quantity = out.stages["audio_adapter"].extras["quantity"]
    expected = (quantity[0] - tokens[0]).abs() + (quantity[2] - tokens[1]).abs()
    torch.testing.assert_close(out.losses["audio_adapter_quantity"].sum, expected)
    assert out.stages["audio_adapter"].lengths[[0, 2]].tolist() == tokens
    alone = [losses(model, processor, [one])[0].losses for one in CHATS]
    assert [set(one) for one in alone] == [
        NAMES,
        NAMES - {"video_adapter_ctc"},
        {"lm", "video_adapter_ctc"},
        NAMES - {"video_adapter_ctc"},
        {"lm"},
    ]
    for name in NAMES:
        total = sum(one[name].sum for one in alone if name in one)
        torch.testing.assert_close(out.losses[name].sum, total, rtol=1e-5, atol=1e-4)
    weights = {"lm": 1.0, "audio_adapter_quantity": 0.7, "audio_adapter_ctc": 0.5, "video_adapter_ctc": 0.1}
    total = sum(weights[name] * one.sum / counts[one.unit] for name, one in out.losses.items())
    torch.testing.assert_close(out.loss, total)


def test_packed_equals_padded(built):
    model, processor = built
    model.train()
    found = []
    for packed in (False, True):
        model.zero_grad()
        out, _ = losses(model, processor, CHATS, packed=packed)
        out.loss.backward()
        found.append((out.losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    model.zero_grad()
    (padded, padded_grads), (packed, packed_grads) = found
    for name in NAMES:
        torch.testing.assert_close(packed[name].sum, padded[name].sum, rtol=1e-5, atol=1e-5)
    assert {"audio_adapter.ctc_head.weight", "video_adapter.model.weight"} < padded_grads.keys()
    for name, grad in padded_grads.items():
        torch.testing.assert_close(packed_grads[name], grad, rtol=1e-4, atol=1e-5)


def test_every_batch_counts_the_same_units(built):
    """Ranks add up their counts position by position."""
    _, processor = built
    counts = [
        processor.collate([processor.sample(one, with_answer=True)])["num_items"] for one in (*CHATS, chat(answer="x"))
    ]
    assert len({tuple(one) for one in counts}) == 1
    assert {unit: number for unit, number in counts[-1].items() if number} == {"supervised_tokens": 2}


def test_targets_need_the_frames_before_merging(built):
    """The video adapter gives four frames at most, and still aligns a longer transcript with those that flow in."""
    model, processor = built
    long = "a transcript of many letters"
    out, batch = losses(model, processor, [chat(("video", 40, long)), chat(("video", 9, long))])
    assert batch["num_items"]["video_adapter_ctc_targets"] == len(long)
    assert batch["num_items"]["video_adapter_ctc_infeasible"] == 1
    assert out.stages["video_adapter"].lengths.tolist() == [4, 4]
    assert float(out.losses["video_adapter_ctc"].sum.detach()) > 0


@pytest.mark.parametrize("training", [True, False])
def test_losses_see_the_frames_that_were_planned(built, training):
    """In training and in eval mode: a frame for each token, and no position more."""
    model, processor = built
    model.train(training)
    chats = [chat(("audio", 40, "one two")), chat(("audio", 30, "yes")), chat(("audio", 20, ""))]
    tokens = [len(processor.tokenizer.encode(text)) for text in ("one two", "yes")] + [0]
    out, batch = losses(model, processor, chats)
    assert batch["media"]["audio"]["lengths"].tolist() == tokens
    assert out.stages["audio_adapter"].lengths.tolist() == tokens
    assert out.stages["text_decoder"].values.shape[1] == batch["input_ids"].shape[1]
    quantity = out.stages["audio_adapter"].extras["quantity"]
    assert batch["num_items"]["audio_adapter_quantity_valid"] == 3
    torch.testing.assert_close(out.losses["audio_adapter_quantity"].sum, (quantity - torch.tensor(tokens)).abs().sum())
    silence, counted = losses(model, processor, chats[2:])
    assert counted["num_items"]["audio_adapter_quantity_valid"] == 1
    silence.loss.backward()
    assert model.audio_adapter.model.out.bias.grad.item() > 0  # fewer frames, please
    model.zero_grad()


def test_a_generated_answer_does_not_lean_on_a_transcript(built):
    """The same is put out whether a message has its medium's transcript or not."""
    model, processor = built
    model.eval()
    found = []
    for transcript in ("one two", None):
        batch = processor([chat(("audio", 40, transcript))[:1]])
        with torch.no_grad():
            found.append(model.encode(batch["media"])["audio_adapter"])
        assert batch["media"]["audio"]["lengths"].tolist() == [40]
    assert torch.equal(found[0].values, found[1].values)


def test_answers_need_no_transcript(built):
    """Also where an adapter puts out no frame at all."""
    model, processor = built
    model.eval()
    prompts = [
        [
            {
                **message,
                "content": [{k: v for k, v in item.items() if k != "transcript"} for item in message["content"]],
            }
            for message in one[:1]
        ]
        for one in CHATS
    ]
    batch = processor(prompts)
    assert "target_lengths" not in batch["media"]["audio"]
    with torch.no_grad():
        expected = model.generate(batch, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert expected.shape[0] == len(CHATS)
        for row, prompt in enumerate(prompts):
            alone = model.generate(processor([prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0)
            assert torch.equal(alone[0], expected[row, : alone.shape[1]])
        before = model.audio_adapter.model.out.bias.clone()
        model.audio_adapter.model.out.bias.fill_(-1e4)
        stages = model.encode(batch["media"])
        assert not stages["audio_adapter"].lengths.any()
        assert stages["audio_adapter"].values.shape[1] == 0
        silent = model.generate(batch, max_new_tokens=4, do_sample=False, pad_token_id=0)
        without = model.generate(processor(prompts[4:]), max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert torch.equal(silent[4], without[0])
        # What a clip without a frame leaves is the prompt alone: the same answer for two such clips.
        assert torch.equal(silent[1], silent[3])
        model.audio_adapter.model.out.bias.copy_(before)

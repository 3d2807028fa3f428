"""The composite model: packed equals padded, batches equal single samples, losses equal a naive computation."""

from __future__ import annotations

import pytest
import soundfile
import torch
from torch.nn import functional as F

from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import ConfigError, DataError, MediaError
from speechlmm_core.media.medium import Medium
from speechlmm_core.model.describe import describe
from speechlmm_core.model.freezing import freeze, set_trainable
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing.toy import ToyEncoderConfig


@pytest.fixture
def samples(tiny_processor, conversation):
    chats = [
        conversation(8_000, "hello there", seed=1),
        conversation(4_100, "no", seed=2, speaker=3_000),
        conversation(12_345, "what is it", seed=3),
    ]
    return [tiny_processor.sample(chat, with_answer=True) for chat in chats]


def test_what_surrounds_the_decoder_begins_from_the_same_weights_however_that_is_built(tiny_config):
    """Loaded in parts by ZeRO, a decoder draws no random numbers; here one draws more."""
    found = []
    for width in (1, 2):
        plain = tiny_config.model_dump(mode="json")
        plain["text_decoder"]["model"]["intermediate_size"] *= width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = SpeechLMM.from_model_config(ModelConfig.model_validate(plain))
        found.append({name: p for name, p in model.named_parameters() if not name.startswith("text_decoder.")})
    one, other = found
    assert {name.split(".")[0] for name in one} >= {"audio_encoder", "audio_adapter", "objectives"}
    assert all(torch.equal(one[name], other[name]) for name in one)


def gradients(model: SpeechLMM) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_packed_and_padded_agree(tiny_model, tiny_processor, samples):
    found = []
    for packed in (True, False):
        tiny_model.zero_grad()
        out = tiny_model(**tiny_processor.collate(samples, packed=packed))
        out.loss.backward()
        found.append((out.losses, gradients(tiny_model)))
    (packed_losses, packed_grads), (padded_losses, padded_grads) = found
    assert packed_losses.keys() == {"lm", "ctc"}
    for name in packed_losses:
        torch.testing.assert_close(packed_losses[name].sum, padded_losses[name].sum, rtol=1e-5, atol=1e-5)
    assert packed_grads.keys() == padded_grads.keys()
    for name in packed_grads:
        torch.testing.assert_close(packed_grads[name], padded_grads[name], rtol=1e-4, atol=1e-5)


def test_a_batch_is_the_sum_of_its_samples(tiny_model, tiny_processor, samples):
    together = tiny_model(**tiny_processor.collate(samples, packed=True)).losses
    alone = [tiny_model(**tiny_processor.collate([sample])).losses for sample in samples]
    for name in together:
        torch.testing.assert_close(together[name].sum, sum(losses[name].sum for losses in alone), rtol=1e-5, atol=1e-4)


def test_loss_is_the_naive_one(tiny_model, tiny_processor, samples):
    """Embeddings are concatenated by hand, and the stock Hugging Face forward gives the logits."""
    for sample in samples:
        batch = tiny_processor.collate([sample])
        stages = tiny_model.encode(batch["media"])
        embed = tiny_model.text_decoder.model.get_input_embeddings()
        rows, seen = [], [0] * len(sample.layout.inputs)
        for token, medium in zip(sample.layout.input_ids, sample.layout.medium, strict=True):
            if medium < 0:
                rows.append(embed(torch.tensor(token)))
            else:
                rows.append(stages[f"{sample.layout.inputs[medium]}_adapter"].values[0, seen[medium]])
                seen[medium] += 1
        logits = tiny_model.text_decoder.model(inputs_embeds=torch.stack(rows)[None]).logits[0]
        expected = sum(
            F.cross_entropy(logits[i - 1], torch.tensor(token), reduction="sum")
            for i, token in enumerate(sample.layout.input_ids)
            if sample.layout.supervised[i]
        )
        torch.testing.assert_close(tiny_model(**batch).losses["lm"].sum, expected, rtol=1e-5, atol=1e-4)


def test_each_medium_reaches_its_own_place(tiny_model, tiny_processor, conversation):
    """Two media of one input in one message do not take each other's features."""
    one, two = conversation(4_000, "a", seed=5), conversation(4_000, "a", seed=6)
    both = [
        {"role": "user", "content": [one[0]["content"][0], {"type": "text", "text": "and"}, two[0]["content"][0]]},
        {"role": "assistant", "content": "yes"},
    ]
    sample = tiny_processor.sample(both, with_answer=True)
    batch = tiny_processor.collate([sample])
    stages = tiny_model.encode(batch["media"])
    embeds, _ = tiny_model.embed(batch, stages)
    for medium in (0, 1):
        at = torch.from_numpy(sample.layout.medium == medium)
        torch.testing.assert_close(embeds[0, at], stages["audio_adapter"].values[medium, : int(at.sum())])


def test_generation_does_not_depend_on_the_batch(tiny_model, tiny_processor, conversation):
    chats = [conversation(n, "", seed=n)[:1] for n in (3_000, 16_000, 9_000, 640)]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": []}
    together = tiny_model.generate(tiny_processor(chats), **options)
    for row, chat in zip(together, chats, strict=True):
        assert row.tolist() == tiny_model.generate(tiny_processor([chat]), **options)[0].tolist()


def test_generation_equals_the_decoder_fed_by_hand(tiny_model, tiny_processor, conversation):
    """Greedy decoding by full forwards of the stock model, one token at a time."""
    batch = tiny_processor([conversation(5_000, "", seed=9)[:1]])
    embeds, _ = tiny_model.embed(batch, tiny_model.encode(batch["media"]))
    model = tiny_model.text_decoder.model
    expected = []
    for _ in range(6):
        token = model(inputs_embeds=embeds).logits[0, -1].argmax()
        expected.append(int(token))
        embeds = torch.cat([embeds, model.get_input_embeddings()(token)[None, None]], dim=1)
    got = tiny_model.generate(batch, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=[])
    assert got[0].tolist() == expected


def test_weights_choose_the_objectives(tiny_model, tiny_processor, samples):
    batch = tiny_processor.collate(samples, packed=True)
    out = tiny_model(objective_weights={"ctc": 1.0, "lm": 0.0}, **batch)
    assert out.losses.keys() == {"ctc"}
    assert "text_decoder" not in out.stages, "the language model runs although no objective reads it"
    assert (
        tiny_model(objective_weights={"lm": 2.0}, **batch).loss
        == 2 * tiny_model(objective_weights={"lm": 1.0}, **batch).loss
    )


def test_text_alone_needs_no_media(tiny_model, tiny_processor):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    out = tiny_model(**tiny_processor.collate([tiny_processor.sample(chat, with_answer=True)], packed=True))
    assert out.losses.keys() == {"lm"}
    assert torch.isfinite(out.loss)


def test_frozen_modules_stay_in_evaluation_mode(tiny_model):
    freeze(tiny_model, ["audio_encoder", "text_decoder.model.model.layers.0"])
    tiny_model.train()
    assert not tiny_model.audio_encoder.training
    assert not tiny_model.text_decoder.model.model.layers[0].training
    assert tiny_model.text_decoder.model.model.layers[1].training
    assert not any(p.requires_grad for p in tiny_model.audio_encoder.parameters())
    assert all(p.requires_grad for p in tiny_model.audio_adapter.parameters())
    freeze(tiny_model, [])
    assert all(p.requires_grad for p in tiny_model.parameters())


def test_a_component_whose_network_is_frozen_stays_in_evaluation_mode(tiny_model):
    """By whatever name: the wrapper must not drop anything out either."""
    inner = [f"text_decoder.model.model.{name}" for name in ("embed_tokens", "layers.0", "layers.1", "norm")]
    for names in (["audio_encoder.model", *inner], ["audio_*.*", *inner]):
        freeze(tiny_model, names)
        tiny_model.train()
        assert not tiny_model.audio_encoder.training
        assert not tiny_model.text_decoder.model.model.training
        assert tiny_model.text_decoder.training, "the head still trains"
        assert tiny_model.speaker_encoder.training
    freeze(tiny_model, [])
    tiny_model.train()
    assert all(module.training for module in tiny_model.modules())


def test_a_medium_that_the_encoder_does_not_take_is_refused_by_its_length(tiny_processor, conversation, monkeypatch):
    def check_length(self, num_samples):
        if num_samples > 5_000:
            raise MediaError("too long; cut it")

    monkeypatch.setattr(type(tiny_processor.inputs["audio"].encoder), "check_length", check_length)
    chat = conversation(5_001, "a")
    with pytest.raises(MediaError, match="'in-memory audio': too long; cut it"):
        tiny_processor.sample(chat, with_answer=True)
    with pytest.raises(MediaError, match="too long; cut it"):
        tiny_processor.sizes(chat, [5_001])
    assert tiny_processor.sizes(chat, [5_000])[1] == 5_000 // 320


def test_the_length_of_a_medium_is_told_without_loading_it_where_it_is_an_audio_file(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", [0.1] * 8_001, 8_000)
    item = {"type": "audio", "path": str(tmp_path / "a.wav"), "end": 0.5}

    class Half(ToyEncoderConfig):
        def load(self, item):
            medium = super().load(item)
            return Medium(medium.values[::2], medium.sampling_rate)

    assert ToyEncoderConfig().num_samples(item) == ToyEncoderConfig().load(item).num_samples == 8_000
    assert Half().num_samples(item) == 4_000
    monkeypatch.setattr("speechlmm_core.media.audio.load_audio_item", None)
    assert ToyEncoderConfig().num_samples(item) == 8_000


def test_an_item_names_an_input_and_not_a_modality(tiny_config, conversation):
    towers = tiny_config.model_dump(mode="json")
    towers["objectives"] = {}
    config = ModelConfig.model_validate({key: value for key, value in towers.items() if not key.startswith("audio_")})
    processor = SpeechLMMProcessor.from_config(config)
    with pytest.raises(DataError, match=r"'audio', but this model takes it by the name of the input .*: 'speaker'"):
        processor.sample(conversation(4_000, "a"), with_answer=True)


def test_adapters_whose_lengths_depend_on_the_content_are_told_the_transcripts(
    tiny_processor, conversation, monkeypatch
):
    chats = [conversation(4_000, "hello you"), conversation(4_000, "x", speaker=3_000)]
    exact = tiny_processor.collate([tiny_processor.sample(chat, with_answer=True) for chat in chats])
    assert not any("target_lengths" in media for media in exact["media"].values())
    adapter = type(tiny_processor.inputs["audio"].adapter)
    monkeypatch.setattr(adapter, "output_lengths", lambda self, num_frames, frame_rate: None)
    chats[1][0]["content"][1].pop("transcript")
    batch = tiny_processor.collate([tiny_processor.sample(chat, with_answer=True) for chat in chats])
    tokens = len(tiny_processor.tokenizer.encode("hello you"))
    assert batch["media"]["audio"]["target_lengths"].tolist() == [tokens, -1]
    assert "target_lengths" not in batch["media"]["speaker"]
    batch = tiny_processor.collate([tiny_processor.sample(chats[0][:1], with_answer=False)], padding_side="left")
    assert "target_lengths" not in batch["media"]["audio"], "an answer must not lean on its own transcript"


def test_globs_freeze_and_misspelt_names_are_refused(tiny_model):
    freeze(tiny_model, ["*_encoder"])
    assert not any(p.requires_grad for p in tiny_model.speaker_encoder.parameters())
    with pytest.raises(ConfigError, match=r"'audio_encodr' matches no module; did you mean 'audio_encoder'\?"):
        freeze(tiny_model, ["audio_encodr"])


def test_set_trainable_is_the_reverse(tiny_model):
    set_trainable(tiny_model, ["audio_adapter", "text_decoder.model.model.layers.1"])
    trained = {name for name, p in tiny_model.named_parameters() if p.requires_grad}
    assert trained == {
        name
        for name, _ in tiny_model.named_parameters()
        if name.startswith(("audio_adapter.", "text_decoder.model.model.layers.1."))
    }


@pytest.mark.parametrize("name", ["keys", "training", "forward"])
def test_an_objective_may_not_be_called_like_a_part_of_torch(tiny_config, name):
    towers = tiny_config.model_dump(mode="json")
    towers["objectives"] = {name: towers["objectives"]["ctc"]}
    with pytest.raises(ConfigError, match=f"an objective may not be called {name!r}"):
        SpeechLMM.from_model_config(ModelConfig.model_validate(towers))


def test_wiring_faults_are_told_before_torch(tiny_config):
    towers = tiny_config.model_dump(mode="json")
    towers["objectives"]["ctc"]["stage"] = "video_encoder"
    from speechlmm_core.wiring import wire

    with pytest.raises(ConfigError, match=r"objectives\.ctc reads the stage 'video_encoder'"):
        wire(ModelConfig.model_validate(towers))


def test_description_counts_without_weights(tiny_config, tiny_model):
    rows = {row.name: row for row in describe(tiny_config, freeze_modules=["text_decoder"])}
    assert rows["text_decoder"].num_parameters == sum(p.numel() for p in tiny_model.text_decoder.parameters())
    assert rows["text_decoder"].num_trainable == 0
    assert rows["audio_adapter"].num_trainable == rows["audio_adapter"].num_parameters == 24 * 32 + 32
    assert rows["audio_adapter"].num_bytes == 4 * rows["audio_adapter"].num_parameters


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "got no messages"),
        (
            [
                {"role": "user", "content": [{"type": "video", "path": "x.mp4"}]},
                {"role": "assistant", "content": "a cat"},
            ],
            "holds 'video', but this model takes audio, speaker",
        ),
        ([{"role": "user", "content": "hi"}], "end with the assistant's answer, got 'user'"),
    ],
)
def test_messages_that_do_not_fit(tiny_processor, messages, fault):
    with pytest.raises(DataError, match=fault):
        tiny_processor.sample(messages, with_answer=True)


def test_a_clip_without_a_frame_is_refused(tiny_processor, conversation):
    with pytest.raises(MediaError, match="319 samples give no frame"):
        tiny_processor.sample(conversation(319, "x"), with_answer=True)


def test_sizes_equal_the_sample(tiny_processor, conversation):
    chat = conversation(10_000, "some words", speaker=2_000)
    sample = tiny_processor.sample(chat, with_answer=True)
    positions, frames = tiny_processor.sizes(chat, [2_000, 10_000])
    assert positions == len(sample.layout.input_ids)
    assert frames == 2_000 // 320 + 10_000 // 320


def test_short_media_are_left_out_of_ctc_and_counted(tiny_model, tiny_processor, conversation):
    chats = [conversation(640, "far too many letters", seed=1), conversation(9_000, "fits", seed=2)]
    batch = tiny_processor.collate([tiny_processor.sample(chat, with_answer=True) for chat in chats])
    assert batch["num_items"]["ctc_infeasible"] == 1
    assert batch["num_items"]["ctc_targets"] == len("fits")
    assert torch.isfinite(tiny_model(**batch).losses["ctc"].sum)

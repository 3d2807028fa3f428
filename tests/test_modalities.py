"""Audio and video together: in one message, in one batch, with all their losses; and every encoder frozen."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from speechlmm_core.interfaces.adapter import adapters
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.interfaces.objective import objectives
from speechlmm_core.model.freezing import freeze
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing import noise_audio, noise_video
from speechlmm_core.testing.composite import new_model, tiny_model_config
from speechlmm_core.testing.in_model import media_in_items
from speechlmm_core.testing.presets import installed_presets

AUDIO, VIDEO = noise_audio(16_000), noise_video(25, 96, 96)
ENCODERS = {**installed_presets("audio_encoder", "tiny_"), **installed_presets("video_encoder", "tiny_")}


def adapter(name: str, **changes: Any) -> Any:
    return adapters.validate(installed_presets("audio_adapter", name)[name] | changes)


def encoder(name: str, **changes: Any) -> Any:
    return encoders.validate(ENCODERS[name] | changes)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Kit:
    """A model with its processor, and the messages that it understands."""

    def __init__(self, stack: ExitStack, towers: dict[str, Any]) -> None:
        config = stack.enter_context(tiny_model_config(towers))
        stack.enter_context(media_in_items(config))
        self.model = new_model(config)
        self.processor = SpeechLMMProcessor.from_config(config)

    def sample(self, *content: Any, answer: str = "yes") -> Any:
        """A conversation about media and texts."""
        items = [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]
        messages = [{"role": "user", "content": items}, {"role": "assistant", "content": answer}]
        return self.processor.sample(messages, with_answer=True)


def audio(seed: int, frames: int = 60, text: str = "good day") -> dict[str, Any]:
    return {"type": "audio", "medium": AUDIO(640 * frames, seed), "transcript": text}


def video(seed: int, frames: int = 40, text: str = "see you") -> dict[str, Any]:
    return {"type": "video", "medium": VIDEO(frames, seed), "transcript": text}


@pytest.fixture(scope="module")
def both():
    """A model with losses on every stage of both modalities, its adapters' own included."""
    towers = {
        "audio_encoder": encoder("tiny_whisper_unrestricted"),
        "audio_adapter": adapter("tiny_cif", ctc_loss_weight=0.5),
        "video_encoder": encoder("tiny_auto_avsr"),
        "video_adapter": adapter("tiny_ctc"),
        "objectives": {
            name: objectives.validate({"type": "ctc", "stage": f"{name}_encoder"}) for name in ("audio", "video")
        },
    }
    with ExitStack() as stack:
        yield Kit(stack, towers)


LOSSES = {"lm", "audio", "video", "audio_adapter_quantity", "audio_adapter_ctc", "video_adapter_ctc"}


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_of_both_has_the_losses_of_each(both, packed):
    """One message of both, one of each, one of text: together every loss is the sum of the samples'."""
    samples = [
        both.sample(audio(1), "and", video(2), "What is said?", answer="good day"),
        both.sample(audio(3, 48), "What is said?", answer="no"),
        both.sample(video(4, 33), "What is said?", answer="see you"),
        both.sample("Hello?", answer="hi"),
        both.sample(video(5), audio(6), "And now?", answer="so be it"),
    ]
    batch = both.processor.collate(samples, packed=packed)
    losses = both.model(**batch).losses
    assert losses.keys() == LOSSES
    alone = [(one, both.processor.collate([one])) for one in samples]
    parts = [both.model(**own).losses for _, own in alone]
    for name, loss in losses.items():
        expected = sum(part[name].sum for part in parts if name in part)
        torch.testing.assert_close(loss.sum, expected, rtol=1e-5, atol=1e-4, msg=lambda told, n=name: f"{n}: {told}")
        assert batch["num_items"][loss.unit] == sum(own["num_items"][loss.unit] for _, own in alone), name
    assert batch["num_items"]["audio_media"] == batch["num_items"]["video_media"] == 3
    assert "video" not in parts[1]
    assert "audio" not in parts[2]


def test_all_towers_learn_from_a_batch_of_both(both):
    samples = [both.sample(audio(1), video(2), "What?"), both.sample(video(3), "What?")]
    both.model.zero_grad()
    both.model(**both.processor.collate(samples, packed=True)).loss.backward()
    for name in ("audio_encoder", "audio_adapter", "video_encoder", "video_adapter", "text_decoder"):
        gradients = [p.grad for p in both.model.components()[name].parameters() if p.grad is not None]
        assert any(bool(one.any()) for one in gradients), name
        assert all(bool(one.isfinite().all()) for one in gradients), name
    both.model.zero_grad()


def question(*content: Any) -> list[dict[str, Any]]:
    items = [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]
    return [{"role": "user", "content": items}]


def test_generation_from_both_does_not_depend_on_the_batch(both):
    chats = [
        question(audio(1, 40), "and", video(2, 30), "What?"),
        question(video(3, 25), "What?"),
        question("What?"),
        question(audio(4, 21), "What?"),
    ]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": []}
    together = both.model.generate(both.processor(chats), **options)
    for row, chat in zip(together, chats, strict=True):
        assert row.tolist() == both.model.generate(both.processor([chat]), **options)[0].tolist()


def test_a_cif_adapter_that_never_fires_leaves_the_text(both):
    """Its weights may sum up to less than one frame, as over a short silence."""
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": []}
    last = both.model.audio_adapter.model.out
    before = last.bias.detach().clone()
    with torch.no_grad():
        last.bias.fill_(-1e3)
    try:
        text = both.model.generate(both.processor([question("What?")]), **options)
        alone = both.model.generate(both.processor([question(audio(4), "What?")]), **options)
        chats = [question(audio(4, 21), "What?"), question("What?"), question(video(3, 25), "What?")]
        beside = both.model.generate(both.processor(chats), **options)
        samples = [both.sample(audio(4), "What?"), both.sample(video(3), "What?")]
        losses = [both.model(**both.processor.collate(samples, packed=packed)).losses for packed in (True, False)]
    finally:
        with torch.no_grad():
            last.bias.copy_(before)
    assert alone.tolist() == text.tolist()
    assert beside[0].tolist() == beside[1].tolist() == text[0].tolist()
    for name, loss in losses[0].items():
        torch.testing.assert_close(loss.sum, losses[1][name].sum, rtol=1e-5, atol=1e-4)
        assert bool(loss.sum.isfinite()), name


@pytest.fixture(scope="module")
def exact():
    towers = {
        "audio_encoder": encoder("tiny_hubert"),
        "audio_adapter": adapter("tiny_mlp"),
        "video_encoder": encoder("tiny_auto_avsr"),
        "video_adapter": adapter("tiny_mlp"),
    }
    with ExitStack() as stack:
        yield Kit(stack, towers)


@pytest.mark.parametrize("packed", [False, True])
def test_media_of_one_kind_keep_their_order(exact, packed):
    """Two clips in a sample, in a batch of such samples, with videos in between: each stands where it was named."""
    contents = [
        (audio(1, 20), "first", audio(2, 31), "second"),
        (video(3, 9), audio(4, 25), video(5, 14), audio(6, 12)),
        (audio(7, 15), video(8, 11), audio(9, 40)),
    ]
    samples = [exact.sample(*content, "Compare.") for content in contents]
    batch = exact.processor.collate(samples, packed=packed)
    with torch.no_grad():
        stages = exact.model.encode(batch["media"])
        embeds, _ = exact.model.embed(batch, stages)
        start = 0
        for row, (content, sample) in enumerate(zip(contents, samples, strict=True)):
            media = [item for item in content if isinstance(item, dict)]
            end = start + sample.layout.num_positions
            own = embeds[0, start:end] if packed else embeds[row]
            start = end
            for number, item in enumerate(media):
                alone = exact.processor.collate([exact.sample(item, "?")])["media"]
                expected = exact.model.encode(alone)[f"{item['type']}_adapter"]
                at = torch.from_numpy(sample.layout.medium == number)
                got = own[: len(at)][at]
                torch.testing.assert_close(got, expected.values[0, : len(got)], rtol=1e-4, atol=1e-5)
                assert len(got) == int(expected.lengths[0])


DROPS = ("dropout", "drop", "layerdrop")


def restless(name: str) -> Any:
    """An encoder that drops out and leaves out layers as much as its configuration lets it."""
    preset = ENCODERS[name]
    architecture = encoders.validate(preset).model_dump(mode="json").get("model") or {}
    rates = {
        key: 0.5
        for key, value in architecture.items()
        if key.endswith(DROPS) and isinstance(value, float) and not isinstance(value, bool)
    }
    return encoders.validate({**preset, "model": {**preset.get("model", {}), **rates}})


@pytest.mark.parametrize("name", ENCODERS)
def test_a_frozen_encoder_rests_while_the_model_trains(name):
    """No batch norm moves, nothing is dropped or masked, and no weight changes in two steps of training."""
    config = restless(name)
    kind = config.modality
    item = {"audio": audio, "video": video}[kind]
    towers = {f"{kind}_encoder": config, f"{kind}_adapter": adapter("tiny_mlp")}
    with ExitStack() as stack:
        kit = Kit(stack, towers)
        freeze(kit.model, [f"{kind}_encoder"])
        kit.model.train()
        batch = kit.processor.collate([kit.sample(item(1, 30), "?"), kit.sample(item(2, 21), "?")])
        tower = kit.model.encoder(kind)
        before = {key: value.clone() for key, value in tower.state_dict().items()}
        frames: list[torch.Tensor] = []
        trained = [p for p in kit.model.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trained, lr=0.1)
        for _ in range(2):
            output = kit.model(**batch)
            frames.append(output.stages[f"{kind}_encoder"].values.detach())
            optimiser.zero_grad()
            output.loss.backward()
            optimiser.step()
        assert torch.equal(frames[0], frames[1]), "the encoder's frames differ from call to call"
        for key, value in tower.state_dict().items():
            assert torch.equal(value, before[key]), f"{key} changed"
        assert all(p.grad is None for p in tower.parameters())
        with torch.no_grad():
            kit.model.eval()
            resting = tower(batch["media"][kind]["inputs"]).values
        torch.testing.assert_close(resting, frames[0], rtol=0, atol=0)


def test_encoders_are_restless_unless_they_are_frozen():
    """The rates above have an effect: what is trained does drop out."""
    towers = {"audio_encoder": restless("tiny_hubert"), "audio_adapter": adapter("tiny_mlp")}
    with ExitStack() as stack:
        kit = Kit(stack, towers)
        kit.model.train()
        batch = kit.processor.collate([kit.sample(audio(1, 30), "?")])
        first, second = (kit.model(**batch).stages["audio_encoder"].values for _ in range(2))
        assert not torch.equal(first, second)

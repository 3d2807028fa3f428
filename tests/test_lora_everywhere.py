"""Adapters on every encoder and every adapter module: each gets a gradient, and merged they compute the same."""

from typing import Any

import pytest
import torch

from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.lora.inject import inject
from speechlmm_core.lora.merge import merge
from speechlmm_core.lora.parameters import matrices
from speechlmm_core.model.freezing import freeze
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing import noise_audio, noise_video
from speechlmm_core.testing.composite import new_model, tiny_model_config
from speechlmm_core.testing.in_model import conversations, media_in_items
from speechlmm_core.testing.presets import installed_presets
from speechlmm_core.testing.toy import ToyEncoderConfig

pytestmark = pytest.mark.usefixtures("one_thread")

PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{part}-{name}": (part, tower)
    for part in ("audio_encoder", "video_encoder", "audio_adapter")
    for name, tower in installed_presets(part, "tiny_").items()
}
NO_LINEAR = {"audio_adapter-tiny_conv"}


@pytest.mark.parametrize("name", [name for name in PLACES if name not in NO_LINEAR])
def test_every_layer_with_an_adapter_learns_and_merges(name):
    place, tower = PLACES[name]
    role = place.split("_")[0]
    towers: dict[str, Any] = {f"{role}_encoder": ToyEncoderConfig(), f"{role}_adapter": {"type": "mlp"}, place: tower}
    rate = encoders.validate(tower).sampling_rate if place.endswith("encoder") else 16_000
    media = (noise_audio(rate)(rate, 0), noise_audio(rate)(rate * 3 // 4, 1)) if role == "audio" else ()
    media = media or (noise_video(25, 96, 96)(25, 0), noise_video(25, 96, 96)(19, 1))
    with tiny_model_config(towers) as config, media_in_items(config):
        model = new_model(config)
        processor = SpeechLMMProcessor.from_config(config)
        samples = [processor.sample(messages, with_answer=True) for messages in conversations({role: list(media)})]
        batch = processor.collate(samples, packed=False)
        before = {key: value.clone() for key, value in model.named_parameters()}
        torch.manual_seed(1)
        inject(model, [LoraAdapterConfig(name="x", target_module=place, r=3, use_rslora=True, init_lora_weights=False)])
        freeze(model, ["text_decoder"])
        model.train()
        model(**batch).loss.backward()
        own = dict(model.named_parameters())
        for key in matrices(model):
            assert own[key].grad is not None, key
            assert own[key].grad.any(), key
        for key, value in own.items():
            if key.startswith(f"{place}.") and key not in matrices(model):
                assert value.grad is None, key
        model.eval()
        with torch.no_grad():
            expected = model(**batch).loss
            merge(model)
            torch.testing.assert_close(model(**batch).loss, expected, rtol=1e-5, atol=1e-5)
        assert {key for key, _ in model.named_parameters()} == set(before)
        changed = [key for key, value in model.named_parameters() if not torch.equal(value, before[key])]
        assert changed
        assert all(key.startswith(f"{place}.") for key in changed)

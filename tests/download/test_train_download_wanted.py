"""What `speechlmm-train download` takes of the checkpoint of each preset."""

from __future__ import annotations

import pytest

from speechlmm_train.download.wanted import wanted_checkpoints

# Preset -> a tensor that its published checkpoint holds and that is needed, and one that is not.
PARTS = {
    "whisper": ("model.encoder.conv1.weight", "model.decoder.embed_tokens.weight"),
    "whisper_unrestricted": ("model.encoder.conv1.weight", "proj_out.weight"),
    "seamless": ("speech_encoder.inner_layer_norm.weight", "t2u_model.lm_head.weight"),
    "w2v_bert_2": ("feature_projection.projection.weight", "lm_head.weight"),
    "hubert": ("hubert.feature_projection.projection.weight", "lm_head.weight"),
    "wavlm": ("wavlm.feature_projection.projection.weight", "lm_head.weight"),
}


@pytest.mark.parametrize("name", PARTS)
def test_an_encoder_needs_no_other_part(name, monkeypatch):
    monkeypatch.delenv("PRETRAINED_COMPONENTS", raising=False)
    ((wanted,), without) = wanted_checkpoints([f"model/audio_encoder={name}"])
    assert [wanted.wants(tensor) for tensor in PARTS[name]] == [True, False]
    assert (wanted.patterns, without) == (["config.json", "preprocessor_config.json"], [])


def test_every_text_decoder_names_its_checkpoint(monkeypatch):
    monkeypatch.delenv("PRETRAINED_COMPONENTS", raising=False)
    (wanted,), _ = wanted_checkpoints(["model/text_decoder=llama_3_1b"])
    assert wanted.name == "meta-llama/Llama-3.2-1B-Instruct"
    assert wanted.needs_weights
    assert {"config.json", "tokenizer*"} <= set(wanted.patterns)
    (own, weights), _ = wanted_checkpoints(["model/text_decoder=llama_3_1b", "model.text_decoder.tokenizer=a/b@v1"])[:2]
    assert (own.needs_weights, weights.needs_weights) == (True, False)

"""A frozen encoder is still: no dropout, no layer-drop, no masking, no running statistics, while its model trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.media.medium import Medium
from speechlmm_core.model.freezing import freeze, set_trainable
from speechlmm_core.testing.composite import new_model, tiny_model_config
from speechlmm_core.testing.toy import ToyAdapterConfig
from speechlmm_encoders.raw_audio import encoder as raw_audio

RAW: dict[str, Any] = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "conv_dim": [16] * 7}
RAW |= {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
RAW |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LOUD = {"attention_dropout": 0.5, "activation_dropout": 0.5}
RAW |= LOUD | {"hidden_dropout": 0.5, "feat_proj_dropout": 0.5, "layerdrop": 0.5}
RAW |= {"mask_time_prob": 0.5, "mask_time_length": 4, "mask_feature_prob": 0.5, "mask_feature_length": 4}
MASKED = {"apply_spec_augment": True}
WHISPER = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
WHISPER |= LOUD | {"max_source_positions": 50, "dropout": 0.5, "encoder_layerdrop": 0.5}
ENCODERS: dict[str, dict[str, Any]] = {
    "whisper": {"type": "whisper", "model": WHISPER},
    "whisper_unrestricted": {"type": "whisper_unrestricted", "model": WHISPER},
    "hubert": {"type": "hubert", "model": RAW, **MASKED},
    "wavlm": {"type": "wavlm", "model": RAW, **MASKED},
    "hf_audio": {
        "type": "hf_audio",
        "model": {"model_type": "wav2vec2", **RAW, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
        **MASKED,
    },
    "hf_audio-batch-norm": {
        "type": "hf_audio",
        "model": {"model_type": "wav2vec2-conformer", **RAW, "conv_depthwise_kernel_size": 5},
        **MASKED,
    },
}


def train(name, freezing):
    config = encoders.validate(ENCODERS[name])
    with tiny_model_config({"audio_encoder": config, "audio_adapter": ToyAdapterConfig()}) as towers:
        model = new_model(towers)
    freezing(model)
    model.train()
    torch.manual_seed(0)
    noise = torch.randn(2, 12_000, generator=torch.Generator().manual_seed(0)) * 0.1
    media = [Medium(noise[0], 16_000), Medium(noise[1, :7_000], 16_000)]
    return model.components()["audio_encoder"], config.build_preprocessor()(media)


@pytest.mark.parametrize(
    "freezing",
    [
        lambda model: freeze(model, ["audio_encoder"]),
        lambda model: freeze(model, ["audio_encoder.model"]),
        lambda model: set_trainable(model, ["audio_adapter"]),
    ],
    ids=["component", "network", "all but the adapter"],
)
@pytest.mark.parametrize("name", ENCODERS)
def test_a_frozen_encoder_is_still_while_the_model_trains(name, freezing):
    encoder, inputs = train(name, freezing)
    statistics = {name: value.clone() for name, value in encoder.named_buffers()}
    first, second = encoder(inputs).values, encoder(inputs).values
    assert torch.equal(first, second)
    assert not first.requires_grad
    for name, value in encoder.named_buffers():
        assert torch.equal(value, statistics[name]), name
    assert torch.equal(encoder.eval()(inputs).values, first)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_trained_encoder_is_not(name):
    """What the test above finds still does move where nothing is frozen."""
    encoder, inputs = train(name, lambda model: freeze(model, []))
    assert not torch.equal(encoder(inputs).values, encoder(inputs).values)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm1d)]
    assert bool(norms) == ("batch-norm" in name)
    if norms:  # either layer may have been left out
        assert sum(norm.running_mean.abs().sum() for norm in norms) > 0


@pytest.mark.parametrize("name", [name for name in ENCODERS if "apply_spec_augment" in ENCODERS[name]])
def test_spans_are_masked_at_training_only_and_only_where_asked_for(name, monkeypatch):
    calls = []
    for asked in (True, False):
        monkeypatch.setitem(ENCODERS[name], "apply_spec_augment", asked)
        for freezing in (lambda model: freeze(model, []), lambda model: freeze(model, ["audio_encoder"])):
            encoder, inputs = train(name, freezing)
            calls.clear()
            # transformers masks in a method of the model's; ours is a function of two modules
            theirs = name.startswith("hf_audio")
            place, mask_by = (type(encoder.model), "_mask_hidden_states") if theirs else (raw_audio, "mask_spans")
            mask = getattr(place, mask_by)

            def spy(*args, mask=mask, position=int(theirs), **options):
                before = args[position].clone()
                out = mask(*args, **options)
                calls.append(not torch.equal(out, before))
                return out

            with monkeypatch.context() as patch:
                patch.setattr(place, mask_by, spy)
                encoder(inputs)
            assert any(calls) == (asked and encoder.training)

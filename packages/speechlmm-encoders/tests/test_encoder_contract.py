"""The conformance kit over every encoder of the package."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import yaml

from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.testing import Check, encoder_checks
from speechlmm_encoders.whisper.log_mel import TAIL


def preset(name: str, group: str = "audio_encoder", **changes: Any):
    text = (files("speechlmm_encoders.presets") / "model" / group / f"{name}.yaml").read_text("utf-8")
    return encoders.validate({**yaml.safe_load(text), **changes})


LARGE_HUBERT = {
    **preset("tiny_hubert").model.model_dump(mode="json"),
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}
LARGE_WAVLM = {
    **preset("tiny_wavlm").model.model_dump(mode="json"),
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
}

ADAPTED_W2V_BERT = {
    **preset("tiny_w2v_bert_2").model.model_dump(mode="json"),
    "add_adapter": True,
    "output_hidden_size": 24,
    "use_intermediate_ffn_before_adapter": True,
}
GROUP_NORM_HF_AUDIO = {**preset("tiny_hf_audio").model, "do_stable_layer_norm": False, "feat_extract_norm": "group"}
WHISPER_HF_AUDIO = {"model_type": "whisper", **preset("tiny_whisper").model.model_dump(mode="json")}


def all_checks() -> list[Check]:
    # The window's padding is silence, and the last samples still sound in two frames of it.
    checks = encoder_checks(preset("tiny_whisper"), margin=TAIL)
    checks += encoder_checks(preset("tiny_whisper_unrestricted"))
    checks += encoder_checks(preset("tiny_hubert"))
    checks += encoder_checks(preset("tiny_hubert", model=LARGE_HUBERT))
    checks += encoder_checks(preset("tiny_wavlm"))
    checks += encoder_checks(preset("tiny_wavlm", model=LARGE_WAVLM))
    checks += encoder_checks(preset("tiny_auto_avsr", "video_encoder"))
    checks += encoder_checks(preset("tiny_seamless"))
    checks += encoder_checks(preset("tiny_w2v_bert_2"))
    checks += encoder_checks(preset("tiny_w2v_bert_2", model=ADAPTED_W2V_BERT))
    checks += encoder_checks(preset("tiny_hf_audio"))
    checks += encoder_checks(preset("tiny_hf_audio", model=GROUP_NORM_HF_AUDIO))
    checks += encoder_checks(preset("tiny_hf_audio", model=WHISPER_HF_AUDIO))
    checks += encoder_checks(preset("tiny_hf_audio_mel"))
    return checks


@pytest.mark.parametrize("check", all_checks(), ids=str)
def test_contract(check):
    check()

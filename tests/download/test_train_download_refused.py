"""What `speechlmm-train download` refuses, in one line that says what to do."""

from __future__ import annotations

import shutil

import pytest
from huggingface_hub import constants


def test_gated_missing_and_unreachable_models_are_explained(hub, surroundings, download):
    hub.gated.add("acme/whisper")
    line = download.refusal(*download.whisper)
    for part in ("gated", "https://huggingface.co/acme/whisper", "settings/tokens", "$HF_TOKEN", "no token was sent"):
        assert part in line
    surroundings.setenv("HF_TOKEN", "hf_granted")
    assert download(*download.whisper)[0] == 0

    absent = ("model/text_decoder=llama_3_1b", "model.text_decoder.pretrained=acme/absent")
    assert "the hub has no model 'acme/absent'" in download.refusal(*absent)
    assert "'acme/llama' has no revision 'nowhere'" in download.refusal(
        "model/text_decoder=llama_3_1b", "model.text_decoder.pretrained=acme/llama@nowhere"
    )
    surroundings.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "run the same command again" in download.refusal("model/text_decoder=llama_3_1b", code=1)
    surroundings.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "$HF_HUB_OFFLINE is set" in download.refusal("model/text_decoder=llama_3_1b")


def test_another_folder_in_its_place_is_left_alone(hub, download, models, tmp_path):
    target = tmp_path / "components" / "acme" / "whisper"
    shutil.copytree(models[0] / "acme" / "whisper", target)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert "is there already, and not from this command" in download.refusal(*download.whisper)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model/audio_encoder=wisper"], "did you mean 'whisper'"),
        (["model/audio_encodr=whisper"], "unknown group 'model/audio_encodr'"),
        (["data.train=[a.jsonl]"], "takes components only, got 'data'"),
        (["model.audio_encoder.pretrained=a/b"], "model.audio_encoder: expected a mapping with a `type:`"),
        (["model.attn_implementation=sdpa"], "model.attn_implementation: no component"),
        (["model/audio_encoder=whisper", "model.audio_encoder.pretrained=../x"], "'../x' is no name on the hub"),
        (["model/audio_encoder=whisper", "model.audio_encoder.pretrained=a b"], "'a b' is no name on the hub"),
    ],
)
def test_mistakes_cost_one_line(hub, download, overrides, message):
    assert message in download.refusal(*overrides)


def test_where_to_is_asked(surroundings, download):
    surroundings.delenv("PRETRAINED_COMPONENTS")
    assert "set $PRETRAINED_COMPONENTS to a folder" in download.refusal(*download.whisper)


def test_what_has_no_home_on_the_hub_is_fetched_by_hand(download, tmp_path):
    line = download.refusal("model/video_encoder=auto_avsr")
    place = tmp_path / "components" / "vsr_trlrs3vox2_base.pth"
    assert "https://github.com/mpc001/auto_avsr" in line
    assert f"put it at {str(place)!r}" in line
    place.parent.mkdir()
    place.touch()
    assert f"{str(place)!r} is empty (0 bytes)" in download.refusal("model/video_encoder=auto_avsr")
    given = f"model.video_encoder.pretrained={place}"
    assert f"{str(place)!r} is empty (0 bytes)" in download.refusal("model/video_encoder=auto_avsr", given)
    place.write_bytes(b"weights")
    assert download.output("model/video_encoder=auto_avsr") == "vsr_trlrs3vox2_base.pth: there already\n"

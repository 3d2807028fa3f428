"""`speechlmm-train download` against a hub on the loopback: what is fetched, resumed, verified, and usable."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.media.medium import Medium
from speechlmm_core.text_decoder.config import CausalLMConfig
from speechlmm_encoders.whisper.config import WhisperEncoderConfig

WHISPER_FILES = {"config.json", "preprocessor_config.json", "model.safetensors", "speechlmm_download.json"}


def test_exactly_what_is_needed_is_fetched_and_works(hub, download, models, tmp_path, monkeypatch):
    _, whisper, llama = models
    out = download.output(*download.whisper, *download.llama, "model.text_decoder.pretrained=acme/llama@v1")
    components = tmp_path / "components"
    assert "acme/whisper: done" in out
    assert sorted(path.name for path in components.iterdir()) == ["acme"]

    encoder = components / "acme" / "whisper"
    assert {path.name for path in encoder.iterdir()} == WHISPER_FILES
    assert set(hub.fetched("acme/whisper")) == WHISPER_FILES - {"speechlmm_download.json"}
    kept = load_file(encoder / "model.safetensors")
    assert set(kept) == {f"model.encoder.{name}" for name in whisper.encoder.state_dict()}

    language = components / "acme" / "llama@v1"
    shards = {path.name for path in (models[0] / "acme" / "llama").glob("model-*.safetensors")}
    assert len(shards) > 2
    rest = {"model.safetensors.index.json", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in language.iterdir()} == shards | rest | {"speechlmm_download.json"}
    assert set(hub.fetched("acme/llama")) == shards | rest

    marker = json.loads((encoder / "speechlmm_download.json").read_text())
    assert (marker["repo"], marker["commit"], marker["revision"]) == ("acme/whisper", hub.commit, None)
    assert json.loads((language / "speechlmm_download.json").read_text())["revision"] == "v1"
    for name, entry in marker["files"].items():
        content = (encoder / name).read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    published = (models[0] / "acme" / "whisper" / "model.safetensors").read_bytes()
    assert marker["source"]["model.safetensors"]["sha256"] == hashlib.sha256(published).hexdigest()

    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(components))
    config = WhisperEncoderConfig(pretrained="acme/whisper")
    built = config.build(BuildContext()).eval()
    built.load_base_weights()
    whole = WhisperEncoderConfig(pretrained=str(models[0] / "acme" / "whisper"))
    reference = whole.build(BuildContext()).eval()
    reference.load_base_weights()
    inputs = config.build_preprocessor()([Medium(torch.randn(9_000), 16_000)])
    with torch.no_grad():
        assert torch.equal(built(inputs).values, reference(inputs).values)
    decoder = CausalLMConfig(pretrained="acme/llama@v1", chat_template="chatml")
    model = decoder.build(BuildContext())
    model.load_base_weights()
    assert all(torch.equal(value, llama.state_dict()[key]) for key, value in model.model.state_dict().items())
    assert len(decoder.build_tokenizer()) == 259

    hub.requests.clear()
    assert "there already" in download.output(*download.whisper)
    assert hub.fetched("acme/whisper") == []


def test_old_weights_become_safetensors(surroundings, download, models, tmp_path):
    overrides = (*download.llama, "model.text_decoder.pretrained=acme/old", "model.text_decoder.tokenizer=bytes")
    surroundings.delenv("PRETRAINED_COMPONENTS")
    out = download.output(*overrides, "--into", "here")
    assert f"export PRETRAINED_COMPONENTS={tmp_path / 'here'}" in out
    folder = tmp_path / "here" / "acme" / "old"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "speechlmm_download.json"}
    found = load_file(folder / "model.safetensors")
    assert found.keys() == models[2].state_dict().keys()
    assert all(torch.equal(value, models[2].state_dict()[key]) for key, value in found.items())


def test_shards_that_hold_nothing_needed_are_left_out(hub, download, tmp_path):
    overrides = ("model/audio_encoder=tiny_whisper", "model.audio_encoder.pretrained=acme/shards")
    download.output(*overrides)
    assert "model-decoder.safetensors" not in hub.fetched("acme/shards")
    names = {"config.json", "model.safetensors", "speechlmm_download.json"}
    assert {path.name for path in (tmp_path / "components" / "acme" / "shards").iterdir()} == names


def test_two_components_share_a_checkpoint(hub, download, tmp_path):
    other = ("model/speaker_encoder=tiny_whisper", "model.speaker_encoder.pretrained=acme/whisper")
    config = tmp_path / "conf" / "model" / "speaker_encoder"
    config.mkdir(parents=True)
    (config / "tiny_whisper.yaml").write_text("# @package model.speaker_encoder\ntype: whisper\nmodel: {d_model: 40}\n")
    out = download.output(
        "--config-dir", str(tmp_path / "conf"), *download.whisper, *other, "model/audio_adapter=tiny_mlp"
    )
    assert hub.fetched("acme/whisper").count("model.safetensors") == 1
    assert "model.audio_adapter: has no base checkpoint" in out


def test_a_cut_connection_is_taken_up_again(hub, download, tmp_path):
    hub.cut["model.safetensors"] = 25_000
    download.output(*download.whisper)
    assert hub.ranges("model.safetensors") == [None, "bytes=25000-"]
    assert (tmp_path / "components" / "acme" / "whisper" / "model.safetensors").is_file()


def test_a_killed_download_goes_on_where_it_stopped(hub, process, download, tmp_path):
    hub.hang["model.safetensors"] = 30_000
    components = tmp_path / "components"
    begun = []
    while not begun:  # the suite's own time limit ends this
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
        begun = [file for file in components.rglob("*.part") if file.stat().st_size >= 10_000]
    process.kill()
    process.communicate()
    held = begun[0].stat().st_size
    assert not (components / "acme").exists(), "a half-finished download must not be found"
    hub.hang.clear()
    download.output(*download.whisper)
    assert hub.ranges("model.safetensors") == [None, f"bytes={held}-"]
    assert [path.name for path in components.iterdir()] == ["acme"]


def test_what_arrives_damaged_is_refused(hub, download, tmp_path):
    hub.forged.add("model.safetensors")
    assert "'model.safetensors' arrived with" in download.refusal(*download.whisper)
    assert not (tmp_path / "components" / "acme").exists()
    hub.forged.clear()
    download.output(*download.whisper)


def test_shards_that_are_complete_are_not_fetched_again(hub, download, models, tmp_path):
    overrides = (*download.llama, "model.text_decoder.pretrained=acme/llama")
    shards = sorted(path.name for path in (models[0] / "acme" / "llama").glob("model-*.safetensors"))
    hub.forged.add(shards[-1])
    assert f"{shards[-1]!r} arrived with" in download.refusal(*overrides)
    hub.forged.clear()
    hub.requests.clear()
    download.output(*overrides)
    assert [name for name in hub.fetched("acme/llama") if name in shards] == shards[-1:]
    marker = json.loads((tmp_path / "components" / "acme" / "llama" / "speechlmm_download.json").read_text())
    for shard in shards:
        published = hashlib.sha256((models[0] / "acme" / "llama" / shard).read_bytes()).hexdigest()
        assert marker["files"][shard]["sha256"] == marker["source"][shard]["sha256"] == published


def test_two_downloads_of_one_checkpoint_do_not_mix(download, tmp_path):
    lock = tmp_path / "components" / ".downloads" / "acme--whisper" / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is being downloaded by another process" in download.refusal(*download.whisper)
    assert download(*download.whisper)[0] == 0


def test_a_disk_that_is_too_small_is_told_before(hub, surroundings, download):
    surroundings.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5))
    assert "to fetch" in (line := download.refusal(*download.whisper, code=1))
    assert "and 5 bytes free" in line
    assert "model.safetensors" not in hub.fetched("acme/whisper")


@pytest.mark.parametrize(
    ("name", "overrides", "copied"),
    [
        ("whisper", ("model/audio_encoder=tiny_whisper",), True),  # the encoder's part of the file
        ("old", ("model/text_decoder=tiny_llama", "model.text_decoder.tokenizer=bytes"), True),  # a pickle
        ("llama", ("model/text_decoder=tiny_llama", "model.text_decoder.tokenizer=bytes"), False),
    ],
)
def test_the_disk_has_to_hold_a_copy_of_what_is_rewritten(download, surroundings, models, name, overrides, copied):
    part = "audio_encoder" if name == "whisper" else "text_decoder"
    overrides = (*overrides, f"model.{part}.pretrained=acme/{name}")
    if part == "text_decoder":
        overrides = (*overrides, "model.text_decoder.model.vocab_size=300")
    suffix = "bin" if name == "old" else "safetensors"
    folder = models[0] / "acme" / name
    size = sum(file.stat().st_size for file in folder.glob(f"*model*.{suffix}"))
    free = size + 10_000  # enough for the weights and what is beside them
    surroundings.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    if copied:
        assert "more to select from it" in download.refusal(*overrides, code=1)
        free += size
    download.output(*overrides)

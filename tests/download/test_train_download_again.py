"""`speechlmm-train download` a second time: other commits, other selections, damaged files, and no network."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants


@pytest.fixture
def folder(download, tmp_path):
    """A checkpoint that was downloaded."""
    download.output(*download.whisper)
    return tmp_path / "components" / "acme" / "whisper"


def test_a_commit_that_changes_nothing_needed_changes_nothing(hub, folder, download):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    first = hub.commit
    hub.commit_anew(README__md=b"# Another", tokenizer__json=b"[]")
    hub.requests.clear()
    out = download.output(*download.whisper)
    assert out == (
        f"acme/whisper: there already, at commit {first[:12]}; the hub's {hub.commit[:12]} has the same files\n"
    )
    assert hub.fetched("acme/whisper") == []
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"config__json": b"{}"}, "config.json is another"),
        ({"model__safetensors": b"x" * 3000}, "model.safetensors is another"),
    ],
)
def test_a_commit_that_changes_what_is_needed_is_told(hub, folder, download, changed, difference):
    first = hub.commit
    hub.commit_anew(**changed)
    line = download.refusal(*download.whisper)
    assert f"at commit {first[:12]}, but {difference} at the hub's commit {hub.commit[:12]}; use it as it is" in line


def test_a_needed_file_that_is_new_or_gone_is_told(hub, folder, download):
    marker = json.loads((folder / "speechlmm_download.json").read_text())
    kept = marker["source"].pop("config.json")
    (folder / "speechlmm_download.json").write_text(json.dumps(marker))
    assert "but config.json is new at" in download.refusal(*download.whisper)
    marker["source"] |= {"config.json": kept, "gone.json": kept}
    (folder / "speechlmm_download.json").write_text(json.dumps(marker))
    assert "but gone.json is gone at" in download.refusal(*download.whisper)


def test_another_selection_or_a_damaged_file_is_noticed(folder, download):
    decoder = ("model/text_decoder=tiny_llama", "model.text_decoder.pretrained=acme/whisper", *download.llama[1:])
    assert "with the tensors" in download.refusal(*decoder)
    (folder / "model.safetensors").write_bytes(b"")
    assert "its model.safetensors is damaged" in download.refusal(*download.whisper)


@pytest.mark.parametrize("forbidden", [True, False], ids=["offline", "unreachable"])
def test_without_a_network_what_is_there_is_taken(hub, folder, download, surroundings, forbidden):
    if forbidden:
        surroundings.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        surroundings.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    out = download.output(*download.whisper)
    assert f"there already, at commit {hub.commit[:12]}; it could not be compared with the hub: " in out
    (folder / "model.safetensors").unlink()
    assert "its model.safetensors is damaged" in download.refusal(*download.whisper)


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (403, "GatedRepo", "'acme/whisper' is gated"),
        (401, "", "the hub refuses 'acme/whisper' (401)"),
        (403, "", "the hub refuses 'acme/whisper' (403)"),
        (404, "RepoNotFound", "the hub has no model 'acme/whisper'"),
    ],
)
def test_what_the_hub_refuses_by_now_is_taken(hub, folder, download, status, code, reason):
    hub.closed["acme/whisper"] = (status, code)
    out = download.output(*download.whisper)
    assert f"there already, at commit {hub.commit[:12]}; it could not be compared with the hub: {reason}" in out
    (folder / "model.safetensors").unlink()
    assert "its model.safetensors is damaged" in download.refusal(*download.whisper)


def test_a_revision_that_the_hub_refuses_by_now_is_told(hub, download):
    pinned = (download.whisper[0], f"{download.whisper[1]}@v1")
    download.output(*pinned)
    hub.closed["acme/whisper"] = (404, "RevisionNotFound")
    assert "could not be compared with the hub: 'acme/whisper' has no revision 'v1'" in download.output(*pinned)


def test_safetensors_that_are_added_beside_pickles_are_no_fault(hub, download):
    old = (*download.llama, "model.text_decoder.pretrained=acme/old")
    download.output(*old)
    hub.changed["acme/old/model.safetensors"] = b"x" * 3000
    out = download.output(*old)
    assert out == f"acme/old: there already, at commit {hub.commit[:12]}; the hub has since added model.safetensors\n"
    hub.changed["acme/old/pytorch_model.bin"] = b"x" * 3000
    assert "but pytorch_model.bin is another at" in download.refusal(*old)


def test_without_a_network_a_revision_is_what_it_is(hub, download, surroundings):
    pinned = (download.whisper[0], f"{download.whisper[1]}@v1")
    download.output(*pinned)
    surroundings.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download.output(*pinned) == f"acme/whisper@v1: there already, at commit {hub.commit[:12]}\n"


def test_a_later_commit_goes_on_with_the_files_it_shares(hub, download, tmp_path):
    hub.cut = {"model.safetensors": 25_000}
    hub.refusing = True
    assert "run the same command again" in download.refusal(*download.whisper, code=1)
    hub.refusing = False
    before = hub.fetched("acme/whisper")
    assert before.count("config.json") == 1
    hub.commit_anew(README__md=b"# Another")
    hub.requests.clear()
    download.output(*download.whisper)
    assert hub.fetched("acme/whisper") == ["model.safetensors"]
    assert hub.ranges("model.safetensors") == ["bytes=25000-"]
    marker = json.loads((tmp_path / "components" / "acme" / "whisper" / "speechlmm_download.json").read_text())
    assert marker["commit"] == hub.commit


def test_a_later_commit_starts_the_files_that_it_changes_anew(hub, download, models, tmp_path):
    folder = models[0] / "acme" / "whisper"
    config = (folder / "config.json").read_bytes() + b"\n"
    hub.cut = {"model.safetensors": 25_000}
    hub.refusing = True
    download.refusal(*download.whisper, code=1)
    hub.refusing = False
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-4:] = b"\0\0\0\0"
    hub.commit_anew(config__json=config, model__safetensors=bytes(weights))
    hub.requests.clear()
    download.output(*download.whisper)
    assert sorted(hub.fetched("acme/whisper")) == ["config.json", "model.safetensors"]
    assert hub.ranges("model.safetensors") == [None]
    target = tmp_path / "components" / "acme" / "whisper"
    assert (target / "config.json").read_bytes() == config
    assert not (tmp_path / "components" / ".downloads").exists()

"""`speechlmm-train download` against a hub on the loopback: what is fetched, resumed, verified, refused, and usable."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperModel

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.media.medium import Medium
from speechlmm_core.text_decoder.byte_tokenizer import build_byte_tokenizer
from speechlmm_core.text_decoder.config import CausalLMConfig
from speechlmm_encoders.whisper.config import WhisperEncoderConfig
from speechlmm_train.cli import main
from speechlmm_train.download import hub as hub_module
from speechlmm_train.download.wanted import wanted_checkpoints

COMMIT = "c0ffee" + "0" * 34
SMALL = 2_000  # larger files count as LFS's
WHISPER_FILES = {"config.json", "preprocessor_config.json", "model.safetensors", "speechlmm_download.json"}
WHISPER = ("model/audio_encoder=tiny_whisper", "model.audio_encoder.pretrained=acme/whisper")
LLAMA = (
    "model/text_decoder=tiny_llama",
    "model.text_decoder.model.vocab_size=300",
    "model.text_decoder.tokenizer=null",
)


class Hub:
    """The few endpoints of the hub that its client uses, over folders of files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[tuple[str, str, str | None]] = []
        self.gated: set[str] = set()
        self.forged: set[str] = set()
        """Files whose content is not what the hub announces."""
        self.cut: dict[str, int] = {}
        """Bytes after which the connection is cut, once, by file."""
        self.hang: dict[str, int] = {}
        """Bytes after which nothing comes any more, by file."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.server.daemon_threads = True
        self.released = threading.Event()
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def fetched(self, repo: str) -> list[str]:
        """The files whose content was asked for."""
        prefix = f"/{repo}/resolve/{COMMIT}/"
        return [path.removeprefix(prefix) for verb, path, _ in self.requests if verb == "GET" and prefix in path]

    def ranges(self, file: str) -> list[str | None]:
        return [held for verb, path, held in self.requests if verb == "GET" and path.endswith(f"/{file}")]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(head=True)

    def do_GET(self, head: bool = False) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.model("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        return self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), head)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def model(self, repo: str, revision: str) -> None:
        folder = self.hub.root / repo
        if not folder.is_dir():
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        siblings = []
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = file.read_bytes()
            entry = {"rfilename": str(file.relative_to(folder)), "size": len(content), "blobId": blob(content)}
            if len(content) > SMALL:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def file(self, repo: str, revision: str, name: str, head: bool) -> None:
        path = self.hub.root / repo / name
        if repo in self.hub.gated and "Bearer" not in self.headers.get("Authorization", ""):
            return self.refuse(401, "GatedRepo")
        if revision != COMMIT or not path.is_file():
            return self.refuse(404, "EntryNotFound")
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest() if len(content) > SMALL else blob(content)
        if name in self.hub.forged:
            content = bytes(len(content))
        held = self.headers.get("Range")
        start = int(held.removeprefix("bytes=").partition("-")[0]) if held else 0
        self.send_response(206 if held else 200)
        if held:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Linked-Etag", f'"{etag}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if head:
            return None
        cut = self.hub.cut.pop(name, None)
        stop = self.hub.hang.get(name, cut)
        self.wfile.write(content[start : None if stop is None else stop])
        if stop is not None:
            self.wfile.flush()
            if cut is None:
                self.hub.released.wait(60)
            self.close_connection = True
        return None


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Repositories as they are published: whole models, and files that nobody here needs."""
    root = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    numbers = {
        "num_mel_bins": 16,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "max_source_positions": 150,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 64,
        "vocab_size": 50,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    whisper = WhisperModel(WhisperConfig(**numbers))
    folder = root / "acme" / "whisper"
    whisper.save_pretrained(folder)
    save_file({f"model.{key}": value for key, value in whisper.state_dict().items()}, folder / "model.safetensors")
    for name, text in {
        "preprocessor_config.json": json.dumps({"feature_size": 16}),
        "tokenizer.json": "{}",
        "README.md": "# Whisper",
        "pytorch_model.bin": "pickle" * 1000,
        "onnx/config.json": "{}",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    shards = root / "acme" / "shards"
    shards.mkdir()
    shutil.copy(folder / "config.json", shards)
    places = {}
    for part in ("encoder", "decoder"):
        names = [name for name in whisper.state_dict() if name.startswith(f"{part}.")]
        file = f"model-{part}.safetensors"
        save_file({f"model.{name}": whisper.state_dict()[name] for name in names}, shards / file)
        places.update({f"model.{name}": file for name in names})
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    )
    folder = root / "acme" / "llama"
    llama.save_pretrained(folder, max_shard_size="40KB")
    build_byte_tokenizer("chatml").save_pretrained(folder)
    (folder / "original").mkdir()
    (folder / "original" / "tokenizer.model").write_text("x")
    (folder / "consolidated.safetensors").write_text("x" * 3000)

    folder = root / "acme" / "old"
    llama.config.save_pretrained(folder)
    torch.save(llama.state_dict(), folder / "pytorch_model.bin")
    (folder / "tf_model.h5").write_text("x" * 3000)
    return root, whisper, llama


@pytest.fixture
def hub(models):
    served = Hub(models[0])
    yield served
    served.close()


@pytest.fixture
def surroundings(hub, tmp_path, monkeypatch):
    """What the command finds in the environment; the client has read some of it before."""
    given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    for key in [key for key in os.environ if key.startswith("HF_")]:
        monkeypatch.delenv(key)
    for key, value in {**given, "PRETRAINED_COMPONENTS": str(tmp_path / "components")}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.setattr(hub_module, "PAUSE_S", 0.01)
    return monkeypatch


@pytest.fixture
def download(surroundings, capsys):
    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["download", "--no-progress", *arguments])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


@pytest.fixture
def process(surroundings):
    """A download in a process of its own, which can be killed."""
    line = [sys.executable, "-c", "from speechlmm_train.cli import main; main()", "download", *WHISPER]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        yield started
        started.kill()


def one_line(err, *, code):
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert code in (1, 2)
    return lines[0]


def test_exactly_what_is_needed_is_fetched_and_works(hub, download, models, tmp_path, monkeypatch):
    _, whisper, llama = models
    code, out, err = download(*WHISPER, *LLAMA, "model.text_decoder.pretrained=acme/llama@v1")
    assert (code, err) == (0, "")
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
    assert (marker["repo"], marker["commit"], marker["revision"]) == ("acme/whisper", COMMIT, None)
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
    code, out, err = download(*WHISPER)
    assert (code, err, hub.fetched("acme/whisper")) == (0, "", [])
    assert "there already" in out


def test_old_weights_become_safetensors(surroundings, download, models, tmp_path):
    overrides = (*LLAMA, "model.text_decoder.pretrained=acme/old", "model.text_decoder.tokenizer=bytes")
    surroundings.delenv("PRETRAINED_COMPONENTS")
    code, out, err = download(*overrides, "--into", "here")
    assert (code, err) == (0, "")
    assert f"export PRETRAINED_COMPONENTS={tmp_path / 'here'}" in out
    folder = tmp_path / "here" / "acme" / "old"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "speechlmm_download.json"}
    found = load_file(folder / "model.safetensors")
    assert found.keys() == models[2].state_dict().keys()
    assert all(torch.equal(value, models[2].state_dict()[key]) for key, value in found.items())


def test_a_cut_connection_is_taken_up_again(hub, download, tmp_path):
    hub.cut["model.safetensors"] = 25_000
    code, _, err = download(*WHISPER)
    assert code == 0, err
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
    code, _, err = download(*WHISPER)
    assert (code, err) == (0, "")
    assert hub.ranges("model.safetensors") == [None, f"bytes={held}-"]
    assert [path.name for path in components.iterdir()] == ["acme"]


def test_what_arrives_damaged_is_refused(hub, download, tmp_path):
    hub.forged.add("model.safetensors")
    code, _, err = download(*WHISPER)
    assert code == 2
    assert "'model.safetensors' arrived with" in one_line(err, code=code)
    assert not (tmp_path / "components" / "acme").exists()
    hub.forged.clear()
    code, _, err = download(*WHISPER)
    assert (code, err) == (0, "")


def test_gated_missing_and_unreachable_models_are_explained(hub, surroundings, download):
    hub.gated.add("acme/whisper")
    code, _, err = download(*WHISPER)
    line = one_line(err, code=code)
    assert code == 2
    for part in ("gated", "https://huggingface.co/acme/whisper", "settings/tokens", "$HF_TOKEN", "no token was sent"):
        assert part in line
    surroundings.setenv("HF_TOKEN", "hf_granted")
    assert download(*WHISPER)[0] == 0

    absent = ("model/text_decoder=llama_3_1b", "model.text_decoder.pretrained=acme/absent")
    code, _, err = download(*absent)
    assert (code, "the hub has no model 'acme/absent'" in one_line(err, code=code)) == (2, True)
    code, _, err = download("model/text_decoder=llama_3_1b", "model.text_decoder.pretrained=acme/llama@nowhere")
    assert (code, "'acme/llama' has no revision 'nowhere'" in one_line(err, code=code)) == (2, True)
    surroundings.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, err = download("model/text_decoder=llama_3_1b")
    assert (code, "run the same command again" in one_line(err, code=code)) == (1, True)
    surroundings.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = download("model/text_decoder=llama_3_1b")
    assert (code, "$HF_HUB_OFFLINE is set" in one_line(err, code=code)) == (2, True)


def test_another_folder_in_its_place_is_left_alone(hub, download, models, tmp_path):
    target = tmp_path / "components" / "acme" / "whisper"
    shutil.copytree(models[0] / "acme" / "whisper", target)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    code, _, err = download(*WHISPER)
    assert code == 2
    assert "is there already, and not from this command" in one_line(err, code=code)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_shards_that_hold_nothing_needed_are_left_out(hub, download, tmp_path):
    overrides = ("model/audio_encoder=tiny_whisper", "model.audio_encoder.pretrained=acme/shards")
    code, _, err = download(*overrides)
    assert (code, err) == (0, "")
    assert "model-decoder.safetensors" not in hub.fetched("acme/shards")
    names = {"config.json", "model.safetensors", "speechlmm_download.json"}
    assert {path.name for path in (tmp_path / "components" / "acme" / "shards").iterdir()} == names


def test_another_selection_commit_or_a_damaged_file_is_noticed(hub, download, tmp_path):
    assert download(*WHISPER)[0] == 0
    folder = tmp_path / "components" / "acme" / "whisper"
    marker = folder / "speechlmm_download.json"
    kept = marker.read_text()
    marker.write_text(kept.replace(COMMIT, "d" * 40))
    code, _, err = download(*WHISPER)
    assert (code, f"with the commit '{'d' * 40}' where this would be '{COMMIT}'" in one_line(err, code=code)) == (
        2,
        True,
    )
    marker.write_text(kept)
    code, _, err = download("model/text_decoder=tiny_llama", "model.text_decoder.pretrained=acme/whisper", *LLAMA[1:])
    assert (code, "with the tensors" in one_line(err, code=code)) == (2, True)
    (folder / "model.safetensors").write_bytes(b"")
    code, _, err = download(*WHISPER)
    assert (code, "its model.safetensors is damaged" in one_line(err, code=code)) == (2, True)


def test_two_components_share_a_checkpoint(hub, download, tmp_path):
    other = ("model/speaker_encoder=tiny_whisper", "model.speaker_encoder.pretrained=acme/whisper")
    config = tmp_path / "conf" / "model" / "speaker_encoder"
    config.mkdir(parents=True)
    (config / "tiny_whisper.yaml").write_text("# @package model.speaker_encoder\ntype: whisper\nmodel: {d_model: 40}\n")
    code, out, err = download("--config-dir", str(tmp_path / "conf"), *WHISPER, *other, "model/audio_adapter=tiny_mlp")
    assert (code, err) == (0, "")
    assert hub.fetched("acme/whisper").count("model.safetensors") == 1
    assert "model.audio_adapter: has no base checkpoint" in out


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
    code, _, err = download(*overrides)
    assert (code, message in one_line(err, code=code)) == (2, True), err


def test_where_to_is_asked(surroundings, download):
    surroundings.delenv("PRETRAINED_COMPONENTS")
    code, _, err = download(*WHISPER)
    assert (code, "set $PRETRAINED_COMPONENTS to a folder" in one_line(err, code=code)) == (2, True)


def test_what_has_no_home_on_the_hub_is_fetched_by_hand(download, tmp_path):
    code, _, err = download("model/video_encoder=auto_avsr")
    line = one_line(err, code=code)
    place = tmp_path / "components" / "vsr_trlrs3vox2_base.pth"
    assert (code, "https://github.com/mpc001/auto_avsr" in line, f"put it at {str(place)!r}" in line) == (2, True, True)
    place.parent.mkdir()
    place.touch()
    code, out, _ = download("model/video_encoder=auto_avsr")
    assert (code, out) == (0, "vsr_trlrs3vox2_base.pth: there already\n")


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


def test_shards_that_are_complete_are_not_fetched_again(hub, download, models, tmp_path):
    overrides = (*LLAMA, "model.text_decoder.pretrained=acme/llama")
    shards = sorted(path.name for path in (models[0] / "acme" / "llama").glob("model-*.safetensors"))
    hub.forged.add(shards[-1])
    code, _, err = download(*overrides)
    assert (code, f"{shards[-1]!r} arrived with" in one_line(err, code=code)) == (2, True)
    hub.forged.clear()
    hub.requests.clear()
    code, _, err = download(*overrides)
    assert (code, err) == (0, "")
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
        code, _, err = download(*WHISPER)
    assert (code, "is being downloaded by another process" in one_line(err, code=code)) == (2, True)
    assert download(*WHISPER)[0] == 0


def test_a_disk_that_is_too_small_is_told_before(hub, surroundings, download):
    surroundings.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5))
    code, _, err = download(*WHISPER)
    assert (code, "to fetch and 5 bytes free" in one_line(err, code=code)) == (1, True)
    assert "model.safetensors" not in hub.fetched("acme/whisper")

"""A hub on the loopback, models as they are published there, and `speechlmm-train download`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from speechlmm_train.cli import main
from speechlmm_train.download import hub as hub_module

SMALL = 2_000  # larger files count as LFS's
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
        self.commit = "c0ffee" + "0" * 34
        self.changed: dict[str, bytes] = {}
        """What later commits hold instead of the folders' files, by repository and file."""
        self.requests: list[tuple[str, str, str | None]] = []
        self.gated: set[str] = set()
        self.closed: dict[str, tuple[int, str]] = {}
        """Repositories about which it tells nothing, with the status and the code that it answers."""
        self.forged: set[str] = set()
        """Files whose content is not what the hub announces."""
        self.cut: dict[str, int] = {}
        """Bytes after which the connection is cut, once, by file."""
        self.refusing = False
        """Whether a connection that was cut is followed by faults of the server."""
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

    def files(self, repo: str) -> dict[str, bytes]:
        """What a repository holds, by name."""
        folder = self.root / repo
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        return files | {key.removeprefix(f"{repo}/"): text for key, text in self.changed.items() if repo in key}

    def commit_anew(self, **changed: bytes) -> None:
        """A later commit, with other content of files of `acme/whisper`; a name's dot is written as two underscores."""
        self.commit = hashlib.sha1(self.commit.encode()).hexdigest()
        self.changed |= {f"acme/whisper/{name.replace('__', '.')}": text for name, text in changed.items()}

    def fetched(self, repo: str) -> list[str]:
        """The files whose content was asked for."""
        prefix = f"/{repo}/resolve/{self.commit}/"
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
        if repo in self.hub.closed:
            return self.refuse(*self.hub.closed[repo])
        if not folder.is_dir():
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", "v1", self.hub.commit):
            return self.refuse(404, "RevisionNotFound")
        siblings = []
        for name, content in self.hub.files(repo).items():
            entry = {"rfilename": name, "size": len(content), "blobId": blob(content)}
            if len(content) > SMALL:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        body = json.dumps({"id": repo, "sha": self.hub.commit, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def file(self, repo: str, revision: str, name: str, head: bool) -> None:
        files = self.hub.files(repo)
        if self.hub.refusing and self.headers.get("Range"):
            return self.refuse(503, "Unavailable")
        if repo in self.hub.gated and "Bearer" not in self.headers.get("Authorization", ""):
            return self.refuse(401, "GatedRepo")
        if revision != self.hub.commit or name not in files:
            return self.refuse(404, "EntryNotFound")
        content = files[name]
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
        self.send_header("X-Repo-Commit", self.hub.commit)
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


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Repositories as they are published: whole models, and files that nobody here needs."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperModel

    from speechlmm_core.text_decoder.byte_tokenizer import build_byte_tokenizer

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


class Command:
    """`speechlmm-train download` in this process."""

    whisper = WHISPER
    llama = LLAMA

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> tuple[Any, str, str]:
        """Exit code, output and errors."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["download", "--no-progress", *arguments])
        return caught.value.code, *self.capsys.readouterr()

    def output(self, *arguments: str) -> str:
        """The output of a command that succeeds and says nothing else."""
        code, out, err = self(*arguments)
        assert (code, err) == (0, "")
        return out

    def refusal(self, *arguments: str, code: int = 2) -> str:
        """The only line of a command that fails."""
        found, _, err = self(*arguments)
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert found == code, line
        return line


@pytest.fixture
def download(surroundings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def process(surroundings):
    """A download in a process of its own, which can be killed."""
    line = [sys.executable, "-c", "from speechlmm_train.cli import main; main()", "download", *WHISPER]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        yield started
        started.kill()

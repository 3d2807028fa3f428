"""`speechlmm-serve` as installed, in processes of its own: a terminal, a kill, a closed pipe."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_runs import tiny_encoder

from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.config import ModelConfig
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor

SERVE = str(Path(sys.executable).with_name("speechlmm-serve"))
MODEL = {
    "audio_encoder": tiny_encoder(frames=750),
    "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
    "text_decoder": {"type": "causal_lm"},
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A model that says letters and never ends an answer by itself."""
    config = ModelConfig.model_validate(MODEL)
    processor = SpeechLMMProcessor.from_config(config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = SpeechLMM.from_model_config(config)
        table = model.text_decoder.output_weight
        letters = sorted(set(processor.tokenizer.encode("abcdefghijklmnopqrstuvwxyz")))
        chosen = table[letters] * 30
        table.zero_()
        table[letters] = chosen
    folder = tmp_path_factory.mktemp("run") / "model"
    save_model(model, processor, folder)
    return folder.parent


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings") / "été à la mer"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        soundfile.write(folder / f"{number}.flac", 0.1 * rng.standard_normal(4_000 + 900 * number), 16_000)
    return folder


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TERM": "xterm"}


def command(name, model_path, *arguments):
    return [SERVE, name, "--model-path", str(model_path), *map(str, arguments)]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from speechlmm_serve.cli import main\n"
        "for arguments in (['--help'], ['chat', '--help'], ['infer', '--help']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit as exc: assert exc.code == 0\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'numpy', 'tqdm', 'prompt_toolkit'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--audios-file-path" in done.stdout


def test_a_killed_run_goes_on_where_it_was(model_path, recordings, tmp_path):
    out = tmp_path / "out.jsonl"
    # Answers take a while, and the longest clip, which comes first, is answered first.
    files = tmp_path / "list.txt"
    files.write_text("\n".join(str(recordings / f"{number}.flac") for number in (5, 4, 3, 2, 1, 0)), encoding="utf-8")
    slow = ("--audios-file-path", files, "--output", out, "--batch-size", 1, "--max-new-tokens", 1000)
    process = subprocess.Popen(command("infer", model_path, *slow), env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out.exists() and out.read_bytes().count(b"\n")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    written = out.read_bytes()
    complete = written.splitlines(keepends=True)[: written.count(b"\n")]
    out.write_bytes(written + b'{"path": "torn')

    done = subprocess.run(
        command("infer", model_path, *slow[:-1], 4, "--resume"),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"6 answers are in {out}\n")
    lines = out.read_bytes().splitlines(keepends=True)
    assert lines[: len(complete)] == complete, "what was there stays as it was"
    records = [json.loads(line) for line in lines]
    assert [Path(one["path"]).name for one in records] == [f"{number}.flac" for number in (5, 4, 3, 2, 1, 0)]
    assert [one["num_tokens"] for one in records[len(complete) :]] == [4] * (6 - len(complete))


def test_a_closed_pipe_is_no_traceback(model_path, recordings):
    process = subprocess.Popen(
        command("infer", model_path, "--audios-file-path", recordings, "--max-new-tokens", 4, "--batch-size", 1),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


def test_a_full_disk_is_one_line(model_path, recordings):
    arguments = ("--audios-file-path", recordings / "0.flac", "--max-new-tokens", 4, "--output", "/dev/full")
    done = subprocess.run(command("infer", model_path, *arguments), env=environment(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


class Terminal:
    """A chat in a terminal: types, and reads what is shown."""

    def __init__(self, *arguments):
        self.pid, self.handle = pty.fork()
        if not self.pid:
            os.execve(SERVE, [SERVE, *map(str, arguments)], environment())
        self.shown = ""

    def type(self, text):
        os.write(self.handle, text.encode())

    def read(self):
        """Reads what there is; false if the terminal was closed."""
        try:
            data = os.read(self.handle, 65536)
        except OSError:
            return False
        if b"\x1b[6n" in data:  # where is the cursor?
            os.write(self.handle, b"\x1b[1;1R")
        self.shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data.decode(errors="replace"))
        return bool(data)

    def wait_for(self, pattern, seconds=120):
        """What is shown up to a pattern; the next search begins behind it."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < deadline, f"{pattern!r} is not shown: {self.shown[-500:]!r}"
            if not select.select([self.handle], [], [], 0.1)[0]:
                continue
            assert self.read(), f"the program ended before {pattern!r}: {self.shown[-500:]!r}"
        before = self.shown[: found.end()]
        self.shown = self.shown[found.end() :]
        return before

    def prompt(self):
        """Waits until the editor has drawn its prompt."""
        self.wait_for(">")
        while select.select([self.handle], [], [], 0.5)[0]:
            self.read()
        self.shown = ""

    def end(self):
        """The exit code."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if select.select([self.handle], [], [], 0.1)[0]:
                self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.handle)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"the chat did not end: {self.shown[-500:]!r}")


@pytest.mark.filterwarnings("ignore:.*forkpty.*:DeprecationWarning")
def test_a_chat_in_a_terminal(model_path, recordings):
    options = ("--max-new-tokens", 3500, "--temperature", 0, "--audio", recordings / "1.flac")
    terminal = Terminal("chat", "--model-path", model_path, *options)
    terminal.wait_for(r"\(loaded .*1\.flac', 0\.3 s\)")
    terminal.wait_for("loads a file")
    terminal.prompt()

    terminal.type("what is it?\r")
    terminal.wait_for(r"[a-z]{20}", seconds=20)  # it streams
    terminal.type("\x03")
    terminal.wait_for(r"\(stopped\)", seconds=5)
    terminal.prompt()

    terminal.type("half a line\x03")
    terminal.wait_for("ends the chat")
    terminal.prompt()
    terminal.type("audio:/no/where.wav\r")
    terminal.wait_for("error: /no/where.wav: no such file")
    terminal.prompt()
    terminal.type(f"audio:{recordings}/2.flac\r")
    terminal.wait_for(r"\(loaded .*2\.flac', 0\.4 s\)")
    terminal.prompt()
    terminal.type("<reset>\r")
    terminal.wait_for(r"\(cleared\)")
    terminal.prompt()
    terminal.type("\x04")
    assert terminal.end() == 0

"""What the tests across packages share."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_runs import tiny_decoder, tiny_encoder, tiny_model


@pytest.fixture(scope="module")
def one_thread(tmp_path_factory):
    """A cache of its own, and one thread: the order of a sum depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEECHLMM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Ranks:
    """What several processes did."""

    code: int
    """0, or the exit code of the first that failed."""
    out: str
    """What was shown on standard output: rank 0's."""
    err: str
    """What was shown on standard error."""
    logs: Path
    """Folder of all ranks' logs, `rank-<N>.out` and `rank-<N>.err`."""


def _start(command, timeout, env):
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    variables = {**os.environ, **threads, **(env or {})}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout + 60, check=False)


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory):
    """Runs a plain configuration in several processes of this machine, as `speechlmm-train run` does."""

    def start(plain, *, processes=2, base=None, resume=False, overwrite=False, imports=(), timeout=300, env=None):
        from speechlmm_train.launch.job import Job

        base = Path(base or tmp_path_factory.mktemp("base"))
        file = tmp_path_factory.mktemp("job") / "job.json"
        job = Job(plain, str(base), tuple(map(str, imports)), resume, overwrite, progress=False)
        job.write(file)
        command = ["-m", "speechlmm_train.launch.local", file, "--processes", processes, "--timeout", timeout]
        done = _start(command, timeout, env)
        folders = sorted(entry for entry in (job.output_dir / "launch").glob("*") if entry.is_dir())
        return Ranks(done.returncode, done.stdout, done.stderr, folders[-1] if folders else job.output_dir / "launch")

    return start


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
    """Runs Python code in several processes that form a group, as torchrun does; arguments are in `sys.argv`."""

    def start(code, *arguments, processes=2, timeout=300, env=None):
        folder = tmp_path_factory.mktemp("script")
        script = folder / "script.py"
        script.write_text(code, encoding="utf-8")
        how = {"processes": processes, "timeout": timeout}
        call = f"run_processes({[str(script), *map(str, arguments)]!r}, logs=Path({str(folder / 'logs')!r}), **{how!r})"
        head = "import sys; from pathlib import Path; from speechlmm_train.launch.processes import run_processes"
        done = _start(["-c", f"{head}; sys.exit({call})"], timeout, env)
        return Ranks(done.returncode, done.stdout, done.stderr, folder / "logs")

    return start


NOISE_RATE = 16_000
NOISE_MODEL = tiny_model(tiny_encoder(), tiny_decoder(tie_word_embeddings=False), ctc=0.5)


def _make_noise(root):
    """Twelve files of noise with transcripts for two tasks, from 0.4 to 1.5 s."""
    generator = np.random.default_rng(0)
    lines = []
    for i in range(12):
        samples = 0.1 * generator.standard_normal(int(NOISE_RATE * (0.4 + 0.1 * i)))
        soundfile.write(root / f"{i}.flac", samples.astype("float32"), NOISE_RATE)
        text = "a b c d e"[: 1 + i % 6]
        line = {"audio": f"{i}.flac", "text": text, "task": "asr", "language": "en"}
        if i % 3 == 0:
            line |= {"task": "st", "source_language": "en", "target_language": "de", "transcript": "b a"}
            line.pop("language")
        lines.append(line)
    (root / "speech.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@dataclass(frozen=True)
class NoiseRun:
    """Twelve files of noise with transcripts for two tasks, and a tiny model's training on it."""

    folder: Path

    def plain(self, out, **training):
        """The configuration of a tiny training on it, whose step is all of the corpus."""
        return {
            "model": NOISE_MODEL,
            "data": {"train": [str(self.folder / "speech.jsonl")]},
            "training": {
                "output_dir": str(out),
                "learning_rate": 1e-3,
                "per_device_train_batch_size": 3,
                "micro_batches_per_step": 4,
                "logging_steps": 1,
                "save_steps": None,
                "max_grad_norm": 0.01,
                "report_to": [],
                "bf16": False,
                "peak_tflops": 0.5,
                **training,
            },
        }


@pytest.fixture(scope="session")
def noise(tmp_path_factory):
    """A corpus of noise, and configurations of trainings on it."""
    return NoiseRun(_make_noise(tmp_path_factory.mktemp("noise")))

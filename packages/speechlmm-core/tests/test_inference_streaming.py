"""The end of a process that has begun to stream: a thread that still generates must not abort it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
from speechlmm_core.inference.streaming import stream_text

class Letters:
    stop_token_ids = [0]
    def decode(self, ids):
        return "a" * len(ids)

class Model:
    def generate(self, batch, streamer, stopping_criteria):
        streamer.put(torch.tensor([1]))
        ids, state = torch.ones(1, 1, dtype=torch.long), torch.randn(300, 300)
        for _ in range(100_000):
            state = (state @ state).softmax(-1)
            streamer.put(ids[:, -1])
            if stopping_criteria(ids, None).all():
                break
        streamer.end()

stream = stream_text(Model(), Letters(), {}, {})
print(next(stream), flush=True)
"""


@pytest.mark.parametrize(
    ("rest", "code", "said"),
    [("", 0, ""), ("raise RuntimeError('of the reader')", 1, "RuntimeError: of the reader"), ("sys.exit(3)", 3, "")],
)
def test_a_process_ends_as_it_would_though_a_stream_is_open(rest, code, said):
    """Python ends threads as it shuts down, to which torch's code would answer with SIGABRT."""
    done = subprocess.run([sys.executable, "-c", SCRIPT + rest], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "a\n"), done.stderr
    assert (done.stderr.strip().splitlines() or [""])[-1] == said

"""Two processes write checkpoints of a run that is fresh, on a disk that fills up, and where one cannot take part."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from speechlmm_train.compose import validate
from speechlmm_train.run import run

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

MODES = ("zero0", "zero1", "zero2", "zero3")
ALL = """
import json, os, sys
from pathlib import Path
from speechlmm_train.process import prepare_process
prepare_process()
from speechlmm_core.errors import SpeechLMMError
from speechlmm_train.compose import validate
from speechlmm_train.optimizer_state import folder as states
from speechlmm_train.run import run

rank = int(os.environ["RANK"])
mkdir = Path.mkdir

def full(self, *args, **kwargs):
    if self.name.startswith(".model."):
        raise OSError(28, "No space left on device", str(self))
    return mkdir(self, *args, **kwargs)

def gone(tensor, gather=states.gather, calls=[]):
    calls.append(tensor)
    if rank == 1 and len(calls) == 3:
        raise RuntimeError("out of memory")
    return gather(tensor)

for line in json.loads(Path(sys.argv[1]).read_text()):
    Path.mkdir = full if line["how"] == "full" else mkdir
    if line["how"] == "gone":
        states.gather = gone
    plain = line["plain"]
    try:
        run(validate(plain), plain=plain, resume=line["how"] == "resume", progress=False)
    except SpeechLMMError as exc:
        print(f"{line['how']}: {exc}", flush=True)
        if line["how"] == "gone":  # as a worker ends
            os._exit(3)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("saving")


def plain(noise, out, **training):
    return noise.plain(
        out,
        save_steps=2,
        adam_epsilon=1e-4,  # so that rounding is not blown up to whole steps where gradients are tiny
        weight_decay=0.01,
        lr_scheduler_type="constant",  # the first two steps of four are those of two
        preflight=False,
        **training,
    )


@pytest.fixture(scope="module")
def two(noise, root, run_script):
    """What two processes did, one after the other."""
    jobs = []
    for mode in MODES:
        jobs.append({"how": "fresh", "plain": plain(noise, root / mode, parallel=mode, max_steps=2)})
        jobs.append({"how": "resume", "plain": plain(noise, root / mode, parallel=mode, max_steps=4)})
    for mode in ("fsdp2", "zero3"):
        jobs.append({"how": "full", "plain": plain(noise, root / f"full-{mode}", parallel=mode, max_steps=2)})
    jobs.append({"how": "gone", "plain": plain(noise, root / "gone", parallel="zero2", max_steps=2)})
    file = root / "jobs.json"
    file.write_text(json.dumps(jobs))
    done = run_script(ALL, file)
    assert done.code == 3, done.err[-6000:]
    return done


@pytest.fixture(scope="module")
def one(noise, root):
    """What one process did."""
    config = plain(noise, root / "one", max_steps=4)
    run(validate(config), plain=config, progress=False)
    return root / "one"


def tensors(folder):
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


@pytest.mark.parametrize("mode", MODES)
def test_a_fresh_run_saves_and_goes_on(two, one, root, mode):
    for name, atol in (("checkpoint-2/optimizer", 1e-8), ("checkpoint-4/optimizer", 1e-8), ("model", 1e-6)):
        ours, theirs = tensors(root / mode / name), tensors(one / name)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, atol=atol, rtol=1e-3, msg=f"{name} {key}")


@pytest.mark.parametrize("mode", ["fsdp2", "zero3"])
def test_a_disk_that_is_full_at_the_end(two, root, mode):
    """Every process hears of it; the last checkpoint stays."""
    fault = f"full: cannot save '{root / f'full-{mode}' / 'model'}': No space left on device; earlier checkpoints"
    assert fault in two.out
    assert fault in (two.logs / "rank-1.out").read_text()
    out = root / f"full-{mode}"
    assert tensors(out / "checkpoint-2")
    assert not (out / "model").exists()


def test_a_process_that_cannot_gather_ends_all(two, root):
    """The other waits for it in vain, and hears nothing."""
    told = (two.logs / "rank-1.out").read_text()
    assert "gone: cannot gather the tensor after '" in told
    assert "': out of memory" in told
    assert not list((root / "gone").glob("checkpoint-*"))


ALONE = """
import os
from torch import distributed
from speechlmm_train.parallel.leaving import own_variables_kept
from speechlmm_train.parallel.ranks import Ranks

before = dict(os.environ)
for _ in range(2):
    with own_variables_kept():
        Ranks.start(on_cpu=True, alone=True)
        assert os.environ["WORLD_SIZE"] == "1"
        distributed.barrier()
    assert dict(os.environ) == before
"""


def test_a_group_of_one_leaves_nothing_behind(tmp_path):
    done = subprocess.run([sys.executable, "-c", ALONE], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []

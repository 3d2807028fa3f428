"""Several processes on this machine: what is shown, what is kept, and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import soundfile

from speechlmm_train.launch.reasons import reason_of

SUM = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
print("rank", dist.get_rank(), "of", dist.get_world_size(), "sum", total.item(), sys.argv[1])
print("threads", torch.get_num_threads())
print("warned", dist.get_rank(), file=sys.stderr)
dist.destroy_process_group()
"""


def test_two_processes_form_a_group_and_only_the_first_is_shown(run_script):
    done = run_script(SUM, "given")
    assert done.code == 0, done.err
    assert done.out == "rank 0 of 2 sum 3.0 given\nthreads 1\n"
    assert "warned 0" in done.err
    assert "warned 1" not in done.err
    assert (done.logs / "rank-1.out").read_text() == "rank 1 of 2 sum 3.0 given\nthreads 1\n"
    assert "warned 1" in (done.logs / "rank-1.err").read_text()


FAILS = """
import os, sys, time
if os.environ["RANK"] == "1":
    print("error: the second rank's own fault", file=sys.stderr)
    sys.exit(7)
time.sleep(600)
"""


def test_the_exit_code_is_that_of_the_first_that_failed_and_the_others_are_ended(run_script):
    done = run_script(FAILS)
    assert done.code == 7
    assert "error: rank 1: the second rank's own fault\n" in done.err
    assert str(done.logs) in done.err


IS_KILLED = """
import os, signal, sys
from speechlmm_core.wording import word
from speechlmm_train.parallel.ranks import Ranks
ranks = Ranks.start(on_cpu=True)
ranks.gather(1)
if ranks.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    ranks.gather(2)
except Exception as exc:
    lines, code = word(exc)
    print(*(f"error: {line}" for line in lines), sep="\\n", file=sys.stderr, flush=True)
    os._exit(code)
"""


def test_a_rank_that_is_killed_is_the_reason_however_soon_the_others_miss_it(run_script):
    done = run_script(IS_KILLED)
    assert "its own message says why" in (done.logs / "rank-0.err").read_text()
    assert done.code == 128 + signal.SIGKILL
    said = f"rank 1 was ended by SIGKILL; see {done.logs / 'rank-1.err'}"
    assert f"error: {said}\n" in done.err
    assert reason_of(done.logs, done.code, range(2)) == said


WAITS = """
import os, signal, sys, time
from pathlib import Path
from speechlmm_train.launch.worker import die_with_parent
die_with_parent()
folder = Path(sys.argv[1])
def stop(*_):
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, signal.default_int_handler)
(folder / f"{os.environ['RANK']}.tmp").write_text(str(os.getpid()))
(folder / f"{os.environ['RANK']}.tmp").rename(folder / f"{os.environ['RANK']}.pid")
try:
    time.sleep(600)
except KeyboardInterrupt:
    time.sleep(0.5)
    print("error: interrupted; nothing is lost", file=sys.stderr, flush=True)
    sys.exit(130)
"""
LAUNCHER = """
import sys
from pathlib import Path
from speechlmm_train.launch.processes import run_processes
folder = Path(sys.argv[1])
sys.exit(run_processes([str(folder / "waits.py"), str(folder)], processes=2, logs=folder / "logs"))
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_what_ends_the_launcher_ends_all_ranks(tmp_path, number, code):
    (tmp_path / "waits.py").write_text(WAITS)
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path)]
    with (tmp_path / "shown").open("wb") as shown, subprocess.Popen(command, stderr=shown) as launcher:
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        pids = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
        launcher.send_signal(number)
        if number == signal.SIGINT:  # from the terminal, and from what stands above the launcher there
            time.sleep(0.1)
            launcher.send_signal(number)
        assert launcher.wait(120) == code
    if number == signal.SIGINT:
        assert (tmp_path / "shown").read_text() == "error: interrupted; nothing is lost\n"
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def wait_until(condition, timeout=120):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_user_sees_two_processes_train_and_a_port_in_use_refused(tmp_path):
    tone = (0.1 * np.sin(0.2 * np.arange(8000))).astype("float32")
    rows = []
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.flac", tone, 16000)
        rows.append({"audio": f"{i}.flac", "text": f"tone {i}", "task": "asr", "language": "en"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["model/audio_encoder=tiny_whisper", "model/audio_adapter=tiny_mlp", "model/text_decoder=tiny_llama"]
    arguments += ["data.train=[train.jsonl]", "training.max_steps=2", "training.report_to=none"]
    arguments += ["training.per_device_train_batch_size=2", "training.micro_batches_per_step=2"]
    arguments += ["training.num_processes=2", "training.output_dir=out"]
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = speechlmm_train(tmp_path, "run", *arguments, "--port", str(port))
    assert (code, err) == (
        2,
        f"error: port {port} is in use on this machine; choose another --port, or leave that out\n",
    )
    code, out, err = speechlmm_train(tmp_path, "run", *arguments)
    assert code == 0, err
    assert out.count("trained 2 steps") == 1
    assert err.count("2/2") >= 1  # the progress bar of one rank
    [logs] = [entry for entry in (tmp_path / "out" / "launch").iterdir() if entry.is_dir()]
    assert "trained" not in (logs / "rank-1.out").read_text()
    code, out, _ = speechlmm_train(tmp_path, "status", "out")
    assert code == 0
    assert "finished" in out


def speechlmm_train(folder, *arguments):
    code = "from speechlmm_train.cli.main import main; main()"
    threads = {"MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr

"""Who may write to an output folder: one run at a time, and none is held by a run that is dead."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from speechlmm_core.errors import ConfigError
from speechlmm_train.cli import run as command
from speechlmm_train.launch import local
from speechlmm_train.launch.claim import claimed
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.multirun import Options
from speechlmm_train.launch.slurm import submit
from speechlmm_train.launch.state import State
from speechlmm_train.launch.status import refuse_active, status_of
from speechlmm_train.launch.table import status_table
from speechlmm_train.preempted import PreemptedError
from speechlmm_train.slurm_config import SlurmLauncherConfig

HOLD = """
import sys, time
from pathlib import Path
from speechlmm_train.launch.claim import claimed
with claimed(Path(sys.argv[1]), name="held"):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder):
    """Another process that trains in a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def fake(folder, name, text):
    """A command of SLURM's that says what it is told to."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def bin_path(tmp_path, monkeypatch):
    """Where SLURM's commands are; at first there are none that know of a job."""
    path = tmp_path / "bin"
    for name in ("sbatch", "srun"):
        fake(path, name, "exit 0")
    fake(path, "squeue", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    return path


def a_job(folder, **more):
    return Job({"training": {"output_dir": str(folder)}}, str(folder.parent), **more)


def said(folder):
    one = status_of([folder])[0]
    return one.state, one.exit_code, one.reason


def leave_result(folder):
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "config.yaml").write_text("{}")
    (folder / "train_report.json").write_text('{"steps": 1}')


# ---- runs in the command's own process


def test_a_run_holds_its_folder_and_a_kill_frees_it(tmp_path):
    folder = tmp_path / "out"
    process = hold(folder)
    try:
        assert said(folder) == ("running", None, "")
        pattern = rf"is running on {socket.gethostname()}, as process {process.pid}; .*kill {process.pid}"
        with pytest.raises(ConfigError, match=pattern), claimed(folder, name="second"):
            raise AssertionError
        assert State.read(folder).name == "held"
    finally:
        process.kill()  # not waited for: until it is, its number is in use
    deadline = time.monotonic() + 20
    while said(folder)[0] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert said(folder) == ("failed", None, "it ended without a word: killed, or the machine went down")
    refuse_active(folder)
    process.wait()
    process.stdout.close()


def test_a_number_that_another_process_has_by_now_holds_nothing(tmp_path):
    State("running").begun().write(tmp_path)
    assert said(tmp_path)[0] == "running"
    long_ago = replace(State("running").begun(), started=time.time() - 10**7)  # before this process was
    long_ago.write(tmp_path)
    assert said(tmp_path)[0] == "failed"


def test_a_run_elsewhere_lives_as_long_as_it_touches_its_state(tmp_path, monkeypatch):
    state = replace(State("running").begun(), host="another", pid=1)
    state.write(tmp_path)
    file = tmp_path / "launch" / "state.json"
    with pytest.raises(ConfigError, match="is running on another, as process 1"):
        refuse_active(tmp_path)
    os.utime(file, (time.time() - 3600,) * 2)
    refuse_active(tmp_path)
    monkeypatch.setattr("speechlmm_train.launch.claim.BEAT_S", 0.01)
    with claimed(tmp_path, name="here"):
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 20
        while file.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_job_of_ones_own_that_slurm_queues_again_goes_on_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    replace(State("running").begun(), host="another").write(tmp_path)
    with pytest.raises(ConfigError, match="is running on another"):
        refuse_active(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    refuse_active(tmp_path)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (RuntimeError("no memory"), ("failed", 1, "RuntimeError: no memory (--debug shows where)")),
        (KeyboardInterrupt(), ("failed", 130, "interrupted")),
        (PreemptedError("stopped after step 3"), ("preempted", 75, "stopped after step 3")),
        (None, ("finished", None, "")),
    ],
)
def test_how_a_run_ended_is_told(tmp_path, fault, expected):
    folder = tmp_path / "out"

    def train():
        with claimed(folder, name="run"):
            leave_result(folder)
            if fault is not None:
                raise fault

    if fault is None:
        train()
    else:
        with pytest.raises(type(fault)):
            train()
    assert said(folder) == expected
    state = State.read(folder)
    assert (state.pid, state.host) == (os.getpid(), socket.gethostname())
    assert state.ended >= state.started
    refuse_active(folder)


def test_a_run_that_is_refused_before_it_wrote_anything_leaves_all_as_it_was(tmp_path):
    folder = tmp_path / "new" / "out"

    def refused(when):
        with claimed(folder, name="run"):
            when()
            raise ConfigError("data are wrong")

    with pytest.raises(ConfigError, match="data are wrong"):
        refused(lambda: None)
    assert not (tmp_path / "new").exists()
    with claimed(folder, name="first"):
        leave_result(folder)
    with pytest.raises(ConfigError):
        refused(lambda: None)
    assert (State.read(folder).name, said(folder)) == ("first", ("finished", None, ""))
    with pytest.raises(ConfigError):
        refused(lambda: os.utime(folder / "config.yaml", (1, 1)))  # written anew
    assert said(folder) == ("failed", 2, "data are wrong")


def composed(folder):
    training = SimpleNamespace(output_dir=str(folder), num_processes=1)
    return SimpleNamespace(config=SimpleNamespace(training=training), plain={}, name="run", launcher=None)


def test_the_command_trains_in_no_folder_that_a_job_or_a_process_has(tmp_path, monkeypatch, bin_path):
    began = []

    def train(*_):
        began.append(said(tmp_path / "out")[0])
        leave_result(tmp_path / "out")
        return 0

    monkeypatch.setattr(command, "_train", train)
    fake(bin_path, "squeue", 'echo "41|PENDING|Priority"')
    State("queued", job_id="41", submitted=time.time()).write(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"is queued as SLURM job 41; .*`scancel 41`"):
        command._here(composed(tmp_path / "out"), Options())
    assert began == []
    fake(bin_path, "squeue", 'echo "41|CANCELLED|None"')
    assert command._here(composed(tmp_path / "out"), Options()) == 0
    assert began == ["running"]
    assert said(tmp_path / "out") == ("finished", None, "")
    assert State.read(tmp_path / "out").job_id is None
    monkeypatch.setenv("RANK", "1")  # others of the group leave that to the first
    assert command._here(composed(tmp_path / "out"), Options()) == 0


# ---- runs in processes of their own


@pytest.mark.parametrize(
    ("wrote", "code", "expected"),
    [
        ({0: "step 1\nerror: no memory\n"}, 1, ("failed", 1, "no memory")),
        ({0: "Traceback", 1: "error: a wrong file\nerror: another\n"}, 2, ("failed", 2, "a wrong file; another")),
        ({0: "Traceback"}, 3, ("failed", 3, "exit code 3; see the logs in ")),
        ({}, 137, ("failed", 137, "ended by SIGKILL; see the logs in ")),
        ({}, 124, ("failed", 124, "not finished after 5 s")),
        ({}, 130, ("failed", 130, "interrupted")),
        ({0: "error: stopped after step 3"}, 75, ("preempted", 75, "stopped after step 3")),
    ],
)
def test_why_a_local_run_failed_is_in_its_state_and_the_table(tmp_path, monkeypatch, wrote, code, expected):
    def processes(_arguments, *, logs, **_):
        logs.mkdir(parents=True)
        for rank, text in wrote.items():
            (logs / f"rank-{rank}.err").write_text(text)
        return code

    monkeypatch.setattr(local, "run_processes", processes)
    assert local.run_job(a_job(tmp_path / "out"), processes=2, timeout=5) == code
    state, exit_code, reason = said(tmp_path / "out")
    assert (state, exit_code) == expected[:2]
    assert reason.startswith(expected[2])
    assert any(expected[2] in line for line in status_table(status_of([tmp_path / "out"]))[3:])


# ---- jobs


def test_a_job_that_slurm_forgot_before_it_began_is_given_up(tmp_path, bin_path):
    state = State("queued", job_id="41", submitted=time.time())
    state.write(tmp_path)
    assert said(tmp_path)[0] == "queued"  # just submitted: it may not be listed yet
    replace(state, submitted=time.time() - 3600).write(tmp_path)
    assert said(tmp_path)[0] == "failed"
    refuse_active(tmp_path)


def test_the_time_of_submission_is_kept(tmp_path, bin_path):
    before = time.time()
    fake(bin_path, "sbatch", "echo Submitted batch job 7")
    assert submit(a_job(tmp_path / "out"), SlurmLauncherConfig(), name="run", processes=1).job_id == "7"
    state = State.read(tmp_path / "out")
    assert (state.state, state.job_id) == ("queued", "7")
    assert before <= state.submitted <= time.time()


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_submission_that_is_broken_off_lets_the_folder_go(tmp_path, bin_path, monkeypatch, fault):
    import submitit

    def submit_task(*_):
        assert said(tmp_path / "out")[0] == "queued"
        with pytest.raises(ConfigError, match=f"is being submitted on .*, as process {os.getpid()}"):
            refuse_active(tmp_path / "out")
        raise fault

    monkeypatch.setattr(submitit.SlurmExecutor, "submit", submit_task)
    with pytest.raises(type(fault)):
        submit(a_job(tmp_path / "out"), SlurmLauncherConfig(), name="run", processes=1)
    state, _, reason = said(tmp_path / "out")
    assert state == "failed"
    assert reason.startswith("not submitted: ")
    refuse_active(tmp_path / "out")


def test_a_submission_that_is_killed_lets_the_folder_go(tmp_path, bin_path):
    ready = tmp_path / "ready"
    fake(bin_path, "sbatch", f"touch {ready}; exec sleep 600")
    code = (
        "import sys; from pathlib import Path; from speechlmm_train.launch.job import Job;"
        "from speechlmm_train.launch.slurm import submit;"
        "from speechlmm_train.slurm_config import SlurmLauncherConfig;"
        "submit(Job({'training': {'output_dir': 'out'}}, sys.argv[1]), SlurmLauncherConfig(), name='run', processes=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], start_new_session=True)
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert json.loads((tmp_path / "out" / "launch" / "state.json").read_text())["pid"] == process.pid
    assert said(tmp_path / "out")[0] == "queued"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert said(tmp_path / "out")[0] == "failed"
    refuse_active(tmp_path / "out")

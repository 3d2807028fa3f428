"""What a node of a SLURM job does when SLURM interrupts it: which signal, which attempt, what is said of it.

SLURM's commands and the ranks are small scripts here; the handlers of signals are submitit's own.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmJobEnvironment

from speechlmm_core.errors import ConfigError
from speechlmm_train.launch import wait
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.node import NodeTask
from speechlmm_train.launch.notes import first_failure, wait_for_notes, write_note
from speechlmm_train.launch.slurm import script, submit
from speechlmm_train.launch.state import State
from speechlmm_train.launch.status import refuse_active, status_of
from speechlmm_train.launch.wait import wait_for
from speechlmm_train.slurm_config import SlurmLauncherConfig
from speechlmm_train.trainer.output_folder import OutputFolder


def fake(file, text):
    """A command that does what it is told to."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder of commands, which come before the system's."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    fake(tmp_path / "bin" / "scontrol", "exit 1")
    return tmp_path / "bin"


@pytest.fixture
def attempt(tmp_path):
    """The folder of job 7's first attempt, which its first node has begun."""
    folder = tmp_path / "out" / "launch" / "job-7"
    folder.mkdir(parents=True)
    (folder / "meeting.json").write_text('{"address": "a", "port": 20000}')
    (folder / "node-0.up").touch()
    return folder


@pytest.fixture
def node(tmp_path, monkeypatch, commands):
    """Does a node's share of job 7 with a script in place of its ranks; gives the exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT)}
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    output_dir = tmp_path / "out"

    def do(ranks="exit 0", *, restarts=0, number=0, nodes="a", meanwhile=None, timeouts=100):
        fake(commands / "python", ranks)
        monkeypatch.setattr(sys, "executable", str(commands / "python"))
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        monkeypatch.setenv("SLURM_PROCID", str(number))
        monkeypatch.setenv("SLURM_JOB_NODELIST", nodes)
        if not (output_dir / "launch" / "job.json").exists():
            a_job(output_dir).write(output_dir / "launch" / "job.json")
        (output_dir / "launch" / "submitit").mkdir(exist_ok=True)
        task = NodeTask(str(output_dir), processes=1, port=None, node_timeout_s=10, signal_delay_s=22)
        delayed = DelayedSubmission(task)
        delayed.set_timeout(1, timeouts)
        environment = SlurmJobEnvironment()
        environment._handle_signals(JobPaths(output_dir / "launch" / "submitit", job_id="7"), delayed)
        thread = threading.Thread(target=meanwhile or (lambda: None))
        thread.start()
        try:
            delayed.result()
        except SystemExit as exc:
            return exc.code
        finally:
            thread.join()
            for which, handler in handlers.items():
                signal.signal(which, handler)
        return 0

    yield do
    for which, handler in handlers.items():
        signal.signal(which, handler)


def a_job(folder, **more):
    return Job({"training": {"output_dir": str(folder)}}, str(folder.parent), **more)


def the_agent():
    """The process that stands for the ranks."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                if any(one.name() == "sleep" for one in child.children()):
                    return child
        time.sleep(0.02)
    raise AssertionError("nothing was started")


def sigterm():
    """SIGTERM to all processes of the job, as before SLURM takes the nodes."""
    agent = the_agent()
    processes = [agent, *agent.children()]
    os.kill(os.getpid(), signal.SIGTERM)
    for process in processes:
        process.terminate()


def sigusr2():
    the_agent()
    os.kill(os.getpid(), signal.SIGUSR2)


def state_of(folder):
    return json.loads((folder / "launch" / "state.json").read_text())


# ---- which run an attempt goes on with


def test_a_run_is_overwritten_once_however_early_its_job_is_queued_again(tmp_path, node, commands):
    folder = tmp_path / "out"
    (folder / "checkpoint-5").mkdir(parents=True)
    OutputFolder(folder).write_config({"seed": 0})
    for name in ("sbatch", "srun", "squeue"):
        fake(commands / name, "echo Submitted batch job 7")
    fake(commands / "squeue", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
    submit(a_job(folder, overwrite=True), SlurmLauncherConfig(), name="run", processes=1)

    def attempt(restarts):
        assert node(restarts=restarts) == 0
        name = f"job-7-restart-{restarts}" if restarts else "job-7"
        job = json.loads((folder / "launch" / name / "job.json").read_text())
        return job["overwrite"], job["resume"]

    assert attempt(0) == (True, False)
    assert attempt(1) == (True, False)  # the model was being loaded: the old run is still there
    (folder / "config.yaml").unlink()
    assert attempt(2) == (True, False)  # ended while it was being removed
    OutputFolder(folder).prepare(overwrite=True)
    OutputFolder(folder).write_config({"seed": 1})
    assert not (folder / "checkpoint-5").exists()
    assert attempt(3) == (False, True)
    assert attempt(4) == (False, True)


def test_a_run_that_overwrites_nothing_resumes_from_the_first_restart_on(tmp_path, node):
    assert node(restarts=1) == 0
    job = json.loads((tmp_path / "out" / "launch" / "job-7-restart-1" / "job.json").read_text())
    assert (job["overwrite"], job["resume"]) == (False, True)


# ---- signals


@pytest.mark.parametrize(
    "ranks",
    [
        "trap 'exit 75' TERM; sleep 60 & wait",  # they save
        "sleep 60; exit 1",  # they were still loading the model, and are ended
    ],
)
def test_a_job_whose_nodes_are_to_be_taken_asks_to_be_queued_again(tmp_path, node, ranks):
    assert node(ranks, meanwhile=sigterm) == 75
    state = state_of(tmp_path / "out")
    assert (state["state"], state["exit_code"], state["reason"]) == ("preempted", 75, "to be queued again")
    assert (tmp_path / "out" / "launch" / "requeue").exists()


def test_ranks_that_something_else_ends_have_failed(tmp_path, node):
    assert node("sleep 60", meanwhile=lambda: the_agent().terminate()) == 143
    assert state_of(tmp_path / "out")["state"] == "failed"
    assert not (tmp_path / "out" / "launch" / "requeue").exists()


def test_on_other_nodes_the_end_of_a_run_that_was_asked_to_stop_is_no_failure(tmp_path, node, attempt):
    assert node("trap 'exit 75' TERM; sleep 60 & wait", meanwhile=sigterm, number=1, nodes="a,b") == 0
    assert first_failure(attempt) == (75, "")
    assert not (tmp_path / "out" / "launch" / "state.json").exists()


MISSES = "rank 1: another process ended (in training); its own message says why"


@pytest.mark.parametrize(
    ("note", "code", "said"),
    [
        # The other node failed, so that SLURM ended this one. Again, it would do the same.
        ((137, "rank 1 was ended by SIGKILL", False), 137, "rank 1 was ended by SIGKILL"),
        ((2, "no such file", False), 2, "no such file"),
        ((143, "rank 1 was ended by SIGTERM", False), 143, "rank 1 was ended by SIGTERM"),
        (None, 143, "b ended without a word; ended by SIGTERM"),
        # All were asked to end.
        ((143, "rank 1 was ended by SIGTERM", True), 75, "to be queued again"),
        ((2, MISSES, True), 75, "to be queued again"),
        ((2, MISSES, False), 75, "to be queued again"),
        ((75, "", False), 75, "to be queued again"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_ranks_that_are_ended_as_they_start_are_preempted_unless_a_node_has_failed(
    tmp_path, node, monkeypatch, note, code, said, late
):
    attempt = tmp_path / "out" / "launch" / "job-7"
    attempt.mkdir(parents=True)
    (attempt / "node-1.up").write_text("b\n")
    if note is None:
        monkeypatch.setattr("speechlmm_train.launch.node.GRACE_S", 1)

    def leave():
        if note is not None:
            write_note(attempt, 1, *note[:2], asked=note[2])

    def meanwhile():
        the_agent()
        if not late:
            leave()
        sigterm()
        if late:
            time.sleep(0.5)
            leave()

    assert node("sleep 60; exit 1", nodes="a,b", meanwhile=meanwhile) == code
    state = state_of(tmp_path / "out")
    assert (state["state"], state["exit_code"]) == ("preempted" if code == 75 else "failed", code)
    assert state["reason"].startswith(said)
    assert (tmp_path / "out" / "launch" / "requeue").exists() == (code == 75)


def test_another_node_that_is_ended_as_it_starts_leaves_it_to_the_first_what_that_means(node, attempt):
    assert node("sleep 60; exit 1", meanwhile=sigterm, number=1, nodes="a,b") == 0
    _, code, _, asked = json.loads((attempt / "node-1.failed").read_text())
    assert (code, asked) == (143, True)
    write_note(attempt, 0, 143, "", asked=True)
    assert first_failure(attempt) == (75, "")


WAITS = "sleep 60; exit 75"


def test_a_job_that_reached_its_time_limit_too_often_has_failed_and_says_so(tmp_path, node):
    assert node(WAITS, meanwhile=sigusr2, timeouts=0) == 1
    state = state_of(tmp_path / "out")
    assert (state["state"], state["exit_code"]) == ("failed", 1)
    assert "not queued again: the time limit was reached more than max_num_timeout times" in state["reason"]
    assert not (tmp_path / "out" / "launch" / "requeue").exists()


def test_submitit_queues_the_job_again_before_the_time_limit(tmp_path, node, commands):
    fake(commands / "scontrol", f'test "$*" = "requeue 7" && touch {tmp_path}/asked')
    assert node(WAITS, meanwhile=sigusr2) == -1
    assert (tmp_path / "asked").exists()
    assert not (tmp_path / "out" / "launch" / "requeue").exists()
    assert state_of(tmp_path / "out")["state"] == "preempted"


@pytest.mark.parametrize("there", [False, True])
def test_where_the_run_cannot_queue_its_job_again_the_batch_script_is_asked_to(
    tmp_path, node, commands, monkeypatch, there
):
    if not there:  # as in a container
        (commands / "scontrol").unlink()
        monkeypatch.setenv("PATH", str(commands))
        for name in ("sh", "sleep"):
            (commands / name).symlink_to(f"/bin/{name}")
    assert node(WAITS, meanwhile=sigusr2) == 75
    assert (tmp_path / "out" / "launch" / "requeue").exists()
    assert state_of(tmp_path / "out")["reason"] == "to be queued again"


def test_a_fault_of_another_kind_is_in_the_state(tmp_path, node):
    (tmp_path / "out" / "launch" / "job-7").mkdir(parents=True)
    (tmp_path / "out" / "launch" / "job-7" / "node-0.up").mkdir()  # cannot be written
    assert node() == 1
    state = state_of(tmp_path / "out")
    assert (state["state"], state["exit_code"]) == ("failed", 1)
    assert "node-0.up" in state["reason"]


@pytest.mark.parametrize(
    ("notes", "first"),
    [
        ([(1, 137, "ended by SIGKILL"), (0, 1, "Connection closed by peer")], (137, "ended by SIGKILL")),
        ([(1, 139, "ended by SIGSEGV"), (0, 1, "Connection closed by peer")], (139, "ended by SIGSEGV")),
        ([(0, 134, "ended by SIGABRT"), (1, 143, "ended by SIGTERM")], (134, "ended by SIGABRT")),
        ([(1, 143, "ended by SIGTERM"), (0, 1, "the disk is full")], (1, "the disk is full")),
        ([(1, 143, "ended by SIGTERM"), (0, 143, "ended by SIGTERM, too")], (143, "ended by SIGTERM")),
        ([(1, 2, "a fault"), (0, 137, "ended by SIGKILL")], (2, "a fault")),
        ([(0, 2, MISSES), (1, 137, "ended by SIGKILL")], (137, "ended by SIGKILL")),
        ([(0, 2, MISSES), (1, 143, "ended by SIGTERM")], (143, "ended by SIGTERM")),
        ([(0, 2, MISSES), (1, 75, "")], (75, "")),
        ([(0, 75, ""), (1, 1, "not queued again")], (1, "not queued again")),
        ([(0, 2, MISSES)], (2, MISSES)),
        ([], None),
    ],
)
def test_the_node_that_failed_first_says_why(tmp_path, notes, first):
    for number, code, reason in notes:
        write_note(tmp_path, number, code, reason)
        time.sleep(0.002)
    assert first_failure(tmp_path) == first


def test_only_nodes_that_came_up_are_waited_for(tmp_path):
    (tmp_path / "node-0.up").touch()
    write_note(tmp_path, 0, 1, "1 of 2 nodes did not come up")
    began = time.monotonic()
    wait_for_notes(tmp_path, timeout_s=60)
    assert time.monotonic() - began < 30
    (tmp_path / "node-1.up").touch()
    threading.Timer(0.3, lambda: write_note(tmp_path, 1, 1, "a fault")).start()
    wait_for_notes(tmp_path, timeout_s=60)
    assert (tmp_path / "node-1.failed").exists()


# ---- the batch script


def test_srun_is_given_the_cores_that_sbatch_was(tmp_path):
    def srun(**settings):
        lines = script(a_job(tmp_path), SlurmLauncherConfig(**settings), "run").splitlines()
        return next(line for line in lines if line.startswith("srun ")).partition(" -u -m ")[0].split()

    assert "--cpus-per-task=16" in srun(cpus_per_task=16)
    assert not any("cpus" in word for word in srun())
    given = srun(cpus_per_task=16, srun_args=["--cpus-per-task=8"])
    assert given.index("--cpus-per-task=8") > given.index("--cpus-per-task=16")  # the last one counts


@pytest.mark.parametrize("asked", [True, False])
def test_the_batch_script_queues_the_job_again_if_asked_to_and_keeps_the_exit_code(tmp_path, commands, asked):
    out = tmp_path / "it's out"
    (out / "launch").mkdir(parents=True)
    marker = out / "launch" / "requeue"
    marker.touch()  # of an earlier attempt, which this one knows nothing of
    fake(commands / "srun", f'{f"""touch "{marker}"; """ if asked else ""}exit 75')
    fake(commands / "scontrol", f'echo "$*" >> {tmp_path}/log')
    launcher = SlurmLauncherConfig(teardown=[f"echo teardown >> {tmp_path}/log; exit 9"])
    file = tmp_path / "batch.sh"
    file.write_text(script(a_job(out), launcher, "run"))
    done = subprocess.run(["bash", file], env={**os.environ, "SLURM_JOB_ID": "7"}, check=False)
    assert done.returncode == 9
    assert (tmp_path / "log").read_text() == "teardown\n" + ("requeue Incomplete 7\n" if asked else "")


# ---- what is said of a job that was asked to stop


@pytest.mark.parametrize(
    ("own", "said", "state", "reason"),
    [
        ("preempted", "RUNNING|None", "running", "ending; to be queued again"),
        ("preempted", "COMPLETING|None", "running", "ending; to be queued again"),
        ("preempted", "PENDING|BeginTime", "queued", "queued again; BeginTime"),
        ("preempted", "CANCELLED|None", "failed", "SLURM: cancelled"),
        ("preempted", "FAILED|NonZeroExitCode", "failed", "SLURM: failed"),
        ("failed", "COMPLETING|None", "running", "ending; to be queued again"),
        ("running", "COMPLETING|None", "running", "to be queued again"),
        ("preempted", None, "failed", "cancelled, or not queued again, after it was asked to stop; --resume goes on"),
    ],
)
def test_a_job_is_over_when_slurm_has_done_with_it(tmp_path, commands, own, said, state, reason):
    forgotten = "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1"
    fake(commands / "squeue", f'echo "41|{said}"' if said else forgotten)
    State(own, job_id="41", exit_code=75, reason="to be queued again", ended=time.time()).write(tmp_path)
    one = status_of([tmp_path])[0]
    assert (one.state, one.reason, one.exit_code) == (state, reason, None)
    if state == "failed":
        refuse_active(tmp_path)
    else:
        with pytest.raises(ConfigError, match="scancel 41"):
            refuse_active(tmp_path)


def test_where_slurm_does_not_answer_a_job_may_run_again(tmp_path, commands, monkeypatch, capsys):
    fake(commands / "squeue", "echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1")
    State("preempted", job_id="41", exit_code=75, reason="to be queued again", ended=1.0).write(tmp_path)
    assert status_of([tmp_path])[0].state == "preempted"
    with pytest.raises(ConfigError, match="is preempted as SLURM job 41"):
        refuse_active(tmp_path)
    answers = iter(["COMPLETING|None", "PENDING|BeginTime", "CANCELLED|None"])
    monkeypatch.setattr(
        wait, "time", SimpleNamespace(sleep=lambda _: fake(commands / "squeue", f'echo "41|{next(answers)}"'))
    )
    [ended] = wait_for([tmp_path])
    assert (ended.state, ended.reason) == ("failed", "SLURM: cancelled")
    said = [line.partition("(job 41): ")[2] for line in capsys.readouterr().err.splitlines()]
    assert [line.partition(":")[0] for line in said] == ["preempted", "running", "queued", "failed"]

"""How runs are started and watched: launchers, nodes, states, sweeps. No process is started here but small ones."""

import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.errors import ConfigError
from speechlmm_train.launch import multirun, status, wait
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.meeting import NodeMissingError, choose_port, meet
from speechlmm_train.launch.multirun import Options, list_runs, run_sweep
from speechlmm_train.launch.node import Place, node_names
from speechlmm_train.launch.processes import Group, port_is_free, run_processes
from speechlmm_train.launch.slurm import script, submit
from speechlmm_train.launch.state import State
from speechlmm_train.launch.status import refuse_active, status_of
from speechlmm_train.launch.tail import tail
from speechlmm_train.launch.wait import tell_end, wait_for
from speechlmm_train.slurm_config import SlurmLauncherConfig, gpus_in, minutes_of, slurm_config


def a_job(folder, **more):
    return Job({"training": {"output_dir": str(folder)}}, str(folder.parent), **more)


# ---- launchers


@pytest.mark.parametrize(
    ("text", "minutes"),
    # sbatch's manual: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds]
    [("90", 90), ("5:00", 5), ("5:01", 6), ("02:30:00", 150), ("2-12", 3600), ("1-00:30", 1470), ("1-0:0:1", 1441)],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, minutes):
    assert SlurmLauncherConfig(time=text, signal_delay_s=1).time == minutes


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_time_limit_is_never_cut_short(days, hours, minutes, seconds):
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    found = minutes_of(f"{days}-{hours:02}:{minutes:02}:{seconds:02}")
    assert found * 60 >= total
    assert found * 60 - total < 60 or total == 0


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [(None, 0), ("gpu", 1), ("gpu:4", 4), ("gpu:a100:8", 8), ("gpu:a100:2,nvme:1,gpu:v100:1", 3), ("nvme:3", 0)],
)
def test_processes_follow_from_gres(gres, gpus):
    assert gpus_in(gres) == gpus
    assert SlurmLauncherConfig(gres=gres).processes == max(1, gpus)


def test_what_no_launcher_has_is_told_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"hydra.launcher.partiton: unknown key 'partiton'; did you mean 'partition'"):
        slurm_config({"type": "slurm", "partiton": "gpu"})
    with pytest.raises(ConfigError, match="unknown launcher 'slrum'; did you mean 'slurm'"):
        slurm_config({"type": "slrum"})
    with pytest.raises(ConfigError, match="either time or timeout_min"):
        slurm_config({"time": 5, "timeout_min": 5})
    with pytest.raises(ConfigError, match=r"hydra.launcher.time: got 'soon'; expected minutes, HH:MM:SS"):
        slurm_config({"time": "soon"})
    with pytest.raises(ConfigError, match=r"hydra.launcher: signal_delay_s \(120 s\) has to be shorter than time"):
        slurm_config({"time": 2})
    assert slurm_config({"timeout_min": 5, "setup": "module load CUDA"}).setup == ["module load CUDA"]


@pytest.mark.parametrize("preset", ["slurm", "athena", "helios"])
def test_the_presets_are_launchers_that_need_no_patched_submitit(preset, tmp_path):
    import yaml

    import speechlmm_train.presets as presets

    file = Path(presets.__file__).parent / "hydra" / "launcher" / f"{preset}.yaml"
    launcher = slurm_config({**yaml.safe_load(file.read_text()), "nodes": 2, "account": "grant"})
    text = script(a_job(tmp_path / "out"), launcher, "name")
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"  # no login shell: what modules need stands in the setup lines
    assert "#SBATCH --nodes=2" in lines
    assert "#SBATCH --ntasks-per-node=1" in lines
    assert "#SBATCH --account=grant" in lines
    assert "#SBATCH --requeue" in lines
    if preset != "slurm":
        assert any(line.startswith("source /etc/profile") for line in lines)
        assert f"#SBATCH --gres=gpu:{launcher.processes}" in lines
        assert "#SBATCH --time=2880" in lines


def test_the_batch_script_runs_the_python_that_the_nodes_have(tmp_path):
    launcher = SlurmLauncherConfig(
        python="/net/aarch64/bin/python",
        mem="64G",
        port=None,
        additional_parameters={"reservation": "class", "x": False},
    )
    lines = script(a_job(tmp_path / "out"), launcher, "run").splitlines()
    command = next(line for line in lines if line.startswith("srun "))
    assert " /net/aarch64/bin/python -u -m submitit.core._submit " in command
    assert sys.executable not in "\n".join(lines)
    assert "#SBATCH --mem=64G" in lines
    assert "#SBATCH --reservation=class" in lines
    assert not any("--x" in line for line in lines)


def test_without_slurm_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"SLURM is not installed on this machine \(sbatch, srun, squeue not found\)"):
        submit(a_job(tmp_path / "out"), SlurmLauncherConfig(), name="run", processes=1)
    assert not (tmp_path / "out").exists()


# ---- nodes


def test_a_node_that_never_comes_up_is_missed_by_name(tmp_path):
    with pytest.raises(NodeMissingError, match=r"2 of 3 nodes did not come up within 0.3 s: b, c"):
        meet(tmp_path, node=0, nodes=["a", "b", "c"], job_id=1, timeout_s=0.3)
    with pytest.raises(NodeMissingError, match=r"1 of 2 nodes did not come up within 0.3 s: a"):
        meet(tmp_path / "other", node=1, nodes=["a", "b"], job_id=1, timeout_s=0.3)


def test_all_nodes_hear_the_first_ones_name_and_port(tmp_path):
    import threading

    found = {}

    def come(node, wait):
        time.sleep(wait)
        found[node] = meet(tmp_path, node=node, nodes=["a", "b"], job_id=7, timeout_s=20)

    threads = [threading.Thread(target=come, args=(node, 0.3 * node)) for node in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert found[0].address == "a"
    assert port_is_free(found[0].port)


def test_a_port_follows_from_the_job_and_one_in_use_is_passed_over():
    first = choose_port(5)
    with socket.socket() as taken:
        taken.bind(("", first))
        taken.listen()
        assert not port_is_free(first)
        assert choose_port(5) != first
        with pytest.raises(NodeMissingError, match=f"port {first} is in use"):
            choose_port(5, first)
        with pytest.raises(ConfigError, match=f"port {first} is in use on this machine; choose another one"):
            run_processes(["-c", "pass"], processes=2, logs=Path("unused"), group=Group(port=first))


def fake(folder, name, text):
    """A command of SLURM's that says what it is told to."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_names_of_nodes_are_spelled_out_by_slurm(tmp_path, monkeypatch):
    fake(tmp_path, "scontrol", 'test "$*" = "show hostnames gpu[01-02],login" && printf "gpu01\\ngpu02\\nlogin\\n"')
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node_names("gpu[01-02],login") == ("gpu01", "gpu02", "login")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_NODELIST": "gpu[01-02],login"}.items():
        monkeypatch.setenv(name, value)
    assert node_names("gpu[01-02],login") == ("gpu01", "gpu02", "login")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert Place.of_environment() == Place(12, 2, 1, ("gpu01", "gpu02", "login"))
    assert Place.of_environment().attempt == "job-12-restart-2"


# ---- a process, and its log


def test_a_single_process_is_shown_and_its_exit_code_returned(tmp_path, capfd):
    code = "import sys; print('said'); print('warned', file=sys.stderr); sys.exit(3)"
    assert run_processes(["-c", code], processes=1, logs=tmp_path) == 3
    assert capfd.readouterr() == ("said\n", "warned\n")
    assert tail(tmp_path / "rank-0.err", 5) == ["warned"]


def test_a_process_that_a_signal_ends_is_named_with_it(tmp_path, capfd):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_processes(["-c", code], processes=1, logs=tmp_path) == 128 + 9
    assert "ended by SIGKILL" in capfd.readouterr().err


def test_a_process_that_takes_too_long_is_ended(tmp_path, capfd):
    assert run_processes(["-c", "import time; time.sleep(60)"], processes=1, logs=tmp_path, timeout=1) == 124
    assert "not finished after 1 s" in capfd.readouterr().err


def test_what_ends_the_launcher_ends_the_run(tmp_path):
    script = tmp_path / "save.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "def stop(*_):\n    (here / 'saved').touch()\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n(here / 'begun').touch()\ntime.sleep(60)\n"
    )
    code = (
        "import pathlib, sys; from speechlmm_train.launch.processes import run_processes;"
        "sys.exit(run_processes(sys.argv[1:], processes=1, logs=pathlib.Path(sys.argv[2])))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(script), str(tmp_path)]) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 75
    assert (tmp_path / "saved").exists()


def test_the_end_of_a_log_is_what_a_terminal_would_show(tmp_path):
    (tmp_path / "log").write_bytes(b"first\n 10%|#\r 20%|##\nlast\n\n")
    assert tail(tmp_path / "log", 2) == [" 20%|##", "last"]
    assert tail(tmp_path / "none", 2) == []


# ---- states


def finish(folder, steps=4, plain=None):
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "train_report.json").write_text(json.dumps({"steps": steps}))
    (folder / "config.yaml").write_text(json.dumps(plain or {}))
    row = {"step": steps, "stage": "train", "train/loss": 1.25, "train/lm": 1.5, "eval/asr_wer": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def test_states_of_runs_on_this_machine(tmp_path):
    finish(tmp_path / "done")
    State("running").begun().over(0).write(tmp_path / "done")
    finish(tmp_path / "unwatched", steps=2)
    State("running").begun().write(tmp_path / "on")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = State("running").begun()
    State(**{**dead.__dict__, "pid": gone.pid}).write(tmp_path / "killed")
    State("running").begun().over(2, "a fault").write(tmp_path / "wrong")
    State("running").begun().over(75).write(tmp_path / "stopped")
    names = ["done", "unwatched", "on", "killed", "wrong", "stopped", "none"]
    found = {one.folder.name: one for one in status_of([tmp_path / name for name in names])}
    states = {name: one.state for name, one in found.items()}
    assert states == {
        "done": "finished",
        "unwatched": "finished",
        "on": "running",
        "killed": "failed",
        "wrong": "failed",
        "stopped": "preempted",
        "none": "not begun",
    }
    assert (found["done"].step, found["done"].figures) == (4, "loss 1.25, asr_wer 0.5")
    assert (found["wrong"].exit_code, found["wrong"].reason) == (2, "a fault")
    with pytest.raises(ConfigError, match="is running on"):
        refuse_active(tmp_path / "on")
    refuse_active(tmp_path / "killed")


@pytest.mark.parametrize(
    ("own", "said", "state"),
    [
        ("queued", "PENDING|Priority", "queued"),
        ("queued", "RUNNING|None", "queued"),
        ("running", "RUNNING|None", "running"),
        ("running", "PENDING|BeginTime", "queued"),
        ("preempted", "PENDING|BeginTime", "queued"),
        ("running", "TIMEOUT|TimeLimit", "failed"),
        ("running", "NODE_FAIL|None", "failed"),
        ("queued", "CANCELLED|None", "failed"),
        ("queued", "COMPLETED|None", "failed"),
        ("failed", "FAILED|NonZeroExitCode", "failed"),
        ("finished", "COMPLETED|None", "finished"),
    ],
)
def test_states_of_jobs_come_from_slurm_and_the_run_together(tmp_path, monkeypatch, own, said, state):
    (tmp_path / "bin").mkdir()
    fake(tmp_path / "bin", "squeue", f'echo "41|{said}"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    folder = tmp_path / "run"
    if own == "finished":
        finish(folder)
    State(own, job_id="41", started=time.time()).write(folder)
    assert status_of([folder])[0].state == state


def test_a_job_that_slurm_has_forgotten_failed_unless_it_said_otherwise(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    fake(tmp_path / "bin", "squeue", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    State("running", job_id="41", started=time.time() - 3600).write(tmp_path / "lost")
    State("failed", job_id="42", exit_code=2, reason="a fault").write(tmp_path / "told")
    lost, told = status_of([tmp_path / "lost", tmp_path / "told"])
    assert (lost.state, told.state) == ("failed", "failed")
    assert "without a word" in lost.reason
    assert told.reason == "a fault"


def test_waiting_tells_each_change_and_the_end_of_the_log_of_what_failed(tmp_path, monkeypatch, capsys):
    (tmp_path / "bin").mkdir()
    fake(tmp_path / "bin", "squeue", 'echo "41|RUNNING|None"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    folder, log = tmp_path / "run", tmp_path / "rank-0.err"
    log.write_text("error: the disk is full\n")
    State("running", job_id="41", log=str(log), started=time.time()).write(folder)
    rounds = []

    def sleep(_seconds):
        rounds.append(1)
        assert len(rounds) < 5
        State("failed", job_id="41", exit_code=9, reason="the disk is full", log=str(log)).write(folder)
        if len(rounds) == 2:
            fake(tmp_path / "bin", "squeue", 'echo "41|FAILED|NonZeroExitCode"')

    monkeypatch.setattr(wait, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    [ended] = wait_for([folder])
    assert len(rounds) == 2  # as long as SLURM has the job
    assert tell_end(ended) == 9
    said = capsys.readouterr().err
    assert "(job 41): running\n" in said
    assert "running: ending; the disk is full" in said
    assert "failed: the disk is full" in said
    assert f"the end of {log}:\n  error: the disk is full" in said


# ---- sweeps


class Composed:
    """What a sweep's run is composed to, as far as running it matters."""

    launcher = None
    changes = ()

    def __init__(self, folder, name):
        training = type("Training", (), {"output_dir": str(folder), "num_processes": 1, "micro_batches_per_step": 1})
        self.plain = {"training": {"output_dir": str(folder)}}
        stage = SimpleNamespace(name="train", training=training)
        self.config = SimpleNamespace(training=training, resolved_stages=lambda: [stage])
        self.name = name


def sweep(folder, faults=()):
    from speechlmm_train.sweep import SweepRun

    runs = []
    for number in range(4):
        composed = None if number in faults else Composed(folder / f"run-{number}", f"run-{number}")
        fault = "training.seed: got 'x'" if number in faults else None
        runs.append(SweepRun(number, (f"training.seed={number}",), (f"training.seed={number}",), composed, fault))
    return runs


def worker(codes, started):
    """Stands for `run_job`: ends with the exit codes given, and leaves what a run leaves."""

    def run(job, *, processes, port, name, debug):
        started.append((name, job.resume))
        code = codes.get(name, 0)
        if code == 0:
            finish(job.output_dir, plain=dict(job.plain))
        State("running", name=name).begun().over(code, "a fault" if code else "").write(job.output_dir)
        return code

    return run


def test_a_run_that_fails_does_not_stop_the_others_and_is_in_the_table(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(multirun, "run_job", worker({"run-1": 7}, started))
    runs = sweep(tmp_path, faults=[2])
    assert run_sweep("pretrain", ["training.seed=0,1,2,3"], runs, Options()) == 1
    assert started == [("run-0", False), ("run-1", False), ("run-3", False)]
    out, err = capsys.readouterr()
    table = [line for line in out.splitlines() if "run-" in line or "seed=2" in line]
    assert [("finished" in row, "failed" in row) for row in table[:4]] == [
        (True, False),
        (False, True),
        (False, True),
        (True, False),
    ]
    assert "failed, exit code 7" in table[1]
    assert "loss 1.25" in table[0]
    assert "training.seed: got 'x'" in err


def test_a_sweep_that_is_done_again_skips_what_is_finished_and_goes_on_with_the_rest(tmp_path, monkeypatch, capsys):
    started = []
    finish(tmp_path / "run-0", plain={"training": {"output_dir": str(tmp_path / "run-0")}})
    finish(tmp_path / "run-1", plain={"training": {"output_dir": "another spelling", "num_workers": 3}})
    (tmp_path / "run-2").mkdir()
    (tmp_path / "run-2" / "config.yaml").write_text("{}")
    monkeypatch.setattr(multirun, "run_job", worker({}, started))
    lines, code = list_runs(sweep(tmp_path), Options())
    assert code == 0
    assert [row.split("|")[4].strip() for row in lines[2:6]] == ["finished", "finished", "resume", "start"]
    assert started == []
    assert run_sweep("pretrain", [], sweep(tmp_path), Options()) == 0
    assert started == [("run-2", True), ("run-3", False)]
    assert "run-0: finished before, skipped" in capsys.readouterr().err
    started.clear()
    assert run_sweep("pretrain", [], sweep(tmp_path), Options()) == 0
    assert started == []


def test_a_sweep_that_is_asked_to_stop_stops(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(multirun, "run_job", worker({"run-1": 130}, started))
    assert run_sweep("pretrain", [], sweep(tmp_path), Options()) == 130
    assert [name for name, _ in started] == ["run-0", "run-1"]
    assert capsys.readouterr().out.count("not begun") == 2


def test_a_sweep_of_nothing_but_faults_is_one_fault(tmp_path):
    with pytest.raises(ConfigError, match="got 'x'"):
        run_sweep("pretrain", [], sweep(tmp_path, faults=range(4)), Options())
    assert not list(tmp_path.iterdir())


def test_the_same_command_finds_its_record_again_and_status_reads_it(tmp_path, monkeypatch, capsys):
    from speechlmm_train.launch.record import SweepRecord

    monkeypatch.setattr(multirun, "run_job", worker({}, []))
    runs = sweep(tmp_path)
    assert run_sweep("pretrain", ["a"], runs, Options()) == 0
    assert run_sweep("pretrain", ["a"], runs, Options()) == 0
    assert run_sweep("pretrain", ["b"], runs, Options()) == 0
    folders = sorted((tmp_path / "multirun").iterdir())
    assert len(folders) == 2
    record = SweepRecord.read(folders[0])
    assert record is not None
    assert [run.name for run in record.runs] == [f"run-{number}" for number in range(4)]
    assert status.runs_below(folders[0]) == [tmp_path / f"run-{number}" for number in range(4)]
    assert status.runs_below(tmp_path) == [tmp_path / f"run-{number}" for number in range(4)]
    with pytest.raises(ConfigError, match="there is no run in"):
        status.runs_below(tmp_path / "multirun")

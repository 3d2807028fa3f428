"""Runs as jobs of a real SLURM cluster, whose two nodes are this machine."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("speechlmm_tools_slurm_cluster", ROOT / "tools" / "slurm_cluster.py")
tool = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = tool
SPEC.loader.exec_module(tool)

# Two daemons, and root, which a laptop does not have. The gate does; there nothing is skipped in silence.
WHY_NOT = tool.why_not()
REQUIRED = os.environ.get("SPEECHLMM_SLURM_TESTS") == "required"
pytestmark = pytest.mark.skipif(WHY_NOT is not None and not REQUIRED, reason=f"no SLURM cluster: {WHY_NOT}")

MODEL = ["model/audio_encoder=tiny_whisper", "model/audio_adapter=tiny_mlp", "model/text_decoder=tiny_llama"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.time=00:10:00", "hydra.launcher.cpus_per_task=1"]
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def cluster():
    if WHY_NOT is not None:
        pytest.fail(f"these tests are required, and there is no SLURM cluster: {WHY_NOT}", pytrace=False)
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, tool.Cluster(Path(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a manifest of tones, which commands are started in."""
    folder = tmp_path_factory.mktemp("slurm")
    rows = []
    for i in range(8):
        tone = 0.1 * np.sin(2 * np.pi * (300 + 100 * i) * np.arange(8000) / 16000)
        soundfile.write(folder / f"{i}.flac", tone.astype("float32"), 16000)
        rows.append({"audio": f"{i}.flac", "text": f"tone {i}", "task": "asr", "language": "en"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def start(cluster, place):
    """Starts `speechlmm-train` on the cluster."""

    def command(*arguments):
        code = "import sys; from speechlmm_train.cli.main import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=place,
            env={**cluster.env, **THREADS},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return command


def run(out, *more, steps=3, manifest="train.jsonl"):
    sizes = ["training.per_device_train_batch_size=2", "training.report_to=none", "training.logging_steps=1"]
    where = [f"training.output_dir={out}", f"data.train=[{manifest}]", f"training.max_steps={steps}"]
    return ["run", *MODEL, *SLURM, *sizes, *where, "training.learning_rate=1e-3", *more]


def end(process, timeout=300):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def steps_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def on_two_nodes(start, place):
    two = ["hydra.launcher.nodes=2", "training.micro_batches_per_step=2"]
    return end(start(*run("two", *two))), place / "two"


def test_one_training_runs_on_two_nodes(on_two_nodes, start):
    (code, out, err), folder = on_two_nodes
    assert code == 0, err
    state = json.loads((folder / "launch" / "state.json").read_text())
    assert (state["state"], state["nodes"], state["exit_code"]) == ("finished", ["n0", "n1"], 0)
    assert (folder / "model" / "model.safetensors").is_file()
    assert steps_of(folder) == [1, 2, 3]
    logs = folder / "launch" / f"job-{state['job_id']}"
    assert sorted(log.name for log in logs.glob("rank-*.err")) == ["rank-0.err", "rank-1.err"]
    # The address is the first node's name, wherever a rank runs: on the second one, localhost would be itself.
    assert json.loads((logs / "meeting.json").read_text())["address"] == "n0"
    assert "trained 3 steps" in (logs / "rank-0.out").read_text()
    assert "trained" not in (logs / "rank-1.out").read_text()
    code, out, _ = end(start("status", "two"))
    assert code == 0
    assert "finished" in out


def test_a_sweep_is_a_job_for_each_run_and_is_done_once(start, place):
    sweep = ["--multirun", "training.seed=0,1"]
    code, out, err = end(start(*run("sweep/run", *sweep, steps=2)))
    assert code == 0, err
    rows = [line for line in out.splitlines() if "training.seed=" in line]
    assert [("training.seed=0" in row, "finished" in row) for row in rows] == [(True, True), (False, True)]
    states = [json.loads(file.read_text()) for file in sorted(place.glob("sweep/run*/launch/state.json"))]
    assert len({state["job_id"] for state in states}) == 2
    code, out, err = end(start(*run("sweep/run", *sweep, steps=2)))
    assert code == 0, err
    assert err.count("finished before, skipped") == 2
    [folder] = (place / "sweep" / "multirun").iterdir()
    code, out, _ = end(start("status", str(folder)))
    assert (code, out.count("finished")) == (0, 2)


@pytest.fixture(scope="module")
def failing(start):
    """A job that fails, begun beside the one of the test before its own, for most of its time goes into starting."""
    process = start(*run("fails", "hydra.launcher.nodelist=n0", manifest="nowhere.jsonl"))
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


def test_a_job_that_is_queued_again_resumes(start, cluster, place, failing):
    more = ["--no-wait", "training.save_steps=5", "hydra.launcher.nodelist=n1"]
    code, out, err = end(start(*run("again", *more, steps=4000)))
    assert code == 0, err
    folder = place / "again"
    job = json.loads((folder / "launch" / "state.json").read_text())["job_id"]
    assert f"submitted as job {job}" in out
    wait_until(lambda: any(folder.glob("checkpoint-*/config.json")))
    # Another job takes its node. It is given time, saves, and ends itself long before that is over.
    both = f"--cpus-per-task={tool.CPUS}"
    wanted = ["--partition=urgent", "--nodelist=n1", both, "--output=/dev/null", "--wrap=true"]
    urgent = cluster.run(["sbatch", "--parsable", *wanted]).strip()
    began = time.monotonic()
    wait_until(lambda: cluster.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"]).strip() == "PENDING")
    assert time.monotonic() - began < tool.GRACE_S
    assert "SIGTERM" in json.loads((folder / "launch" / "state.json").read_text())["reason"]
    wait_until(lambda: not cluster.run(["squeue", "--noheader", "--states=PD,R,CG", f"--jobs={urgent}"]).strip())

    hurry(cluster, job)

    def restarted():
        return json.loads((folder / "launch" / "state.json").read_text())["restarts"] == 1

    wait_until(restarted, told=lambda: cluster.run(["squeue", "--long"]) + cluster.run(["sinfo", "--Node", "--long"]))
    logs = folder / "launch" / f"job-{job}-restart-1"
    wait_until((logs / "job.json").exists)
    again = json.loads((logs / "job.json").read_text())
    assert again["resume"]
    saved = max(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))
    wait_until(lambda: steps_of(folder)[-1] > saved)
    # As before the time limit: the run saves, and the job queues itself again.
    cluster.run(["scancel", "--signal=USR2", job])
    wait_until(lambda: cluster.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"]).strip() == "PENDING")
    state = json.loads((folder / "launch" / "state.json").read_text())
    assert (state["state"], state["exit_code"]) == ("preempted", 75)
    steps = steps_of(folder)
    assert steps == list(range(1, len(steps) + 1))  # each once: it went on from the checkpoint
    assert (folder / f"checkpoint-{steps[-1]}").is_dir()
    code, out, _ = end(start("status", "again"))
    assert (code, "queued" in out, "queued again" in out) == (0, True, True)
    cluster.run(["scancel", job])


def hurry(cluster, job):
    """Has a job that was queued again start without the two minutes that SLURM gives it.

    In the second in which it was ended, its credential would be taken for the revoked one, and the job be killed.
    """
    time.sleep(3)
    cluster.run(["scontrol", "update", f"jobid={job}", "starttime=now"])


def wait_until(condition, timeout=240, told=str):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.3)


def test_the_exit_code_and_the_log_of_a_job_that_fails_reach_the_user(start, failing):
    code, _, err = end(failing)
    assert code == 2
    assert "nowhere.jsonl" in err
    assert "rank-0.err" in err
    code, out, _ = end(start("status", "fails"))
    assert code == 1
    assert "failed, exit code 2" in out


def test_a_node_that_never_comes_up_ends_the_job_with_its_name(start, place):
    # What runs on the second node is kept from starting, as by a node that hangs.
    one = 'hydra.launcher.srun_args=["--nodes=1","--ntasks=1"]'
    shared = ("hydra.launcher.nodes=2", "training.micro_batches_per_step=2")
    code, _, err = end(start(*run("missing", *shared, one, "hydra.launcher.node_timeout_s=2")))
    assert code == 1
    assert "1 of 2 nodes did not come up within 2 s: n1" in err


def test_what_slurm_refuses_is_told_on_one_line(start, place):
    code, _, err = end(start(*run("refused", "hydra.launcher.partition=nowhere")))
    assert code == 2
    [line] = [line for line in err.splitlines() if line.startswith("error:")]
    assert "partition" in line


def test_a_run_that_is_queued_is_not_submitted_twice(start, cluster, place):
    held = "hydra.launcher.additional_parameters={hold: true}"
    code, out, err = end(start(*run("held", held, "--no-wait")))
    assert code == 0, err
    job = json.loads((place / "held" / "launch" / "state.json").read_text())["job_id"]
    code, out, _ = end(start("status", "held"))
    assert (code, "queued" in out, f"job {job}" in out) == (0, True, True)
    code, _, err = end(start(*run("held", "--overwrite", "--no-wait")))
    assert code == 2
    assert f"scancel {job}" in err
    cluster.run(["scancel", job])
    wait_until(lambda: not cluster.run(["squeue", "--noheader", f"--jobs={job}"]).strip())
    code, out, _ = end(start("status", "held"))
    assert code == 1
    assert "failed" in out
    assert "cancelled" in out


def test_what_is_to_be_overwritten_is_so_even_if_the_job_is_queued_again_before(start, cluster, place, on_two_nodes):
    code, out, err = end(start(*run("two", "--overwrite", "--no-wait")))
    assert code == 0, err
    launch = place / "two" / "launch"
    job = out.partition("submitted as job ")[2].partition(";")[0]
    wait_until((launch / f"job-{job}" / "rank-0.err").exists)
    cluster.run(["scontrol", "requeue", job])
    wait_until(lambda: cluster.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"]).strip() == "PENDING")
    assert (place / "two" / "model").is_dir()  # it had not come as far as removing anything
    hurry(cluster, job)
    again = launch / f"job-{job}-restart-1" / "job.json"
    wait_until(again.exists)
    assert (json.loads(again.read_text())["overwrite"], json.loads(again.read_text())["resume"]) == (True, False)
    cluster.run(["scancel", job])
    wait_until(lambda: not cluster.run(["squeue", "--noheader", f"--jobs={job}"]).strip())
    code, out, _ = end(start("status", "two"))
    assert code == 1
    assert "cancelled" in out

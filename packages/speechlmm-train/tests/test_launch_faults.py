"""Runs that cannot be done are told before they are queued, and take no others with them."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.errors import ConfigError
from speechlmm_train import folders
from speechlmm_train.cli.main import main
from speechlmm_train.compose import compose_config
from speechlmm_train.composing.names import run_name
from speechlmm_train.launch import multirun, status
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.multirun import Options, list_runs, run_sweep
from speechlmm_train.launch.record import SweepRecord
from speechlmm_train.launch.shares import check_shares
from speechlmm_train.launch.state import State
from speechlmm_train.sweep import SweepRun
from speechlmm_train.trainer.checkpoints import Progress
from speechlmm_train.trainer.manifest import write_manifest
from speechlmm_train.trainer.output_folder import OutputFolder

BUDGET = 8192
SETTINGS = {"extras": {}, "parallel": "auto", "resume_changed": False, "early_stopping_patience": None}
SETTINGS |= {"token_budget": BUDGET, "frame_budget": None, "per_device_train_batch_size": None, "packed": True}
SETTINGS |= {"lora_adapters": [], "load_in_4bit": False, "load_in_8bit": False, "freeze_modules": []}


def config(folder, *micro_batches, stages=(), **training):
    data = SimpleNamespace(mixing="random", batch_window=10_000)
    common = {**SETTINGS, **training}
    names = [f"stage-{index}" for index in range(len(micro_batches))] or ["train"]
    asked = stages or [{"name": name, "max_steps": training.get("max_steps")} for name in names]
    resolved = [
        SimpleNamespace(
            name=stage["name"],
            max_steps=stage["max_steps"],
            data=data,
            trainable_modules=None,
            training=SimpleNamespace(**{**common, "micro_batches_per_step": number}),
        )
        for stage, number in zip(asked, micro_batches or [1] * len(asked), strict=True)
    ]
    training = SimpleNamespace(**{**common, "output_dir": str(folder), "num_processes": "auto"})
    return SimpleNamespace(training=training, resolved_stages=lambda: resolved)


def composed(folder, *micro_batches, launcher=None, data=None, stages=(), **training):
    plain = {"data": data or {}, "training": {"output_dir": str(folder), **training}, "stages": list(stages)}
    return SimpleNamespace(
        config=config(folder, *micro_batches, stages=stages, **training),
        plain=plain,
        name=folder.name[:40],
        launcher=launcher,
        changes=(),
    )


def sweep(*runs):
    return [SweepRun(number, (f"x={number}",), (f"x={number}",), run) for number, run in enumerate(runs)]


def finish(output_dir, plain):
    """What a run that is finished leaves, its last checkpoint among it."""
    (output_dir / "model").mkdir(parents=True, exist_ok=True)
    (output_dir / "model" / "config.json").write_text("{}")
    stages = plain.get("stages") or [{"name": "train", "max_steps": plain.get("training", {}).get("max_steps") or 1}]
    total = sum(stage["max_steps"] for stage in stages)
    (output_dir / "train_report.json").write_text(json.dumps({"steps": total}))
    OutputFolder(output_dir).write_config(plain)
    State("running").begun().over(0).write(output_dir)
    checkpoint = output_dir / f"checkpoint-{total}"
    if checkpoint.exists():
        return
    (checkpoint / "optimizer").mkdir(parents=True)
    (checkpoint / "optimizer" / "state.json").write_text('{"format": 1, "optimizer": "AdamW"}')
    made_by = {"mixing": "random", "packed": True, "batch_size": None, "batch_window": 10_000}
    made_by |= {"micro_batches_per_step": 1, "token_budget": plain.get("training", {}).get("token_budget", BUDGET)}
    (checkpoint / "sequence.json").write_text(json.dumps({"decided_by": made_by, "position": {}}))
    Progress(len(stages) - 1, stages[-1]["name"], stages[-1]["max_steps"], total).write(checkpoint)
    write_manifest(checkpoint)


def does(started, faults=None):
    """Stands for `run_job`."""

    def run(job, *, processes, port, name, debug):
        started.append((name, job.resume, processes))
        if faults and name in faults:
            raise faults[name]
        finish(job.output_dir, dict(job.plain))
        return 0

    return run


# ---- processes and micro-batches


@pytest.mark.parametrize(
    ("micro_batches", "processes", "nodes", "told"),
    [
        (16, 4, 3, r"multiple of the 12 processes \(3 nodes with 4 each\): set it to 12 or 24, or take 1, 2, 4 nodes"),
        (8, 4, 4, r"the 16 processes \(4 nodes with 4 each\): set it to 16, or take 1 or 2 nodes"),
        (56, 4, 4, r"the 16 processes \(4 nodes with 4 each\): set it to 48 or 64, or take 1, 2, 7 or 14 nodes"),
        (4, 4, 3, r"set it to 12, or take 1 node"),
        (6, 4, 1, r"of the 4 processes: set it to 4 or 8, or take 1, 2 or 3 processes"),
        (1, 2, 1, r"set it to 2, or take 1 process"),
        (6, 4, 2, r"set it to 8, or take 1 or 3 processes on each node"),
        (1, 4, 2, r"set it to 8, or take 1 process on one node"),
    ],
)
def test_numbers_that_can_share_a_step_are_named(tmp_path, micro_batches, processes, nodes, told):
    told = told.replace("1, 2, 4 nodes", "1, 2 or 4 nodes")
    with pytest.raises(ConfigError, match=rf"^training.micro_batches_per_step: got {micro_batches}; .*{told}$"):
        check_shares(config(tmp_path, micro_batches), processes=processes, nodes=nodes)


@given(st.integers(1, 200), st.integers(1, 16), st.integers(1, 12))
def test_all_numbers_that_are_named_can_share_a_step(micro_batches, processes, nodes):
    import re

    try:
        check_shares(config("out", micro_batches), processes=processes, nodes=nodes)
    except ConfigError as exc:
        assert micro_batches % (processes * nodes) != 0
        text = str(exc)
    else:
        assert micro_batches % (processes * nodes) == 0
        return
    sets, takes = (re.findall(r"\d+", part) for part in re.search(r"set it to (.*), or take (.*)$", text).groups())
    assert sets
    assert all(int(number) % (processes * nodes) == 0 for number in sets)
    assert takes
    fixed = {"node": processes, "each": nodes, "one": 1, "process": 1}
    kind = "each" if "on each node" in text else "one" if "on one node" in text else None
    kind = kind or ("node" if re.search(r"take [\d, or]+ nodes?$", text) else "process")
    assert all(micro_batches % (int(number) * fixed[kind]) == 0 for number in takes)


def test_each_stage_is_looked_at(tmp_path):
    with pytest.raises(ConfigError, match=r"^stage 'stage-1': training.micro_batches_per_step: got 6; .* 4 processes"):
        check_shares(config(tmp_path, 8, 6), processes=4)
    check_shares(config(tmp_path, 8, 12), processes=2, nodes=2)


def test_a_run_that_cannot_be_shared_is_told_and_not_queued(tmp_path, monkeypatch, capsys):
    launcher = {"type": "slurm", "gres": "gpu:4", "nodes": 3}
    wrong, right = (composed(tmp_path / name, number, launcher=launcher) for name, number in (("a", 16), ("b", 24)))
    lines, code = list_runs(sweep(wrong, right), Options())
    assert code == 2
    assert [row.split("|")[4].strip() for row in lines[2:4]] == ["cannot be run", "start"]
    assert any("a: training.micro_batches_per_step: got 16" in line for line in lines)
    submitted = []

    def submit(_job, _launcher, *, name, processes):
        submitted.append((name, processes))
        return State("queued", job_id="1")

    monkeypatch.setattr(multirun, "check_slurm", lambda: None)
    monkeypatch.setattr(multirun, "submit", submit)
    assert run_sweep("pretrain", [], sweep(wrong, right), Options(wait=False)) == 1
    assert submitted == [("b", 4)]
    assert "error: a: training.micro_batches_per_step" in capsys.readouterr().err


# ---- faults of single runs


def test_a_fault_of_the_machine_is_that_runs_alone(tmp_path, monkeypatch, capsys):
    started = []
    faults = {"b": OSError(28, "No space left on device")}
    monkeypatch.setattr(multirun, "run_job", does(started, faults))
    runs = sweep(*(composed(tmp_path / name) for name in ("a", "b", "n" * 300, "c")))
    assert run_sweep("pretrain", [], runs, Options()) == 1
    assert [name for name, _, _ in started] == ["a", "b", "c"]
    out, err = capsys.readouterr()
    states = [row.split("|")[3].strip() for row in out.splitlines()[2:6]]
    assert [state.partition(",")[0] for state in states] == ["finished", "failed", "failed", "finished"]
    assert "b: No space left on device" in out
    assert "File name too long" in err
    lines, code = list_runs(runs, Options())
    assert code == 2
    assert any("File name too long" in line for line in lines)


STAGES = [{"name": "a", "max_steps": 5}, {"name": "b", "max_steps": 5}]
LONGER = [STAGES[0], {"name": "b", "max_steps": 6}]


NO = "cannot be run"


@pytest.mark.parametrize(
    ("before", "after", "told", "then"),
    # Then: what is done about the finished run; for those that differ, what --resume does about both.
    [
        (
            {"learning_rate": 1e-3},
            {"learning_rate": 1e-2},
            "training.learning_rate 0.001, asked for 0.01",
            ["resume", NO],
        ),
        ({}, {"seed": 3}, "training.seed 0, asked for 3", [NO, NO]),
        ({"max_steps": 5}, {"max_steps": 4}, "training.max_steps 5, asked for 4", ["resume", NO]),
        ({"max_steps": 5}, {"num_epochs": 9}, "training.max_steps 5, asked for (none)", ["resume", "resume"]),
        ({"eval_samples": 3}, {}, "training.eval_samples 3, asked for 32", ["resume", NO]),
        ({"data": {"train": ["a"]}}, {"data": {"train": ["b"]}}, r"data.train [a], asked for [b]", ["resume", NO]),
        ({"token_budget": 64}, {"token_budget": 65}, "training.token_budget 64, asked for 65", ["resume", NO]),
        ({"stages": STAGES}, {"stages": STAGES[:1]}, "stages [{max_steps: 5, name: a}, ", [NO, NO]),
        ({"stages": LONGER}, {"stages": STAGES}, "stages.b.max_steps 6, asked for 5", ["resume", NO]),
        # What adds work goes on, and what has no part in the results is let be.
        ({"max_steps": 5}, {"max_steps": 6}, None, "resume"),
        ({"num_epochs": 1}, {"num_epochs": 1.5}, None, "resume"),
        ({"stages": STAGES}, {"stages": LONGER}, None, "resume"),
        ({"logging_steps": 5, "save_steps": 5}, {"num_workers": 2, "num_processes": 2}, None, "finished"),
        ({}, {"parallel": "ddp", "report_to": [], "data": {"index_dir": "x"}}, None, "finished"),
        ({}, {"seed": 0, "weight_decay": 0.0, "max_steps": None, "resume_changed": True}, None, "finished"),
        ({"token_budget": 64}, {"token_budget": "auto"}, None, "finished"),
        ({"stages": [{**STAGES[0], "token_budget": 64}]}, {"stages": STAGES[:1], "token_budget": "auto"}, None, None),
    ],
)
def test_a_changed_run_is_not_taken_for_the_one_that_is_there(tmp_path, monkeypatch, capsys, before, after, told, then):
    """A sweep that was done again with other values told the old results as those of the new ones."""
    started = []
    monkeypatch.setattr(multirun, "run_job", does(started))
    if "stages" in before and "token_budget" in after:
        before = {**before, "token_budget": 64}  # as the run writes what it found
    for name in ("begun", "done"):
        OutputFolder(tmp_path / name).make()
        OutputFolder(tmp_path / name).write_config(composed(tmp_path / name, **before).plain)
    finish(tmp_path / "done", composed(tmp_path / "done", **before).plain)
    runs = sweep(*(composed(tmp_path / name, **after) for name in ("begun", "done")))
    lines, code = list_runs(runs, Options())
    todo = [row.split("|")[4].strip() for row in lines[2:4]]
    result = run_sweep("pretrain", [], runs, Options())
    out, err = capsys.readouterr()
    if told is None:
        assert (code, result) == (0, 0)
        assert todo == ["resume", then or "finished"]
        assert started == [("begun", True, 1), *([("done", True, 1)] if then == "resume" else [])]
        return
    assert (code, result) == (2, 1)
    assert todo == ["cannot be run"] * 2
    assert started == []
    for name, resumed in zip(("begun", "done"), then, strict=True):
        (row,) = [line for line in out.splitlines() if line.startswith(f"{name}:") or f" {name}: " in line]
        assert f"begun with {told}" in row
        assert "; give another training.output_dir, " in row
        assert ("--resume to go on with that" in row) == (resumed != NO)
        assert f"error: {name}: begun with {told}" in err
        assert any(f"{name}: begun with {told}" in line for line in lines)
    assert all(row.count("failed") for row in out.splitlines()[2:4])
    resumed, code = list_runs(runs, Options(resume=True))
    assert [row.split("|")[4].strip() for row in resumed[2:4]] == then
    assert code == (2 if NO in then else 0)
    anew, code = list_runs(runs, Options(overwrite=True))
    assert [row.split("|")[4].strip() for row in anew[2:4]] == ["start"] * 2


def test_a_job_that_does_another_run_or_less_of_it_is_not_taken_for_this_one(tmp_path, monkeypatch, capsys):
    """With less, the sweep waited for it and ended as finished."""
    launcher = {"type": "slurm"}
    for name in "abc":
        plain = composed(tmp_path / name, learning_rate=1e-3, max_steps=100).plain
        Job(plain, str(tmp_path)).write(tmp_path / name / "launch/job.json")
        State("queued", job_id="41", started=time.time()).write(tmp_path / name)
    monkeypatch.setattr(multirun, "check_slurm", lambda: None)
    monkeypatch.setattr(status, "ask_queue", lambda _jobs: {"41": ("PENDING", "Priority")})
    asked = [composed(tmp_path / "a", launcher=launcher, learning_rate=1e-2, max_steps=100)]
    asked.append(composed(tmp_path / "c", launcher=launcher, learning_rate=1e-3, max_steps=200))
    asked.append(composed(tmp_path / "b", launcher=launcher, learning_rate=1e-3, max_steps=100))
    lines, code = list_runs(sweep(*asked), Options())
    assert (code, [row.split("|")[4].strip() for row in lines[2:5]]) == (2, [NO, NO, "queued"])
    assert run_sweep("pretrain", [], sweep(*asked), Options(wait=False)) == 1
    out, err = capsys.readouterr()
    assert "a: the job that is there was begun with training.learning_rate 0.001, asked for 0.01; give another" in out
    less = "c: job 41 does less than is asked for: it was begun with training.max_steps 100, asked for 200; wait for it"
    assert f"error: {less} and start again" in err
    assert f"{less} and start again, which goes on from there, or end it with `scancel 41`" in "\n".join(lines)
    assert err.count("job 41 does this run already (queued)") == 1
    assert [row.split("|")[3].split()[0].strip(",") for row in out.splitlines()[2:5]] == ["failed", "failed", "queued"]


def test_a_record_lies_where_the_runs_do_or_where_one_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = sweep(*(composed(Path(name)) for name in ("/aa/x-0", "/bb/y-1")))
    folder = SweepRecord.of("pretrain", [], runs).folder()
    assert folder.parent == tmp_path / "multirun"
    runs = sweep(*(composed(tmp_path / "out" / name) for name in ("x-0", "y-1")))
    assert SweepRecord.of("pretrain", [], runs).folder().parent == tmp_path / "out" / "multirun"
    monkeypatch.setattr(folders.os, "access", lambda path, _mode: Path(path) != tmp_path)
    assert SweepRecord.of("pretrain", [], runs).folder().parent == tmp_path / "multirun"
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "multirun").touch()  # no folder can be made there, and the runs are done all the same
    started = []
    monkeypatch.setattr(multirun, "run_job", does(started))
    assert run_sweep("pretrain", [], runs, Options()) == 0
    assert len(started) == 2
    assert "2 runs; the record of the sweep cannot be written to " in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_started(tmp_path):
    (tmp_path / "file").touch()
    lines, code = list_runs(sweep(composed(tmp_path / "file" / "a")), Options())
    assert code == 2
    assert any("cannot be written to; choose another one" in line for line in lines)


def test_a_dry_run_of_one_run_says_what_run_would_do_about_its_folder(tmp_path, monkeypatch, capsys, preset_folder):
    """It said nothing of a folder that `run` refuses, and its exit code was 0."""
    folder = preset_folder({"model/text_decoder/small.yaml": "type: test.narrow\n"})
    out = tmp_path / "out"
    common = ["--config-dir", str(folder), "model/text_decoder=small", "data.train=[a.jsonl]", "training.max_steps=5"]

    def dry(*more):
        with pytest.raises(SystemExit) as caught:
            main(["run", "--dry-run", *common, f"training.output_dir={out}", *more])
        said, err = capsys.readouterr()
        return caught.value.code, said.splitlines()[-1], err

    assert dry() == (0, "to do:  start", "")
    assert not out.exists()
    finish(out, compose_config("pretrain", [*common[2:], f"training.output_dir={out}"], config_dir=folder).plain)
    code, last, err = dry()
    assert (code, last) == (2, "where:  here, in 1 process(es)")
    assert "is not empty; go on with --resume, or start anew with --overwrite" in err
    assert dry("--overwrite") == (0, "to do:  start anew, in place of what is there", "")
    assert dry("--resume") == (0, "to do:  nothing; it is finished", "")
    assert dry("--resume", "training.max_steps=6")[:2] == (0, "to do:  resume")
    code, _, err = dry("--resume", "training.weight_decay=0.5")
    assert code == 2
    assert "is finished, and nothing is left to train; it was begun with training.weight_decay 0" in err
    # It has done five steps, and was ended while it saved its model.
    (out / "train_report.json").unlink()
    shutil.rmtree(out / "model")
    assert dry("--resume") == (0, "to do:  resume", "")
    for more, told in (
        (["training.max_steps=4"], "stage 'train' has done 5 steps, and 4 are asked for"),
        (["training.optim=sgd"], "holds the state of AdamW, and this run trains with SGD; go on with the same"),
        (["training.token_budget=300"], "would not be those that the run was begun with (token_budget 8192 → 300)"),
        (["training.seed=7"], "begun with seed 0, and this one has seed 7"),
    ):
        code, _, err = dry("--resume", "training.max_steps=9", *more)
        assert (code, told in err) == (2, True), err
    longer = ("--resume", "training.max_steps=9")
    assert dry(*longer, "training.optim=adamw_torch_fused")[:2] == (0, "to do:  resume")
    assert dry(*longer, "training.token_budget=300", "training.resume_changed=true")[:2] == (0, "to do:  resume")
    assert dry("--resume", "training.optim=sgd")[:2] == (0, "to do:  resume")  # no step is left that it would do
    state = out / "checkpoint-5" / "optimizer" / "state.json"
    held = state.read_text()
    state.write_text(held.replace("AdamW", "DeepSpeedCPUAdam"))  # by a JSON of DeepSpeed's; read, it is compared
    (out / "checkpoint-5" / "manifest.json").unlink()
    write_manifest(out / "checkpoint-5")
    assert dry(*longer)[:2] == (0, "to do:  resume")
    state.write_text(held)
    (out / "checkpoint-5" / "manifest.json").unlink()
    write_manifest(out / "checkpoint-5")
    words = "to do:  resume, if the batches are still those that it was begun with (changed: data.train)"
    assert dry(*longer, "data.train=[b.jsonl]")[:2] == (0, words)
    (out / "checkpoint-5" / "progress.json").unlink()
    assert "is whole; start anew with --overwrite" in dry("--resume")[2]
    shutil.rmtree(out / "checkpoint-5")
    assert dry("--resume")[:2] == (0, "to do:  start; there is no checkpoint to go on from")
    State("running", job_id="41", started=time.time()).write(out)
    monkeypatch.setattr(status, "ask_queue", lambda _jobs: {"41": ("RUNNING", "None")})
    assert dry("--resume")[0] == 2
    out = tmp_path / "file" / "out"
    out.parent.touch()
    assert "cannot be written to; choose another one" in dry()[2]


def test_long_values_leave_names_that_file_systems_take(tmp_path):
    def folder(*varied):
        return run_name({"model": {}}, {}, finetune=False, varied=varied).folder

    long = "training.freeze_modules=[" + ",".join(f"layer_{number}" for number in range(60)) + "]"
    names = {folder(long, "training.seed=1"), folder(long, "training.seed=2"), folder(long + "x", "training.seed=1")}
    assert len(names) == 3
    for name in names:
        assert "freeze_modules=_layer_0_layer_1_" in name
        (tmp_path / name).mkdir()
    assert folder("training.seed=1") == "speechlmm-pretrain-text-seed=1"


def test_a_damaged_configuration_of_an_earlier_run_is_named_and_stops_no_other(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(multirun, "run_job", does(started))
    runs = sweep(*(composed(tmp_path / name) for name in "abc"))
    assert run_sweep("pretrain", [], runs, Options()) == 0
    capsys.readouterr()
    started.clear()
    for name, text in (("a", "model: [cut"), ("b", "just a line")):
        (tmp_path / name / "config.yaml").write_text(text)
    lines, code = list_runs(runs, Options())
    assert code == 2
    assert [row.split("|")[4].strip() for row in lines[2:5]] == ["cannot be run", "cannot be run", "finished"]
    assert run_sweep("pretrain", [], runs, Options()) == 1
    assert started == []
    out, err = capsys.readouterr()
    for name in "ab":
        assert f"error: {name}: '{tmp_path / name / 'config.yaml'}' is damaged" in err
    assert [("failed" in row, "finished" in row) for row in out.splitlines()[2:5]] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    with pytest.raises(ConfigError, match="is damaged"):
        OutputFolder(tmp_path / "a").check_same({})


def test_status_finds_runs_where_they_lie_by_default_and_below(tmp_path):
    for place in ("speechlmm/one", "speechlmm/two", "group/project/deep/three", "a/b/c/d/too-deep"):
        finish(tmp_path / place, {})
    finish(tmp_path / "speechlmm" / "one" / "checkpoint-1" / "not-a-run", {})
    finish(tmp_path / ".hidden", {})
    found = [str(folder.relative_to(tmp_path)) for folder in status.runs_below(tmp_path)]
    assert found == ["group/project/deep/three", "speechlmm/one", "speechlmm/two"]
    (tmp_path / "speechlmm" / "loop").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "self").symlink_to(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"there is no run in .*, down to 4 folders below"):
        status.runs_below(tmp_path / "empty")

"""Runs that cannot be done are told before they are queued, and take no others with them."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.errors import ConfigError
from speechlmm_train.composing.names import run_name
from speechlmm_train.launch import multirun, status
from speechlmm_train.launch.multirun import Options, list_runs, run_sweep
from speechlmm_train.launch.shares import check_shares
from speechlmm_train.launch.state import State
from speechlmm_train.sweep import SweepRun
from speechlmm_train.trainer.output_folder import OutputFolder


def config(folder, *micro_batches):
    numbers = micro_batches or (1,)
    stages = [
        SimpleNamespace(name=f"stage-{index}", training=SimpleNamespace(micro_batches_per_step=number))
        for index, number in enumerate(numbers)
    ]
    training = SimpleNamespace(output_dir=str(folder), num_processes="auto")
    return SimpleNamespace(training=training, resolved_stages=lambda: stages)


def composed(folder, *micro_batches, launcher=None):
    plain = {"training": {"output_dir": str(folder)}}
    return SimpleNamespace(
        config=config(folder, *micro_batches), plain=plain, name=folder.name[:40], launcher=launcher, changes=()
    )


def sweep(*runs):
    return [SweepRun(number, (f"x={number}",), (f"x={number}",), run) for number, run in enumerate(runs)]


def finish(output_dir, plain):
    (output_dir / "model").mkdir(parents=True, exist_ok=True)
    (output_dir / "model" / "config.json").write_text("{}")
    (output_dir / "train_report.json").write_text('{"steps": 1}')
    OutputFolder(output_dir).write_config(plain)
    State("running").begun().over(0).write(output_dir)


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

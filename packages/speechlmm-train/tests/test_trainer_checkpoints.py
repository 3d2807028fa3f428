"""Which checkpoints are whole, which a run goes on from, and which are removed."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlmm_core.errors import CheckpointError
from speechlmm_train.trainer.best import Best, RunState
from speechlmm_train.trainer.checkpoints import Progress
from speechlmm_train.trainer.manifest import MANIFEST, damage, write_manifest
from speechlmm_train.trainer.output_folder import OutputFolder


def made(root: Path, step: int) -> Path:
    folder = root / f"checkpoint-{step}"
    (folder / "optimizer").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "optimizer" / "state.safetensors").write_bytes(b"0123456789" * 50)
    Progress(0, "train", step, step).write(folder)
    write_manifest(folder)
    return folder


def truncate(folder):
    os.truncate(folder / "model.safetensors", 999)


def flip(folder):
    """One bit, by which the size does not change; with the old time of change, as by a faulty disk."""
    file = folder / "optimizer" / "state.safetensors"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[77] ^= 4
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def lose(folder):
    (folder / "config.json").unlink()


def tear(folder):
    file = folder / MANIFEST
    file.write_text(file.read_text()[:-30])


def unfinished(folder):
    (folder / MANIFEST).unlink()


DAMAGES = [
    (truncate, r"model\.safetensors has 999 bytes in place of 10240"),
    (flip, r"optimizer/state\.safetensors has other content than was written"),
    (lose, r"config\.json is missing"),
    (tear, r"manifest\.json cannot be read"),
    (unfinished, r"it has no manifest\.json"),
]


def names(folder):
    return sorted((path.name for path in folder.glob("checkpoint-*")), key=lambda name: int(name[11:]))


def test_a_manifest_is_what_sha256sum_says(tmp_path):
    folder = made(tmp_path, 3)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(files) == {"config.json", "model.safetensors", "optimizer/state.safetensors", "progress.json"}
    for name, told in files.items():
        content = (folder / name).read_bytes()
        assert told["sha256"] == hashlib.sha256(content).hexdigest()
        assert told["size"] == len(content)
    assert damage(folder, thorough=True) is None


@pytest.mark.parametrize(("harm", "message"), DAMAGES, ids=lambda one: getattr(one, "__name__", ""))
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog, harm, message):
    made(tmp_path, 9)
    harm(made(tmp_path, 10))
    found = OutputFolder(tmp_path).last_checkpoint()
    assert found is not None
    assert found.path.name == "checkpoint-9"
    assert found.progress == Progress(0, "train", 9, 9)
    assert "checkpoint-10 is damaged and is passed over" in caplog.text
    assert re.search(message, caplog.text)


def test_none_is_whole(tmp_path):
    assert OutputFolder(tmp_path).last_checkpoint() is None
    assert OutputFolder(tmp_path / "nowhere").last_checkpoint() is None
    for step, (harm, _) in enumerate(DAMAGES):
        harm(made(tmp_path, step))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole; start anew with --overwrite"):
        OutputFolder(tmp_path).last_checkpoint()


def test_a_copy_is_as_good(tmp_path):
    """Copying changes times; the content decides."""
    folder = made(tmp_path, 1)
    for file in folder.rglob("*"):
        os.utime(file, (1, 1))
    assert [one.path.name for one in OutputFolder(tmp_path).checkpoints()] == ["checkpoint-1"]


def test_files_that_were_not_touched_are_not_read_again(tmp_path, monkeypatch):
    from speechlmm_train.trainer import manifest

    made(tmp_path, 1)
    (made(tmp_path, 2) / "config.json").touch()
    read = []
    monkeypatch.setattr(manifest, "_sha256", lambda file: read.append(file.name) or hashlib.sha256(b"{}").hexdigest())
    OutputFolder(tmp_path).rotate(5)
    assert read == ["config.json"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([None, truncate, lose, tear]), min_size=1, max_size=6), st.integers(1, 4), st.data())
def test_the_last_whole_ones_and_the_best_are_kept(tmp_path_factory, harms, limit, data):
    root = tmp_path_factory.mktemp("run")
    for step, harm in enumerate(harms, 8):  # 8, 9, 10: order by number, not by name
        folder = made(root, step)
        if harm is not None:
            harm(folder)
    best = data.draw(st.sampled_from(names(root)))
    whole = [f"checkpoint-{step}" for step, harm in enumerate(harms, 8) if harm is None]
    OutputFolder(root).rotate(limit, keep={best})
    left = names(root)
    assert best in left
    assert set(whole[-limit:]) <= set(left)
    if whole:
        assert [name for name in left if name in whole and name != best] == [n for n in whole[-limit:] if n != best]
        oldest = int(whole[-limit:][0][11:]) if len(whole) >= limit else 0
        assert all(int(name[11:]) >= oldest or name == best for name in left)
    else:
        assert len(left) == len(harms)  # nothing is removed where nothing whole is left
    assert not list(root.glob(".*"))


def test_rotation_without_a_limit(tmp_path):
    for step in range(3):
        made(tmp_path, step)
    OutputFolder(tmp_path).rotate(None)
    assert len(names(tmp_path)) == 3


def test_a_best_checkpoint_that_is_damaged_is_forgotten(tmp_path, caplog):
    truncate(made(tmp_path, 2))
    last = made(tmp_path, 4)
    made(tmp_path, 3)
    state = RunState(
        best={
            name: Best("eval/asr_wer", 0.1, step, f"checkpoint-{step}") for name, step in (("a", 2), ("b", 3), ("c", 1))
        }
    )
    state.write(last)
    assert set(RunState.read(last).best) == {"b"}
    assert "its best, checkpoint-2, is gone or damaged: model.safetensors has 999 bytes" in caplog.text


def test_what_was_passed_over_never_outlives_what_is_whole(tmp_path, caplog):
    """A newer checkpoint with other content of the same size looks whole at a glance."""
    for step in (20, 30):
        made(tmp_path, step)
    flip(tmp_path / "checkpoint-30")
    folder = OutputFolder(tmp_path)
    taken = folder.last_checkpoint()
    assert taken is not None
    assert taken.path.name == "checkpoint-20"
    folder.set_aside_after(taken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-30.damaged"]
    assert "checkpoint-30 is kept as checkpoint-30.damaged" in caplog.text
    made(tmp_path, 25)
    folder.rotate(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-25", "checkpoint-30.damaged"]
    assert folder.last_checkpoint().path.name == "checkpoint-25"
    folder.prepare(overwrite=True)
    assert list(tmp_path.iterdir()) == []

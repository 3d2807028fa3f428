"""What `speechlmm-train prepare` leaves alone, keeps apart, and refuses before it writes anything."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from speechlmm_core.data.index.layout import HEADER
from speechlmm_core.data.index.open import index_dir_of
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.errors import DataError
from speechlmm_train.cli.main import cli
from speechlmm_train.prepare.histogram import BINS, bin_edges
from speechlmm_train.prepare.prepare import STAGED, prepare
from speechlmm_train.prepare.report import PreparationReport
from speechlmm_train.prepare.settings import Settings


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Drawing takes longer than all the rest; and nothing is kept in the user's cache."""
    monkeypatch.setattr("speechlmm_train.prepare.histogram.draw_histogram", lambda *_: False)
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))


def spec_of(folder: Path, *entries: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> Path:
    """A specification of manifests that are the same but for the given entries' fields."""
    for number in range(3):
        values = np.random.default_rng(number).uniform(-0.1, 0.1, 16_000)
        soundfile.write(folder / f"{number}.wav", values.astype(np.float32), 16_000, subtype="PCM_16")
    rows = rows or [{"audio": f"{n}.wav", "text": f"row {n}", "language": "en"} for n in range(3)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = [{"type": "jsonl", "path": "m.jsonl", "name": "m", **entry} for entry in entries or ({},)]
    (folder / "s.yaml").write_text(json.dumps({"datasets": content}))
    return folder / "s.yaml"


def run(spec: Path, index_dir: Path | None = None) -> PreparationReport:
    folder = index_dir or index_dir_of(spec)
    return prepare(spec, index_dir=folder, settings=Settings(), jobs=0, progress=False)


def test_files_of_others_stay_in_the_folder(tmp_path: Path) -> None:
    spec, home = spec_of(tmp_path), tmp_path / "home"
    others = [".config.old/precious", ".cache.tmp/x", ".m-0123.tmp/x", ".staged-mine", ".staged-", ".report.md.tmp/x"]
    others += [".my.0123abcd.old/x", "m-notes/header.json", ".m-0123456789abcdef.0123abcd.old/only", ".staged-1.bak"]
    for name in others:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("precious")
    run(spec, home)
    part = next(home.glob(f"m-{'?' * 16}/{HEADER}")).parent
    ours = [f".{part.name}.0123abcd.tmp/x", f".{part.name}.89abcdef.old/x", f"{STAGED}0", f"{STAGED}12"]
    for name in ours:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("left over")
    run(spec, home)
    assert all((home / name).read_text() == "precious" for name in others)
    assert not [name for name in ours if (home / name).exists()]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "no.jsonl"}, "does not exist"),
        ({"task": "slu_intent", "type": "table", "columns": {"audio": "audio", "language": "language"}}, "needs"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    spec = spec_of(tmp_path, entry)
    with pytest.raises(DataError, match=message):
        run(spec, tmp_path / "new" / "index")
    assert not (tmp_path / "new").exists()


def test_a_dataset_that_cannot_serve_its_task_is_refused_as_when_it_is_opened(tmp_path: Path) -> None:
    columns = {"audio": "audio", "text": None, "language": "language"}
    spec = spec_of(tmp_path, {"type": "table", "task": "asr", "columns": columns})
    with pytest.raises(DataError) as on_opening:
        open_spec(read_spec(spec), base=tmp_path)
    with pytest.raises(DataError) as on_preparing:
        run(spec)
    assert "m: task 'asr' needs" in str(on_preparing.value)
    assert str(on_preparing.value) == str(on_opening.value)


@pytest.mark.parametrize(("task", "kept"), [("slu_intent", 3), ("asr", 2)])
def test_rows_with_other_intents_are_no_duplicates(tmp_path: Path, task: str, kept: int) -> None:
    intents = [("0.wav", "play"), ("0.wav", "stop"), ("1.wav", "play"), ("1.wav", "play")]
    rows = [{"audio": path, "text": "x", "language": "en", "fields": {"intent": one}} for path, one in intents]
    report = run(spec_of(tmp_path, {"task": task}, rows=rows))
    assert report.parts[0].kept == kept
    assert report.parts[0].reasons == {"duplicate": 4 - kept}


def test_names_that_look_the_same_in_a_folder(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"name": "a b"}, {"name": "a/b", "destination": "test"}, {"name": "a-b"})
    report = run(spec)
    assert [part.name for part in report.parts] == ["a b", "a/b", "a-b"]
    assert len(list(index_dir_of(spec).glob(f"*/{HEADER}"))) == 3
    # Preparing one of them into the same folder leaves the others alone.
    (tmp_path / "one").mkdir()
    other = spec_of(tmp_path / "one", {"name": "a b"})
    run(other, index_dir_of(spec))
    names = [json.loads(path.read_text())["name"] for path in index_dir_of(spec).glob(f"*/{HEADER}")]
    assert sorted(names) == ["a b", "a-b", "a/b"]
    opened = open_spec(read_spec(spec), base=tmp_path, index_dir=index_dir_of(spec))
    assert [(one.name, one.destination) for one in opened][1:] == [("a/b", "test"), ("a-b", "train")]


def test_a_text_among_more_than_a_thousand_is_noticed_when_it_changes(tmp_path: Path) -> None:
    chapter = tmp_path / "train-clean-100" / "1" / "2"
    chapter.mkdir(parents=True)
    for number in range(1100):
        values = np.full(2000, number / 2000, np.float32)
        soundfile.write(chapter / f"1_2_{number:04}_0.wav", values, 8_000, subtype="PCM_16")
        (chapter / f"1_2_{number:04}_0.normalized.txt").write_text(f"{number:04}")
    spec = tmp_path / "s.yaml"
    entry = {"type": "LibriTTS", "path": ".", "task": "asr", "partitions": ["train-clean-100"]}
    spec.write_text(json.dumps({"datasets": [entry]}))

    def text(number: int) -> str | None:
        (opened,) = open_spec(read_spec(spec), base=tmp_path, index_dir=index_dir_of(spec))
        assert len(opened.examples) == 1100
        return opened.examples[number].text

    (part,) = run(spec).parts
    assert part.kept == 1100, part.reasons
    assert text(1099) == "1099"
    last = chapter / "1_2_1099_0.normalized.txt"
    last.touch()
    assert text(1099) == "1099"  # the same bytes at another time
    last.write_text("9901")
    with pytest.raises(DataError, match=r"1_2_1099_0\.normalized\.txt has changed since .*speechlmm-train prepare"):
        text(0)
    (chapter / "1_2_0003_0.normalized.txt").write_text("three")
    with pytest.raises(DataError, match=r"0003_0\S+ has changed: 5 bytes, 4 .* 1 more of 1,100 files that list its"):
        text(0)
    assert run(spec).files_read == 0
    assert (text(3), text(1099)) == ("three", "9901")
    last.unlink()
    with pytest.raises(DataError, match=r"1099_0\.normalized\.txt does not exist any more"):
        text(0)


@pytest.mark.parametrize("step", [1.0, 0.5, 0.25, 0.064, 0.01])
def test_the_picture_of_durations_in_steps_is_no_comb(step: float) -> None:
    # As many values of each multiple: bars differ only at the ends, and where the last is cut off.
    values = np.repeat(np.arange(40, 1040 if step < 0.1 else 80) * step, 20)
    edges = bin_edges(values)
    assert len(edges) <= BINS + 1
    counts, _ = np.histogram(values, edges)
    assert len(set(counts[:-1].tolist())) == 1
    assert edges[0] <= values.min()
    assert edges[-1] >= np.quantile(values, 0.999)


def test_bars_are_as_wide_as_numpy_has_it() -> None:
    values = np.random.default_rng(0).normal(10, 1, 400)
    edges = bin_edges(values)
    expected = np.diff(np.histogram_bin_edges(values, bins="fd"))[0]
    assert edges[1] - edges[0] == pytest.approx(expected, rel=0.1)  # NumPy widens them until they fill the range
    same = bin_edges(np.full(5, 3.0))
    assert same[0] < 3 < same[-1]
    heavy = np.concatenate([np.random.default_rng(1).uniform(1, 2, 10_000), [500.0]])
    assert len(bin_edges(heavy)) <= BINS + 1


def test_processes_that_read_media_import_no_model_library() -> None:
    code = "import speechlmm_train.prepare.media, speechlmm_train.prepare.pool, speechlmm_train.cli.main, sys"
    heavy = "{'torch', 'transformers', 'datasets', 'matplotlib', 'pyarrow'}"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; print({heavy} & set(sys.modules))"], capture_output=True, check=True
    )
    assert found.stdout.strip() == b"set()", found.stderr


ROWS = [{"audio": f"{number}.wav", "text": f"so {number}", "language": "en"} for number in range(3)]


@pytest.mark.parametrize(("targets", "code"), [(0, 1), (2, 0), (3, 0)])
def test_rows_that_lack_what_their_task_needs_are_counted(tmp_path: Path, targets: int, code: int) -> None:
    rows = [{**row, **({"target_language": "de"} if at < targets else {})} for at, row in enumerate(ROWS)]
    spec = spec_of(tmp_path, {"type": "jsonl", "path": "m.jsonl", "name": "m", "task": "st"}, rows=rows)
    command = ["prepare", str(spec), "--jobs", "0", "--no-progress"]
    found = CliRunner().invoke(cli, command, standalone_mode=False)
    assert found.return_value == code, found.output
    assert f"3 rows, {targets} used" in found.output
    assert ("needs a `target_language`" in found.output) == (targets < 3)
    assert ("error: m: none of its rows can be used" in found.output) == (targets == 0)
    assert ("note: m: " in found.output) == (targets == 2)
    assert "in quarantine" not in found.output
    for part in run(spec).parts:
        assert part.kept + sum(part.reasons.values()) + sum(part.lacks.values()) == part.total == 3


def test_rows_in_other_languages_are_counted(tmp_path: Path) -> None:
    rows = [{**row, "language": "de" if at else "en"} for at, row in enumerate(ROWS)]
    entry = {"type": "jsonl", "path": "m.jsonl", "name": "m", "task": "asr", "languages": ["de"]}
    report = run(spec_of(tmp_path, entry, rows=rows))
    assert (report.parts[0].kept, report.parts[0].lacks, report.notes) == (2, {"another language": 1}, [])

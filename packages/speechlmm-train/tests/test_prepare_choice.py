"""What rows lack for their task is noted by `speechlmm-train prepare`, and not looked for when they are opened."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechlmm_core.data.index.open import index_dir_of
from speechlmm_core.data.spec import choose, task_check
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.errors import DataError
from speechlmm_train.prepare.prepare import prepare
from speechlmm_train.prepare.settings import Settings

COUNT = 24
COLUMNS = {"audio": "audio", "text": "text", "language": "language", "target_language": "target"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table whose rows lack this or that."""
    monkeypatch.setattr("speechlmm_train.prepare.histogram.draw_histogram", lambda *_: False)
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    for number in range(COUNT):
        values = np.random.default_rng(number).uniform(-0.1, 0.1, 16_000 + 800 * number)
        soundfile.write(tmp_path / f"{number}.wav", values.astype(np.float32), 16_000, subtype="PCM_16")
    rows: list[dict[str, Any]] = []
    for number in range(COUNT):
        row: dict[str, Any] = {"audio": f"{number}.wav", "text": f"row {number}", "language": ("en", "de")[number % 2]}
        row["target"] = ("de", "en", None, "de")[number % 4]
        row["text"] = None if number % 5 == 0 else row["text"]
        rows.append(row)
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def spec_of(folder: Path, **entry: Any) -> Path:
    content = {"type": "table", "path": "m.jsonl", "name": "m", "columns": COLUMNS, **entry}
    (folder / "s.yaml").write_text(json.dumps({"datasets": [content]}))
    return folder / "s.yaml"


def run(spec: Path) -> None:
    prepare(spec, index_dir=index_dir_of(spec), settings=Settings(), jobs=0, progress=False)


def opened(spec: Path, *, prepared: bool) -> OpenedDataset:
    index_dir = index_dir_of(spec) if prepared else None
    return open_spec(read_spec(spec), base=spec.parent, index_dir=index_dir)[0]


@pytest.mark.parametrize("destination", ["train", "test"])
@pytest.mark.parametrize(
    "entry",
    [
        {"task": "asr"},
        {"task": "asr", "languages": ["en"]},
        {"task": "st", "languages": ["en-de"]},
        {"languages": ["de-en"]},
        {},
    ],
)
def test_it_is_chosen_as_without_an_index_and_nothing_is_looked_at(
    folder: Path, entry: dict[str, Any], destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(spec_of(folder, destination=destination, **entry))
    filters: list[dict[str, Any]] = [{}, {"amount": "25%:75%"}, {"max_duration": 1.7}, {"amount": 5}]
    for more in filters:
        spec = spec_of(folder, destination=destination, **entry, **more)
        plain = opened(spec, prepared=False)
        with monkeypatch.context() as patch:
            patch.setattr(task_check, "lack_of", lambda *_: pytest.fail("looked at an example"))
            patch.setattr(choose._Scan, "run", lambda *_: pytest.fail("looked at examples"))
            fast = opened(spec, prepared=True)
        assert [one.model_dump() for one in fast.examples] == [one.model_dump() for one in plain.examples]
        assert fast.total == COUNT
        if "max_duration" not in more:  # filters whose values an index has come first, and take what lacks something
            assert (fast.total, fast.dropped) == (plain.total, plain.dropped)
        assert fast.total == len(fast.examples) + sum(fast.dropped.values())
    assert not (folder / "cache").exists() or not list((folder / "cache").glob("chosen-*"))


def test_other_options_of_the_task_are_looked_at_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(spec_of(folder, task="asr"))
    spec = spec_of(folder, task={"type": "asr", "system": "Listen."})
    looked: list[object] = []
    real = task_check.lack_of
    monkeypatch.setattr(task_check, "lack_of", lambda *args: looked.append(args) or real(*args))
    assert [one.id for one in opened(spec, prepared=True).examples] == [
        one.id for one in opened(spec_of(folder, task="asr"), prepared=False).examples
    ]
    assert looked


def test_a_strict_entry_names_each_row_as_without_an_index(folder: Path) -> None:
    spec = spec_of(folder, type="jsonl", task="asr", columns={"target_language": "target"})
    run(spec)
    with pytest.raises(DataError) as plain:
        opened(spec, prepared=False)
    with pytest.raises(DataError) as fast:
        opened(spec, prepared=True)
    for number in range(0, COUNT, 5):
        assert f"m.jsonl:{number + 1}: " in str(plain.value)
        assert f"m.jsonl:{number + 1}: " in str(fast.value)
    assert str(fast.value).count("m.jsonl:") == str(plain.value).count("m.jsonl:")


def test_prompts_of_all_kinds_that_are_used_are_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(spec_of(folder, task="asr"))
    tried: list[str | None] = []
    real = choose.chat_of
    monkeypatch.setattr(choose, "chat_of", lambda one, **more: tried.append(one.source_language) or real(one, **more))
    opened(spec_of(folder, task="asr"), prepared=True)
    assert set(tried) == {"en", "de"}
    tried.clear()
    opened(spec_of(folder, task="asr", amount=2), prepared=True)  # the first row lacks its text
    assert set(tried) == {"de"}

"""What a task can use of a prepared part is looked up, and the same as when it is looked at."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speechlmm_core.data.index import choice
from speechlmm_core.data.index.header import IndexHeader
from speechlmm_core.data.index.layout import part_folder
from speechlmm_core.data.index.open import made_by
from speechlmm_core.data.index.rows import encode_example
from speechlmm_core.data.index.state import FileState
from speechlmm_core.data.index.write import write_part
from speechlmm_core.data.jsonl.reader import JsonlExamples
from speechlmm_core.data.spec import choose, task_check
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.data.spec.parts import parts_of
from speechlmm_core.errors import DataError


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest in two languages with its index."""
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "WORTH_KEEPING", 1)
    (tmp_path / "a.wav").write_bytes(b"sound")
    lines = [{"audio": "a.wav", "text": f"{n}", "language": ("en", "de")[n % 3 == 0]} for n in range(10)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_spec(tmp_path)
    return tmp_path / "s.yaml"


def write_spec(folder: Path, **entry: Any) -> None:
    content = {"type": "jsonl", "path": "m.jsonl", "name": "m", "task": "asr", "languages": ["en"], **entry}
    (folder / "s.yaml").write_text(json.dumps({"datasets": [content]}))
    examples = JsonlExamples(folder / "m.jsonl", check_media=False, check_task=False)
    count = len(examples)
    lines = [encode_example(one) for one in examples]
    (folder / "staged").write_bytes(b"".join(lines))
    zeros = np.zeros(count)
    names = "seconds words characters quality status place_files place_numbers num_samples sampling_rates keys measured"
    status = (folder / "a.wav").stat()
    columns: dict[str, Any] = {
        **dict.fromkeys((*names.split(), "peaks", "clipped"), zeros),
        "lines": np.cumsum([0, *map(len, lines)]),
        "media_starts": np.arange(count + 1),
        "sizes": np.full(count, status.st_size),
        "times": np.full(count, status.st_mtime_ns),
        "hashes": np.zeros(16 * count, np.uint8),
    }
    part = parts_of(read_spec(folder / "s.yaml").datasets[0], folder)[0]
    from speechlmm_core.data.index.layout import part_digest

    digest = part_digest(part.name, part.spec.reader, folder, part.selection)
    sources = (FileState.of(folder / "m.jsonl"),)
    header = IndexHeader(part.name, digest, 0, 0, 0, "fast", "", made_by=made_by(part.spec.reader), sources=sources)
    folder_of_part = part_folder(folder / "s.index", part.name, digest)
    write_part(folder_of_part, header, columns, folder / "staged", kept=np.arange(count) != 4)


def opened(spec: Path) -> OpenedDataset:
    return open_spec(read_spec(spec), base=spec.parent, index_dir=spec.parent / "s.index")[0]


def looked_at(spec: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[OpenedDataset, int]:
    """What is opened, and how many examples are looked at for it."""
    count = 0
    real = task_check.lack_of

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(task_check, "lack_of", counted)
        return opened(spec), count


def test_a_choice_is_made_once(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, count = looked_at(spec, monkeypatch)
    again, none = looked_at(spec, monkeypatch)
    assert (count, none) == (5, 0)
    assert [one.text for one in first.examples] == ["1", "2", "5", "7", "8"]
    assert list(again.examples) == list(first.examples)
    assert (again.total, again.dropped) == (first.total, first.dropped)
    assert first.dropped == {"another language": 4}
    for change in ({"languages": ["de"]}, {"amount": 5}, {"task": {"type": "asr", "system": "Listen."}}):
        write_spec(spec.parent, **change)
        assert looked_at(spec, monkeypatch)[1], change
    write_spec(spec.parent)
    assert not looked_at(spec, monkeypatch)[1]


def test_what_is_kept_may_be_damaged(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(spec)
    (file,) = (spec.parent / "cache").glob("chosen-*")
    whole = file.read_bytes()
    for broken in (b"", whole[:-1], b"{}\n" + whole, whole.replace(b'"another language": 4', b'"another language": 3')):
        file.write_bytes(broken)
        again, count = looked_at(spec, monkeypatch)
        assert count == 5
        assert list(again.examples) == list(first.examples)


def test_prompts_are_tried_all_the_same(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speechlmm_core.errors import ConfigError

    opened(spec)

    def none(*_: Any, **__: Any) -> Any:
        raise ConfigError("there are no prompts in this language")

    monkeypatch.setattr(choose, "chat_of", none)
    with pytest.raises(DataError, match="m/en: there are no prompts in this language"):
        opened(spec)

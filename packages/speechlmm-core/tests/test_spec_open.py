"""What a specification opens: parts, filters, tasks and few-shot examples."""

import json
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ListExamples
from speechlmm_core.data.faults import FaultyDataError
from speechlmm_core.data.spec.entries import dataset_spec
from speechlmm_core.data.spec.file import named_apart, read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.data.spec.part_faults import merged
from speechlmm_core.data.spec.task_examples import SHOT_POOL, TaskExamples
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import EVERYTHING, DatasetConfig, Selection, datasets

ROWS = [
    Example(
        id=str(number),
        media={"audio": {"type": "audio", "path": f"/no/{number}.wav"}} if number != 3 else {},
        text=" ".join(["word"] * (number + 1)) if number != 5 else " ",
        source_language="de" if number % 4 == 2 else None,
        quality=None if number == 9 else number / 10,
        duration=float(number),
    )
    for number in range(12)
]


class RowsDatasetConfig(DatasetConfig):
    """Rows made here, as a corpus whose faults are its own."""

    type: Literal["test.rows"] = "test.rows"
    rows: tuple[int, ...] = tuple(range(12))

    def read(self, base: Path, selection: Selection = EVERYTHING) -> ListExamples:
        kept = [ROWS[row] for row in self.rows]
        return ListExamples(kept[: len(kept) // 2] if selection.partition == "dev" else kept)

    def partitions(self, base: Path) -> list[str]:
        return ["dev", "train"]

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"audio", "text", "duration"})


@pytest.fixture(autouse=True)
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets.loaded, "test.rows", RowsDatasetConfig)


def opened(folder: Path, *entries: dict[str, Any] | str, **options: Any) -> list[OpenedDataset]:
    return open_spec([dataset_spec(entry) for entry in entries], base=folder, **options)


def ids(one: OpenedDataset) -> list[int]:
    return [int(example.id) for example in one.examples]


@pytest.mark.parametrize(
    ("partitions", "shared"),
    [
        ({"train": {}, "dev": {}, "tset": {"destination": "test"}}, 20),
        ({"train": {"amount": 15}, "dev": {"amount": "-25%:"}}, None),
        ({"train": {"amount": 16}, "dev": {"amount": "-25%:"}}, 1),
        ({"train": {"amount": ":10"}, "dev": {"amount": "10:15"}, "test": {"amount": "15:"}}, None),
        ({"train": {"amount": "90%"}, "dev": {"amount": "80%:"}}, 2),
        ({"tset": {"destination": "test"}}, None),
    ],
)
def test_rows_of_one_file_are_in_one_partition(tmp_path: Path, partitions: dict[str, Any], shared: int | None) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    line = json.dumps({"audio": "a.wav", "text": "yes"})
    (tmp_path / "m.jsonl").write_text(f"{line}\n" * 20)
    entry = {"type": "jsonl", "path": "m.jsonl", "task": "asr", "languages": "en", "partitions": partitions}
    if shared is None:
        found = [row for part in opened(tmp_path, entry) for row in ids(part)]
        assert len(found) == len(set(found))
        return
    for destinations in (None, {"train"}):  # training opens the others later
        with pytest.raises(DataError, match=f"m: .* would share {shared} of the same 20 rows"):
            opened(tmp_path, entry, destinations=destinations)


def test_parts_by_partition_and_language(tmp_path: Path) -> None:
    entry = {"type": "test.rows", "name": "rows", "languages": ["en", "de"], "partitions": {"dev": {}, "train": {}}}
    parts = opened(tmp_path, {**entry, "weight": 3})
    assert [(p.name, p.dataset, p.destination, p.weight) for p in parts] == [
        ("rows/dev/en", "rows", "eval", 3),
        ("rows/dev/de", "rows", "eval", 3),
        ("rows/train/en", "rows", "train", 3),
        ("rows/train/de", "rows", "train", 3),
    ]
    german = [row for row in range(12) if row % 4 == 2]
    assert ids(parts[2]) == [row for row in range(12) if row not in german]
    assert parts[2].dropped == {"another language": len(german)}
    assert {example.source_language for example in parts[2].examples} == {"en"}
    assert ids(parts[3]) == list(range(12))  # where an example does not say, it may be any
    assert [p.destination for p in opened(tmp_path, entry, destinations={"eval"})] == ["eval", "eval"]
    assert [p.name for p in opened(tmp_path, {"type": "test.rows"})] == ["test.rows/dev", "test.rows/train"]


@pytest.mark.parametrize(
    ("settings", "kept", "dropped"),
    [
        ({"amount": 5}, range(5), {"outside of amount 5": 7}),
        ({"amount": "50%:"}, range(6, 12), {"outside of amount 50%:": 6}),
        ({"min_duration": 4}, range(4, 12), {"shorter than 4 s": 4}),
        ({"max_duration": 4}, range(5), {"longer than 4 s": 7}),
        ({"min_num_words": 4, "max_num_words": 9}, [3, 4, 6, 7, 8], {"fewer than 4 words": 4, "more than 9 words": 3}),
        ({"min_quality": 0.75}, [8, 10, 11], {"quality below 0.75": 8, "no quality is given": 1}),
        ({"amount": ":6", "min_duration": 3, "max_num_words": 4}, [3, 5], None),
    ],
)
def test_filters_count_what_they_leave_out(
    tmp_path: Path, settings: dict[str, Any], kept: Sequence[int], dropped: dict[str, int] | None
) -> None:
    (one,) = opened(tmp_path, {"type": "test.rows", "partitions": {"train": settings}})
    assert ids(one) == list(kept)
    assert one.total == 12 == len(one.examples) + sum(one.dropped.values())
    if dropped is not None:
        assert one.dropped == dropped


def test_a_task_leaves_out_what_it_cannot_use(tmp_path: Path) -> None:
    (one,) = opened(tmp_path, {"type": "test.rows", "task": "ASR", "languages": "en-fr", "partitions": "train"})
    assert ids(one) == [0, 1, 4, 7, 8, 9, 11]
    assert one.dropped == {
        "another language": 3,
        "task 'asr' needs a medium (`audio`, `video`)": 1,
        "task 'asr' needs a `text`, the answer": 1,
    }
    first = one.examples[0]
    assert (first.task, first.task_config.type) == ("asr", "asr")
    assert (first.source_language, first.target_language) == ("en", None)  # the answer is what is spoken
    (other,) = opened(tmp_path, {"type": "test.rows", "task": "st", "languages": "en-fr", "partitions": "train"})
    assert (other.task, other.examples[0].target_language) == ("st", "fr")
    assert "French" in str(other.examples.chat(0)[0].content)


class DamagedExamples(ListExamples):
    """Examples none of which can be made."""

    def example(self, index: int) -> Example:
        raise DataError(f"t.csv:{index + 2}: `text` must be a text, got\n{index}")


def test_the_first_that_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowsDatasetConfig, "read", lambda *_: DamagedExamples(ROWS))
    with pytest.raises(DataError) as caught:
        opened(tmp_path, {"type": "test.rows", "name": "rows", "partitions": ["train"], "task": "asr"})
    assert str(caught.value).splitlines()[-1] == (
        "  12 unusable record (the first: t.csv:2: `text` must be a text, got 0)"
    )


def test_why_nothing_is_left(tmp_path: Path) -> None:
    entry = {"type": "test.rows", "name": "rows", "partitions": {"train": {"amount": 8, "min_duration": 30}}}
    with pytest.raises(DataError) as caught:
        opened(tmp_path, entry, {**entry, "name": "other", "task": "asr"})
    assert str(caught.value).splitlines()[1:] == [
        "  rows/train: no example is left of 12; change the filters, or the data",
        "  8 shorter than 30 s",
        "  4 outside of amount 8",
        "  other/train: no example is left of 12; change the filters, or the data",
        "  6 shorter than 30 s",
        "  4 outside of amount 8",
        "  1 task 'asr' needs a medium (`audio`, `video`) (the first: example 3: got none)",
        "  1 task 'asr' needs a `text`, the answer (the first: example 5: got ' ')",
    ]


def test_a_task_that_the_dataset_cannot_serve_is_refused_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowsDatasetConfig, "read", None)
    with pytest.raises(DataError) as caught:
        opened(tmp_path, {"type": "test.rows", "task": "vsr"}, {"type": "test.rows", "task": "mt", "name": "b"})
    text = str(caught.value)
    assert "test.rows: task 'vsr' needs `media.video`" in text
    assert "which the dataset does not give; it gives `audio`, `duration`, `text`" in text
    assert "b: task 'mt' needs `source_text`, `source_language`, `target_language`" in text
    assert "name the `languages`" in text


def test_an_unknown_partition_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no partition 'tran'; did you mean 'train'\? \(there are: dev, train\)"):
        opened(tmp_path, {"type": "test.rows", "partitions": ["tran"]})
    spec = dataset_spec({"type": "test.rows"}, destination="guard")
    with pytest.raises(DataError, match=r"no partition is for 'guard'; name some by `partitions` \(dev, train\)"):
        open_spec([spec], base=tmp_path)
    for destination in ("train", "eval"):
        (one,) = open_spec([dataset_spec({"type": "test.rows"}, destination=destination)], base=tmp_path)
        assert one.name == f"test.rows/{ {'eval': 'dev'}.get(destination, destination) }"


def test_a_language_without_prompts_comes_up_at_once(tmp_path: Path) -> None:
    entry = {"type": "test.rows", "task": {"type": "asr", "prompt_languages": ["fi"]}, "partitions": ["train"]}
    with pytest.raises(DataError, match=r"test\.rows/train: no prompts in the language 'fi'"):
        opened(tmp_path, entry)


def shown(examples: TaskExamples, index: int, draw: int = 0) -> list[str]:
    chat = examples.chat(index, draw=draw)
    assert [message.role for message in chat] == ["user", "assistant"] * (len(chat) // 2)
    return [message.content[0]["text"] for message in chat if message.role == "assistant"][:-1]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    lines = [{"audio": f"{at}.wav", "text": f"answer {at}", "duration": 1.0, "language": "en"} for at in range(100)]
    for line in lines:
        (tmp_path / str(line["audio"])).write_bytes(b"RIFF")
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_few_shot_examples_are_a_small_fixed_pool(manifest: Path) -> None:
    def examples(seed: int) -> TaskExamples:
        task = {"type": "asr", "num_few_shots": 3, "few_shots_seed": seed}
        (one,) = opened(manifest, {"type": "jsonl", "path": "m.jsonl", "task": task})
        assert isinstance(one.examples, TaskExamples)
        return one.examples

    first, other = examples(0), examples(1)
    pool = {example.text for example in first.shown_first()}
    assert len(pool) == SHOT_POOL + 3
    assert pool != {example.text for example in other.shown_first()}
    drawn = {index: [tuple(shown(first, index, draw)) for draw in range(12)] for index in range(0, 100, 4)}
    for index, runs in drawn.items():
        texts = {text for run in runs for text in run}
        assert texts <= pool - {f"answer {index}"}
        assert {len(set(run)) for run in runs} == {3}
        assert len(set(runs)) > 3
    members = [index for index in range(100) if f"answer {index}" in pool]
    assert all(f"answer {index}" not in shown(first, index, draw) for index in members for draw in range(12))
    assert len({tuple(shown(first, index)) for index in range(100)}) <= 4  # 0 takes the first, but for themselves
    assert len(first.chat(0, with_answer=False)) == 7
    again = examples(0)
    assert all(shown(again, index, draw) == list(runs[draw]) for index, runs in drawn.items() for draw in (0, 5))


def test_too_few_for_few_shots(manifest: Path) -> None:
    entry = {"type": "jsonl", "path": "m.jsonl", "amount": 3, "task": {"type": "asr", "num_few_shots": 3}}
    with pytest.raises(DataError, match="to show 3 further examples before each, but there are 3 in all"):
        opened(manifest, entry)
    (one,) = opened(manifest, {**entry, "amount": 4})
    assert all(len(one.examples.chat(index)) == 8 for index in range(4))


def test_a_manifest_keeps_its_strictness(manifest: Path) -> None:
    with (manifest / "m.jsonl").open("a") as file:
        file.write('{"audio": "0.wav", "duration": 9}\n{"audio": "0.wav", "text": "x", "language": "de"}\n')
    (one,) = opened(manifest, {"type": "jsonl", "path": "m.jsonl", "task": "asr", "languages": "en", "amount": 100})
    assert len(one.examples) == 100
    with pytest.raises(DataError, match=r"m\.jsonl:101: task 'asr' needs a `text`"):
        opened(manifest, {"type": "jsonl", "path": "m.jsonl", "task": "asr"})


def test_durations_come_from_headers_where_nothing_says_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    lines: list[dict[str, Any]] = []
    for seconds in (1, 2, 3):
        with wave.open(str(tmp_path / f"{seconds}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(b"\0\0" * 8000 * seconds)
        lines.append({"audio": f"{seconds}.wav", "text": str(seconds)})
    lines += [{"audio": {"path": "3.wav", "start": 0.5, "end": 2.0}, "text": "part"}]
    lines += [{"audio": "1.wav", "text": "says", "duration": 2.5}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (one,) = opened(tmp_path, {"type": "jsonl", "path": "m.jsonl", "min_duration": 1.2, "max_duration": 2.75})
    assert [example.text for example in one.examples] == ["2", "part", "says"]
    assert one.dropped == {"shorter than 1.2 s": 1, "longer than 2.75 s": 1}
    (tmp_path / "2.wav").write_bytes(b"no sound at all")
    with pytest.raises(DataError, match=r"m\.jsonl:2: .*2\.wav"):
        opened(tmp_path, {"type": "jsonl", "path": "m.jsonl", "min_duration": 1.2})


def test_names_are_unique() -> None:
    specs = [dataset_spec({"type": "test.rows", "task": task}) for task in ("asr", "st", "st", None)]
    assert [spec.name for spec in named_apart(specs)] == [
        "test.rows-asr",
        "test.rows-st",
        "test.rows-st-2",
        "test.rows",
    ]


def test_manifests_by_partition_and_language(tmp_path: Path) -> None:
    for partition in ("train", "dev"):
        for language in ("en", "de"):
            folder = tmp_path / "[x]" / partition
            folder.mkdir(parents=True, exist_ok=True)
            lines = [{"wav": "a.wav", "words": f"{partition} {language}", "id": 1, "length": 2}]
            (folder / f"{language}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "a.wav").write_bytes(b"RIFF")
    spec = tmp_path / "spec.yaml"
    columns = (
        "{audio: wav, audio.duration: length, text: words, fields.about: '{partition} of {wav}', speaker: '=anna'}"
    )
    spec.write_text(
        f"datasets: [{{type: jsonl, path: '[x]/{{partition}}/{{language}}.jsonl', task: asr, columns: {columns}}}]"
    )
    dev, train = open_spec(read_spec(spec), base=tmp_path)
    assert (dev.name, dev.destination) == ("[x]/{partition}/{language}.jsonl/dev", "eval")
    assert [(e.text, e.source_language) for e in train.examples] == [("train de", "de"), ("train en", "en")]
    example = dev.examples[0]
    assert example.media["audio"] == {"type": "audio", "path": str(tmp_path / "[x]" / "dev" / "a.wav"), "end": 2.0}
    assert (example.fields, example.speaker, example.id) == ({"about": "dev of a.wav"}, "anna", "1")
    named = {"type": "jsonl", "path": "[x]/dev", "columns": {"audio": "wav", "text": "words"}}
    (folder,) = opened(tmp_path, {**named, "name": "y", "partitions": ["en"]})
    assert (folder.name, folder.examples[0].text) == ("y/en", "dev en")
    with pytest.raises(DataError, match=r"unknown placeholder \{partiton\}; did you mean 'partition'\?"):
        opened(tmp_path, {"type": "jsonl", "path": "{partiton}.jsonl"})
    with pytest.raises(DataError, match="no manifest fits"):
        opened(tmp_path, {"type": "jsonl", "path": "{partition}.jsonl"})
    with pytest.raises(DataError, match=r"en\.jsonl:1: `text`: there is no column 'wrds'; did you mean 'words'"):
        opened(tmp_path, {"type": "jsonl", "path": "[x]/dev/en.jsonl", "columns": {"audio": "wav", "text": "wrds"}})


def test_a_fault_of_several_partitions_is_told_once(tmp_path: Path) -> None:
    def fault(part: str, text: str) -> tuple[str, DataError]:
        return part, DataError(f"{part}: {text}")

    errors = [fault(f"kitchen/{one}", f"no column 'sayd'\nthere are: a, {one}") for one in ("a", "b", "c", "d")]
    found = [str(one) for one in merged("kitchen", [*errors, fault("kitchen/e", "empty")])]
    assert found == ["kitchen (a, b, c and 1 more): no column 'sayd'\nthere are: a, a", "kitchen/e: empty"]
    same = FaultyDataError(["m.jsonl:3: no text"], 1)
    (one,) = merged("kitchen", [("kitchen/a", same), ("kitchen/b", same)])
    assert isinstance(one, FaultyDataError)
    assert (one.count, one.faults) == (1, ["kitchen (a, b): m.jsonl:3: no text"])
    assert list(merged("kitchen", [("kitchen/a", same)])) == [same]


def test_manifests_are_called_by_their_stems(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "clips.jsonl").write_text('{"text": "x", "task": "chat", "instruction": "y"}\n')
    (tmp_path / "s.yaml").write_text("test: [a/clips.jsonl, b/../b/clips.jsonl]\ntrain: [{type: jsonl, path: a}]\n")
    assert [one.name for one in read_spec(tmp_path / "s.yaml").datasets] == ["clips", "clips-2", "a"]

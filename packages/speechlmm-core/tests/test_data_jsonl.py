import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from speechlmm_core.data import text_lines
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import place_of
from speechlmm_core.data.faults import LISTED, FaultyDataError
from speechlmm_core.data.jsonl.config import JsonlDatasetConfig
from speechlmm_core.data.jsonl.reader import JsonlExamples
from speechlmm_core.data.near_miss import mistyped, near_miss
from speechlmm_core.data.spec.entries import dataset_config
from speechlmm_core.data.spec.open import open_datasets
from speechlmm_core.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "clips" / f"{name}.wav").write_bytes(b"RIFF")
    return tmp_path


def write(folder: Path, *lines: object, name: str = "m.jsonl") -> Path:
    path = folder / name
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def faults_of(folder: Path, *lines: object) -> list[str]:
    write(folder, *lines)
    with pytest.raises(FaultyDataError) as caught:
        JsonlDatasetConfig(path="m.jsonl").read(folder)
    return [fault.removeprefix(f"{folder}/m.jsonl:") for fault in caught.value.faults]


def test_what_has_no_lines_does_not_fill_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match="cannot read the manifest '/dev/zero': it is not a file but a folder or a device"
    ):
        JsonlExamples("/dev/zero")
    path = write(folder, {"audio": "a.wav", "text": "yes"}, {"audio": "a.wav", "text": "y" * 100})
    monkeypatch.setattr(text_lines, "MAX_LINE", 64)
    with pytest.raises(DataError, match=r"m\.jsonl:2: a line of over 0 MiB; this is no text by lines"):
        JsonlExamples(path)


def test_every_field_of_a_flat_line(folder: Path) -> None:
    write(
        folder,
        {
            "audio": {"path": "clips/a.wav", "start": 1, "end": 2.5},
            "text": "ciao",
            "task": "st",
            "source_language": "en",
            "target_language": "it",
            "transcript": "hello",
            "duration": 1.5,
            "id": 7,
            "speaker": "anna",
        },
    )
    (example,) = JsonlDatasetConfig(path="m.jsonl").read(folder)
    assert example == Example(
        id="7",
        task="st",
        media={"audio": {"type": "audio", "path": str(folder / "clips/a.wav"), "start": 1, "end": 2.5}},
        text="ciao",
        transcript="hello",
        source_language="en",
        target_language="it",
        speaker="anna",
        duration=1.5,
    )
    assert Example.model_validate(example.model_dump()) == example


def test_defaults_and_blank_lines(folder: Path) -> None:
    write(
        folder, {"audio": "clips/a.wav", "text": "x", "language": "en"}, "", "  ", {"audio": "clips/b.wav", "text": "y"}
    )
    examples = JsonlExamples(folder / "m.jsonl")
    assert len(examples) == 2
    assert [e.id for e in examples] == ["1", "4"]
    assert examples[0].task == "asr"
    assert examples[0].source_language == "en"
    assert examples[-1].text == "y"
    assert [e.text for e in examples[:2]] == ["x", "y"]
    assert examples.place(1) == f"{folder / 'm.jsonl'}:4"
    with pytest.raises(IndexError):
        examples[2]


def test_messages_with_several_media_and_other_inputs(folder: Path) -> None:
    content = [
        {"type": "text", "text": "compare"},
        {"type": "audio", "path": "clips/a.wav", "transcript": "one"},
        {"type": "sounds", "path": str(folder / "clips/b.wav"), "start": 0.5},
    ]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "two"}]
    write(folder, {"messages": turns}, {"media": {"speaker": "clips/c.wav"}, "audio": "clips/a.wav", "text": "t"})
    first, second = JsonlExamples(folder / "m.jsonl")
    assert first.task == "chat"
    assert first.messages is not None
    assert [item["path"] for item in first.messages[0].media] == [
        str(folder / "clips/a.wav"),
        str(folder / "clips/b.wav"),
    ]
    assert first.messages[1].content == [{"type": "text", "text": "two"}]
    assert sorted(second.media) == ["audio", "speaker"]
    assert second.media["speaker"] == {"type": "speaker", "path": str(folder / "clips/c.wav")}


def test_sound_and_picture_by_their_short_names(folder: Path) -> None:
    write(folder, {"video": {"path": "clips/a.wav", "end": 2}, "audio": "clips/b.wav", "text": "t"})
    (example,) = JsonlExamples(folder / "m.jsonl")
    assert example.media == {
        "audio": {"type": "audio", "path": str(folder / "clips/b.wav")},
        "video": {"type": "video", "path": str(folder / "clips/a.wav"), "end": 2},
    }


def test_text_of_any_script_and_a_byte_order_mark(folder: Path) -> None:
    texts = ["größe 🎈", "日本語", "line\u2028separator"]
    path = write(folder, *({"audio": "clips/a.wav", "text": text} for text in texts))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n")[:-2])
    assert [e.text for e in JsonlExamples(path)] == texts


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"audio": ', "bad JSON"),
        ("[1]", "expected a JSON object, got a list"),
        ("{}", "expected `audio` or `video` (with `text`), or `messages`"),
        ({"text": "x"}, "the line has none of them"),
        ({"audio": "clips/a.wav"}, "needs a `text`"),
        ({"audio": "clips/a.wav", "txt": "x"}, "unknown key 'txt'; did you mean 'text'?"),
        ({"audio": "clips/a.wav", "text": 3}, "`text` must be a string, got 3"),
        ({"audio": 3, "text": "x"}, "`audio` must be a path or an object with a `path`, got a number"),
        ({"audio": {"file": "a"}, "text": "x"}, "`audio` needs a `path`, got None"),
        ({"audio": {"path": "clips/a.wav", "star": 1}, "text": "x"}, "did you mean 'start'?"),
        ({"audio": {"path": "clips/a.wav", "start": 2, "end": 1}, "text": "x"}, "`end` 1 is not after `start` 2"),
        ({"audio": {"path": "clips/a.wav", "start": "2"}, "text": "x"}, "`start` must be a number of seconds, got '2'"),
        ('{"audio": {"path": "clips/a.wav", "end": NaN}, "text": "x"}', "`end` must be a number of seconds"),
        ({"audio": "clips/a.wav", "text": "x", "duration": "3"}, "`duration` must be a number of seconds, got '3'"),
        ({"audio": "clips/a.wav", "text": "x", "durations": 3}, "did you mean 'duration'?"),
        ({"audio": "clips/a.wav", "text": "x", "task": "asrr"}, "unknown task 'asrr'; did you mean 'asr'?"),
        ({"audio": "clips/a.wav", "text": "x", "task": "st"}, "needs a `source_language`"),
        ({"audio": "clips/z.wav", "text": "x"}, "clips/z.wav' does not exist"),
        ({"audio": "clips", "text": "x"}, "is not a media file but a folder"),
        ({"audio": "clips/a.wav", "text": "x", "id": ["a"]}, "`id` must be a string"),
        ('{"audio": "clips/a.wav", "text": "\\ud800"}', "half a character"),
        ({"audio": "clips/a.wav", "media": {"audio": "clips/a.wav"}, "text": "x"}, "given twice"),
        ({"video": "clips/a.wav", "media": {"video": "clips/a.wav"}, "text": "x"}, "`video` is given twice"),
        ({"media": {"text": "clips/a.wav"}, "text": "x"}, "may not name an input 'text'"),
        ({"audio": "clips/a.wav", "text": "x", "language": "en", "source_language": "de"}, "differ; give one of them"),
        ({"messages": []}, "`messages` must be a list of messages, got []"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "`role` must be one of system, user, assistant, got 'usr'"),
        ({"messages": [{"role": "user", "contents": "x"}]}, "did you mean 'content'?"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "must be an object with a `type`"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content[0] needs a `text`"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "assistant"),
        ({"messages": [{"role": "assistant", "content": "x"}], "audio": "clips/a.wav"}, "exclude each other"),
    ],
)
def test_each_fault_is_named_with_its_line(folder: Path, line: object, expected: str) -> None:
    found = faults_of(folder, {"audio": "clips/a.wav", "text": "fine"}, line)
    assert len(found) == 1
    assert found[0].startswith("2: ")
    assert expected in found[0]


def test_an_empty_media_file_is_a_fault(folder: Path) -> None:
    (folder / "clips/empty.wav").touch()
    assert "is empty" in faults_of(folder, {"audio": "clips/empty.wav", "text": "x"})[0]


def test_bytes_that_are_no_utf8(folder: Path) -> None:
    (folder / "m.jsonl").write_bytes(b'{"audio": "clips/a.wav", "text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"m\.jsonl:1: not UTF-8"):
        JsonlExamples(folder / "m.jsonl")


def test_all_faults_of_all_manifests_are_counted_and_the_first_listed_in_order(folder: Path) -> None:
    good = {"audio": "clips/a.wav", "text": "x"}
    missing = [{"audio": f"clips/no{i}.wav", "text": "x"} for i in range(30)]
    write(folder, good, *missing, "{", name="one.jsonl")
    write(folder, good, {"audio": "clips/a.wav", "text": 1}, name="two.jsonl")
    with pytest.raises(FaultyDataError) as caught:
        open_datasets(["one.jsonl", "two.jsonl", "three.jsonl"], folder)
    error = caught.value
    assert error.count == 33
    assert len(error.faults) == LISTED
    assert [fault.split(": ")[0] for fault in error.faults] == [f"{folder}/one.jsonl:{i}" for i in range(2, 22)]
    assert "… and 13 more" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_many_faults_keep_the_first_lines(folder: Path) -> None:
    lines = [{"audio": f"clips/no{i}.wav", "text": "x"} for i in range(3000)] + ["{"] * 3000
    found = faults_of(folder, *lines)
    assert [int(fault.split(":")[0]) for fault in found] == list(range(1, LISTED + 1))


def test_inference_may_leave_missing_files_and_answers_to_the_reader(folder: Path) -> None:
    write(folder, {"audio": "clips/z.wav"})
    (example,) = JsonlExamples(folder / "m.jsonl", check_media=False, check_task=False)
    assert example.text is None


@pytest.mark.parametrize("name", ["missing.jsonl", "clips"])
def test_a_manifest_that_cannot_be_read(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot read the manifest"):
        JsonlExamples(folder / name)


def test_an_empty_manifest(folder: Path) -> None:
    write(folder, "")
    with pytest.raises(DataError, match="has no lines"):
        JsonlExamples(folder / "m.jsonl")


def test_a_manifest_that_changes_is_noticed(folder: Path) -> None:
    path = write(folder, {"audio": "clips/a.wav", "text": "x"})
    examples = JsonlExamples(path)
    write(folder, {"audio": "clips/a.wav", "text": "xyz"})
    with pytest.raises(DataError, match="was changed"):
        examples[0]


def test_examples_survive_pickling_and_forks(folder: Path) -> None:
    examples = JsonlExamples(write(folder, *({"audio": "clips/a.wav", "text": str(i)} for i in range(50))))
    assert examples[3].text == "3"
    assert pickle.loads(pickle.dumps(examples))[49].text == "49"
    child = os.fork()
    if child == 0:
        os._exit(0 if [e.text for e in examples] == [str(i) for i in range(50)] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert examples[49].text == "49"


def test_concatenation(folder: Path) -> None:
    for name in ("one", "two"):
        write(folder, *({"audio": "clips/a.wav", "text": f"{name}{i}"} for i in range(3)), name=f"{name}.jsonl")
    both = open_datasets(["one.jsonl", {"type": "jsonl", "path": "two.jsonl"}], folder)
    assert [e.text for e in both] == ["one0", "one1", "one2", "two0", "two1", "two2"]
    assert both[-1].text == "two2"
    assert both[1:4:2][1].text == "two0"
    assert place_of(both, 4) == f"{folder / 'two.jsonl'}:2"
    assert place_of([Example()], 0) == "example 0"
    with pytest.raises(IndexError):
        both[6]


def test_entries_that_are_no_dataset() -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset 'jsonk'; did you mean 'jsonl'\?"):
        dataset_config({"type": "jsonk", "path": "x"})
    with pytest.raises(ConfigError, match="no dataset is named"):
        open_datasets([], Path())
    with pytest.raises(DataError, match="needs the `path`"):
        open_datasets([{"type": "jsonl"}], Path())


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("txt", "text"),
        ("durations", "duration"),
        ("taks", "task"),
        ("Text", "text"),
        ("source-language", "source_language"),
    ],
)
def test_near_misses(key: str, meant: str) -> None:
    known = ("audio", "text", "task", "duration", "source_language", "id")
    assert near_miss(key, known) == meant


def test_metadata_is_no_near_miss() -> None:
    known = ("audio", "text", "task", "duration", "language", "id")
    for key in ("speaker", "gender", "accent", "corpus", "age", "snr", "uid", "speed", "split", "normalized_text"):
        assert near_miss(key, known) is None
    assert mistyped(["text", "texts"], known) == []
    assert mistyped(["texts"], known) == ["unknown key 'texts'; did you mean 'text'?"]


def test_reading_imports_no_torch(folder: Path) -> None:
    write(folder, {"audio": "clips/a.wav", "text": "x"})
    code = (
        "import sys; from pathlib import Path; from speechlmm_core.data.spec.open import open_datasets\n"
        f"open_datasets(['m.jsonl'], Path({str(folder)!r}))[0]\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_messages_are_the_chat_whatever_the_task(folder: Path) -> None:
    """The task of a line with messages only says how it is scored."""
    from speechlmm_core.data.chats import chat_of, question_of

    asked = {"role": "user", "content": [{"type": "audio", "path": "clips/a.wav"}, {"type": "text", "text": "What?"}]}
    told = {"role": "assistant", "content": "two words"}
    manifest = folder / "chat.jsonl"
    manifest.write_text(json.dumps({"messages": [asked, told], "task": "asr"}) + "\n")
    (example,) = JsonlExamples(manifest)
    assert example.task == "asr"
    assert [message.role for message in chat_of(example)] == ["user", "assistant"]
    assert [message.role for message in chat_of(example, with_answer=False)] == ["user"]
    question, answer = question_of(example)
    assert [item["type"] for item in question[0].content] == ["audio", "text"]
    assert answer == "two words"
    manifest.write_text(json.dumps({"messages": [asked], "task": "asr"}) + "\n")
    with pytest.raises(DataError, match="an assistant's message to learn from"):
        JsonlExamples(manifest)

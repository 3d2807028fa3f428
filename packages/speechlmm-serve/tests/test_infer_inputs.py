"""What `infer` finds to run on."""

from __future__ import annotations

import json

import pytest

from speechlmm_core.errors import ConfigError, DataError
from speechlmm_serve.infer.inputs import find_inputs
from speechlmm_serve.task_prompt import TaskPrompt


def paths(inputs):
    return [one.path for one in inputs]


def test_a_folder_is_searched_and_sorted(clips):
    found = find_inputs(clips, "audio")
    names = ["a.wav", "b.flac", "g.flac", "it's c.wav", "ünder folder/d e.flac", "ünder folder/f.wav"]
    assert paths(found) == [str(clips / name) for name in names]
    assert len(found) == 6
    assert next(iter(found)).media == {"audio": {"path": str(clips / "a.wav")}}


def test_hidden_files_and_other_files_are_left_out(tmp_path):
    for name in ("._a.wav", "a.WAV", "notes.txt", "b.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    assert paths(find_inputs(tmp_path, "audio")) == [str(tmp_path / "a.WAV")]
    with pytest.raises(DataError, match="holds no audio"):
        find_inputs(tmp_path / "folder.wav", "audio")


def test_a_folder_is_searched_for_what_is_asked_for(tmp_path):
    for name in ("a.wav", "b.MP4", "c.mkv", "d.avi", "e.txt"):
        (tmp_path / name).touch()
    for kind, names in (("audio", ["a.wav", "b.MP4", "c.mkv"]), ("video", ["b.MP4", "c.mkv", "d.avi"])):
        assert paths(find_inputs(tmp_path, kind, kind)) == [str(tmp_path / name) for name in names]
    (found, *_) = find_inputs(tmp_path, "lips", "video")
    assert found.media == {"lips": {"path": str(tmp_path / "b.MP4")}}
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "a.wav").touch()
    with pytest.raises(DataError, match=r"holds no video; its files would end in \.3gp \.avi"):
        find_inputs(tmp_path / "sound", "video", "video")
    with pytest.raises(DataError, match="expected a folder, a video file"):
        find_inputs(tmp_path / "no", "video", "video")


def test_a_list_is_relative_to_itself_and_keeps_its_order(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeffb/ü x.wav\r\n\n/abs/a.wav\n~/c.wav\nb/ü x.wav".encode())
    expected = [str(tmp_path / "b/ü x.wav"), "/abs/a.wav", "/home/me/c.wav", str(tmp_path / "b/ü x.wav")]
    assert paths(find_inputs(file, "audio")) == expected
    file.write_text("\n \n")
    with pytest.raises(DataError, match="is empty"):
        find_inputs(file, "audio")
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="cannot read the list"):
        find_inputs(file, "audio")


def test_a_single_file_and_nothing(clips, tmp_path):
    assert paths(find_inputs(clips / "a.wav", "audio")) == [str(clips / "a.wav")]
    for path in (tmp_path / "no", tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match="no file or folder"):
            find_inputs(path, "audio")


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_manifest_with_segments_and_conversations(tmp_path):
    asked = {"role": "user", "content": [{"type": "audio", "path": "c.wav"}, {"type": "text", "text": "?"}]}
    manifest = write(
        tmp_path / "m.jsonl",
        {"audio": {"path": "a.wav", "start": 1, "end": 2.5}, "text": "hello", "id": "x"},
        {"audio": {"path": "a.wav", "start": 3}, "text": "you"},
        {"messages": [asked]},
    )
    found = list(find_inputs(manifest, "speech"))
    a, c = str(tmp_path / "a.wav"), str(tmp_path / "c.wav")
    assert [one.path for one in found] == [a, a, c]
    assert [one.media["speech"] for one in found] == [
        {"path": a, "start": 1, "end": 2.5},
        {"path": a, "start": 3},
        {"path": c},
    ]
    assert len({one.key for one in found}) == 3
    assert found[0].example is not None
    assert found[0].example.text == "hello"


def test_every_medium_of_the_model_is_passed_on(tmp_path):
    manifest = write(tmp_path / "m.jsonl", {"audio": "a.wav", "media": {"speaker": "s.wav"}, "text": "x"})
    (one,) = find_inputs(manifest, "audio")
    assert list(one.media) == ["audio", "speaker"]


def test_all_bad_lines_are_told_with_their_numbers(tmp_path):
    manifest = write(tmp_path / "m.jsonl", {"audio": "a.wav"}, "{bad", {"text": "no audio"})
    with pytest.raises(DataError) as caught:
        find_inputs(manifest, "audio")
    assert "m.jsonl:2: bad JSON" in str(caught.value)
    assert "m.jsonl:3: " in str(caught.value)
    with pytest.raises(DataError, match=r"m\.jsonl:1: no `audio` to run on"):
        find_inputs(write(tmp_path / "m.jsonl", {"task": "asr", "text": "x"}), "audio")


def test_languages_come_from_the_lines_or_the_call(tmp_path):
    manifest = write(
        tmp_path / "m.jsonl",
        {"audio": "a.wav", "source_language": "en", "target_language": "de"},
        {"audio": "b.wav", "source_language": "en"},
    )
    inputs = find_inputs(manifest, "audio")
    with pytest.raises(DataError, match=r"m\.jsonl:2: task 'st' needs a --target-language"):
        inputs.check(TaskPrompt.of("st", None, None))
    prompt = TaskPrompt.of("st", None, "it")
    inputs.check(prompt)
    asked = [prompt.messages(one.media, one.example)[0].content[-1]["text"] for one in inputs]
    assert "German" in asked[0]
    assert "Italian" in asked[1]


@pytest.mark.parametrize(("source", "message"), [(None, "--source-language"), ("klingon", "unknown language")])
def test_files_need_the_languages_of_the_call(clips, source, message):
    with pytest.raises(ConfigError, match=message):
        find_inputs(clips, "audio").check(TaskPrompt.of("st", source, "de"))

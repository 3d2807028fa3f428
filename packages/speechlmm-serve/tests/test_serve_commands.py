"""The commands as a user calls them, in this process."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest

from speechlmm_serve.chat.terminal import CONTROL
from speechlmm_serve.cli.main import main


@pytest.fixture
def call(capsys, toy_model_path):
    """Runs a command on the toy model: exit code, standard output, standard error."""

    def run(command, *arguments, model=toy_model_path):
        with pytest.raises(SystemExit) as caught:
            main([command, "--model-path", str(model), "--max-new-tokens", "8", *map(str, arguments)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_the_text_is_the_same_for_any_batch_size_and_order(call, clips, tmp_path):
    code, out, err = call("infer", "--audios-file-path", clips, "--batch-size", 1)
    assert (code, err) == (0, "")
    expected = {one["path"]: one["text"] for one in records(out)}
    assert list(expected) == sorted(expected)
    assert len(set(expected.values())) > 3, "the clips must not all sound the same to the model"
    for size in (3, 16, "auto"):
        assert records(call("infer", "--audios-file-path", clips, "--batch-size", size)[1]) == records(out)
    backwards = tmp_path / "list.txt"
    backwards.write_text("\n".join(list(expected)[::-1]), encoding="utf-8")
    again = records(call("infer", "--audios-file-path", backwards, "--batch-size", 3)[1])
    assert [(one["path"], one["text"]) for one in again] == list(expected.items())[::-1]


def test_a_broken_file_is_a_line_and_the_run_goes_on(call, mixed, tmp_path):
    out = tmp_path / "out" / "lines.jsonl"
    code, stdout, err = call("infer", "--audios-file-path", mixed, "--output", out)
    assert (code, stdout) == (1, "")
    assert err == f"2 answers are in {out}; 6 of 8 inputs failed; their lines say why\n"
    found = records(out.read_text(encoding="utf-8"))
    assert [one["path"] for one in found] == [str(path) for path in sorted(mixed.iterdir())]
    for one in found:
        good = "good" in one["path"]
        assert (one["error"] is None) == (one["text"] is not None) == (one["duration"] is not None) == good
        assert good or (one["path"] in one["error"] and "\n" not in one["error"])
    assert {"path", "text", "duration", "error", "task", "key"} <= found[0].keys()


def test_damage_of_every_kind_is_a_line(call, clips, tmp_path):
    good = (clips / "a.wav").read_bytes()
    flac = (clips / "b.flac").read_bytes()
    folder = tmp_path / "damaged"
    folder.mkdir()
    damaged = {
        "cut.wav": good[: len(good) // 2],
        "header only.wav": good[:30],
        "huge.wav": good[:40] + b"\xff\xff\xff\x7e" + good[44:],
        "no rate.wav": good[:24] + bytes(4) + good[28:],
        "four billion hertz.wav": good[:24] + b"\xff" * 4 + good[28:],
        "65535 channels.wav": good[:22] + b"\xff\xff" + good[24:],
        "swapped.flac": b"OggS" + flac[4:],
        "zeros.flac": flac[:2000] + bytes(len(flac) - 2000),
        "zeros.mp3": bytes(5000),
        "spliced.opus": flac[:500] + good[500:],
    }
    for name, data in damaged.items():
        (folder / name).write_bytes(data)
    (folder / "whole.wav").write_bytes(good)
    code, out, err = call("infer", "--audios-file-path", folder)
    assert (code, err) == (1, f"{len(damaged)} of {len(damaged) + 1} inputs failed; their lines say why\n")
    found = records(out)
    assert [one["path"].rpartition("/")[2] for one in found] == sorted([*damaged, "whole.wav"])
    for one in found:
        if one["path"].endswith("whole.wav"):
            assert one["text"] is not None
        else:
            assert one["path"] in one["error"]
            assert "\n" not in one["error"]


def test_resuming_retries_what_failed_and_keeps_the_rest(call, clips, mixed, tmp_path):
    out = tmp_path / "lines.jsonl"
    arguments = ("infer", "--audios-file-path", mixed, "--output", out)
    call(*arguments)
    before = records(out.read_text(encoding="utf-8"))
    assert call(*arguments)[0] == 2
    assert records(out.read_text(encoding="utf-8")) == before
    for path in mixed.iterdir():
        if "good" not in path.name:
            shutil.copy(clips / "a.wav", path)
    marked = {**before[0], "text": "kept"}
    out.write_text("\n".join(json.dumps(one) for one in [marked, *before[1:]]), encoding="utf-8")
    assert call(*arguments, "--resume")[0] == 0
    after = records(out.read_text(encoding="utf-8"))
    assert after[0] == marked
    assert all(one["error"] is None for one in after)
    assert call(*arguments, "--overwrite")[0] == 0
    assert records(out.read_text(encoding="utf-8"))[0] == before[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--audios-file-path", "/no/where"], "no file or folder '/no/where'"),
        (["--audios-file-path", ".", "--batch-size", "0"], "expected a number from 1 on, or auto, got '0'"),
        (["--audios-file-path", ".", "--task", "asrr"], "did you mean 'asr'?"),
        (["--audios-file-path", ".", "--resume"], "name it with --output"),
        (["--audios-file-path", ".", "--temperature", "-1"], "-1"),
    ],
)
def test_wrong_usage_of_infer_is_one_line_and_exit_code_2(call, arguments, message):
    code, out, err = call("infer", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_what_is_wrong_with_the_model_or_the_place(call, clips, tmp_path):
    for arguments, message in (
        (["--device", "cpuu"], "unknown device 'cpuu'"),
        (["--device", "meta"], "cannot run on the device 'meta'"),
        (["--load-in-4bit", "--load-in-8bit"], "not both"),
    ):
        code, _, err = call("infer", "--audios-file-path", clips, *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    code, _, err = call("chat", model=tmp_path / "nothing")
    assert (code, err.count("\n")) == (2, 1)
    assert "no checkpoint" in err


def test_quantising_without_bitsandbytes_says_so(call, clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for flag in ("--load-in-4bit", "--load-in-8bit"):
        code, _, err = call("infer", "--audios-file-path", clips, flag)
        assert code == 2
        assert "bitsandbytes" in err
        assert "pip install" in err


def test_a_manifest_with_a_bad_line_stops_before_the_model_is_loaded(call, tmp_path, monkeypatch):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"audio": "a.wav"}\n{bad\n')
    monkeypatch.setattr("speechlmm_serve.cli.infer.load_engine", lambda *_, **__: pytest.fail("loaded"))
    code, out, err = call("infer", "--audios-file-path", manifest)
    assert (code, out) == (2, "")
    assert "m.jsonl:2: bad JSON" in err


def test_references_and_ids_of_a_manifest_reach_the_lines(call, clips, tmp_path):
    manifest = tmp_path / "m.jsonl"
    segment = {"path": str(clips / "b.flac"), "start": 0.05, "end": 0.1}
    manifest.write_text(json.dumps({"audio": segment, "text": "hello", "id": "x1"}))
    code, out, _ = call("infer", "--audios-file-path", manifest)
    (one,) = records(out)
    assert code == 0
    assert (one["id"], one["reference"], one["duration"]) == ("x1", "hello", 0.05)


def test_no_help_is_needed_to_see_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 0
    assert "infer" in capsys.readouterr().out


class Pipe(io.StringIO):
    """Standard input that is no terminal."""


def talk(call, monkeypatch, lines, *arguments):
    monkeypatch.setattr(sys, "stdin", Pipe(lines))
    return call("chat", "--temperature", 0, *arguments)


def test_chat_reads_a_pipe(call, clips, monkeypatch):
    code, first, err = talk(call, monkeypatch, "hello\n\nnever read\n")
    assert (code, err, first.count("\n")) == (0, "", 1)
    # The same words after a reset are answered alike, and without it not: the history is sent.
    code, out, err = talk(call, monkeypatch, "hello\n<reset>\nhello\nhello\n")
    assert (code, err) == (0, "(cleared)\n")
    answers = out.splitlines(keepends=True)
    assert answers[:2] == [first, first]
    assert answers[2] != first


def test_chat_loads_files_and_outlives_bad_ones(call, clips, monkeypatch):
    good = clips / "it's c.wav"
    code, out, err = talk(call, monkeypatch, f"what? audio:{good}\naudio:/no/where.wav\nand?\n")
    assert code == 1, "a pipe's user learns that a message failed"
    said = err.splitlines()
    assert said[0].startswith("(loaded ")
    assert said[1] == "error: /no/where.wav: no such file; check the path"
    assert len(said) == 2
    assert out.count("\n") == 2


def test_chat_asks_the_task_about_a_file(call, clips, monkeypatch):
    expected = records(call("infer", "--audios-file-path", clips / "a.wav")[1])[0]["text"]
    code, out, _ = talk(call, monkeypatch, f"audio:{clips / 'g.flac'}\n", "--task", "asr", "--audio", clips / "a.wav")
    assert code == 0
    # A pipe has one answer for --audio and one for the line; control characters are not written to a terminal.
    assert out.startswith(CONTROL.sub("\ufffd", expected))
    assert talk(call, monkeypatch, "x\n", "--task", "st")[0] == 2
    assert talk(call, monkeypatch, "x\n", "--audio", "/no/where.wav")[0] == 2


def test_a_task_runs_over_videos(call, videos, toy_video_model_path, tmp_path):
    code, out, err = call("infer", "--videos-file-path", videos, model=toy_video_model_path)
    assert (code, err) == (1, "1 of 3 inputs failed; their lines say why\n")
    first, second, broken = records(out)
    assert [first["duration"], second["duration"]] == [0.8, 1.4]
    assert first["text"] != second["text"]
    assert broken["path"].endswith("c.mp4")
    assert str(videos / "c.mp4") in broken["error"]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"video": {"path": str(videos / "b.mkv"), "end": 1.0}, "id": "x"}))
    code, out, _ = call("infer", "--videos-file-path", manifest, model=toy_video_model_path)
    assert (code, records(out)[0]["duration"], records(out)[0]["id"]) == (0, 1.0, "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --audios-file-path or --videos-file-path, got neither"),
        (["--audios-file-path", ".", "--videos-file-path", "."], "got both"),
        (["--videos-file-path", "."], "this model takes no video; its inputs are: audio"),
    ],
)
def test_which_files_are_meant_must_be_clear(call, arguments, message):
    code, out, err = call("infer", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_chat_loads_videos(call, videos, clips, toy_video_model_path, monkeypatch):
    lines = f"what? video:{videos / 'a.mp4'}\nand? video:{videos / 'c.mp4'}\nwhat? audio:{clips / 'a.wav'}\n"
    monkeypatch.setattr(sys, "stdin", Pipe(lines))
    code, out, err = call("chat", "--temperature", 0, model=toy_video_model_path)
    assert code == 1
    said = err.splitlines()
    assert said[0] == f"(loaded {str(videos / 'a.mp4')!r}, 0.8 s)"
    assert said[1].startswith(f"error: {videos / 'c.mp4'}")
    assert said[2].startswith("(loaded ")
    assert out.count("\n") == 2
    monkeypatch.setattr(sys, "stdin", Pipe(""))
    expected = records(call("infer", "--videos-file-path", videos / "a.mp4", model=toy_video_model_path)[1])[0]["text"]
    start = ("chat", "--temperature", 0, "--task", "asr", "--video", videos / "a.mp4")
    code, out, _ = call(*start, model=toy_video_model_path)
    assert (code, out.strip()) == (0, CONTROL.sub("\ufffd", expected).strip())
    assert call(*start, "--audio", clips / "a.wav", model=toy_video_model_path)[0] == 2
    assert "takes no video" in talk(call, monkeypatch, f"video:{videos / 'a.mp4'}\n")[2]


def test_answers_cannot_steer_the_terminal(call, monkeypatch):
    def stream(self, messages, options):
        yield "red\x1b[31m\x9b31m\ttab\nline"

    monkeypatch.setattr("speechlmm_core.inference.engine.InferenceEngine.stream", stream)
    _, out, _ = talk(call, monkeypatch, "hello\n")
    assert out == "red\ufffd[31m\ufffd31m\ttab\nline\n"

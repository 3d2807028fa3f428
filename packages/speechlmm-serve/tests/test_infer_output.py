"""The lines that `infer` writes: refusals, resuming after any kill."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.inference.options import GenerationOptions, Result
from speechlmm_serve.infer import output as output_module
from speechlmm_serve.infer.inputs import FileInputs
from speechlmm_serve.infer.output import PARTIAL, check_output, encode, read_done
from speechlmm_serve.infer.run import run_inference
from speechlmm_serve.task_prompt import TaskPrompt

ASR = TaskPrompt.of("asr", None, None)
ABOUT = {"task": "asr"}


def record(key, error=None, **more):
    return {"path": key, "text": None if error else key.upper(), "error": error, **ABOUT, "key": key, **more}


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


class FakeEngine:
    """Answers with the path in capitals; what is in `broken` fails, and after so many answers the process ends."""

    def __init__(self, broken=(), lives=10**9):
        self.broken, self.lives, self.asked = set(broken), lives, []

    def run(self, requests, *, options, batch_size):
        for request in requests:
            if not self.lives:
                raise Killed
            self.lives -= 1
            path = request.messages[0].media[0]["path"]
            self.asked.append(path)
            if path in self.broken:
                yield Result(request.id, None, "broken")
            else:
                yield Result(request.id, path.upper(), None, 1.0, 3)


def run(engine, paths, out, *, resume):
    inputs = FileInputs(paths, "audio")
    return run_inference(engine, inputs, ASR, options=GenerationOptions(), output=out, resume=resume, progress=False)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@given(
    count=st.integers(1, 8),
    broken=st.sets(st.integers(0, 7)),
    kills=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 40)), max_size=5),
)
def test_nothing_that_succeeded_is_run_again_after_any_kills(tmp_path_factory, count, broken, kills):
    """Each run is killed after some answers, the last line torn; in the end every line is there once, in order."""
    out = tmp_path_factory.mktemp("out") / "out.jsonl"
    paths = [f"{number} ü.wav" for number in range(count)]
    bad = {paths[number] for number in broken if number < count}
    succeeded = set()
    for number, (lives, torn) in enumerate(kills):
        engine = FakeEngine(bad, lives)
        written = out.with_name(out.name + PARTIAL) if number else out
        try:
            run(engine, paths, out, resume=number > 0)
        except Killed:
            if torn and written.exists():  # a line of which not everything reached the disk
                with written.open("ab") as file:
                    file.write(encode(record(paths[-1]))[:torn])
        assert not succeeded & set(engine.asked), "answered twice"
        succeeded |= set(engine.asked) - bad
    last = FakeEngine({paths[0]} & bad)  # all but the first have been mended
    failed = run(last, paths, out, resume=bool(kills))
    assert set(last.asked) == set(paths) - succeeded
    assert [one["path"] for one in lines(out)] == paths
    assert failed == len({paths[0]} & bad) == sum(one["error"] is not None for one in lines(out))
    assert all(one["text"] == one["path"].upper() for one in lines(out) if one["error"] is None)
    assert not out.with_name(out.name + PARTIAL).exists()


def test_a_kill_while_two_files_are_put_together_loses_nothing(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(encode(record("a")))
    partial = out.with_name(out.name + PARTIAL)
    partial.write_bytes(encode(record("a")) + encode(record("b")))
    with mock.patch.object(output_module, "atomic_write", side_effect=Killed), pytest.raises(Killed):
        read_done(out, ABOUT)
    assert read_done(out, ABOUT).keys() == {"a", "b"}
    assert not partial.exists()
    assert read_done(out, ABOUT).keys() == {"a", "b"}


def test_lines_that_failed_are_kept_until_they_are_retried(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(encode(record("a", "broken")) + encode(record("b")))
    out.with_name(out.name + PARTIAL).write_bytes(encode(record("b")))
    assert read_done(out, ABOUT).keys() == {"b"}
    assert [one["error"] for one in lines(out)] == ["broken", None]


def test_what_is_no_output_is_not_touched(tmp_path):
    out = tmp_path / "notes.jsonl"
    for text in ("my notes\nand more\n", '{"key": "a"}\n{}\n', "[1]\n{}\n"):
        out.write_text(text)
        with pytest.raises(DataError, match=r"notes\.jsonl:1 is not a line of an output of `infer`"):
            read_done(out, ABOUT)
        assert out.read_text() == text


def test_lines_of_another_task_are_not_mixed_in(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(encode({**record("a"), "task": "st", "target_language": "de"}))
    with pytest.raises(DataError, match=r"out\.jsonl:1 is of another call \(task 'st', target_language 'de'\)"):
        read_done(out, ABOUT)


def test_an_output_that_is_there_needs_a_word(tmp_path):
    out = tmp_path / "out.jsonl"
    check_output(out, resume=False, overwrite=False)
    out.touch()
    check_output(out, resume=False, overwrite=False)
    out.write_bytes(encode(record("a")))
    with pytest.raises(ConfigError, match="--resume to go on with it, or --overwrite"):
        check_output(out, resume=False, overwrite=False)
    check_output(out, resume=True, overwrite=False)
    check_output(out, resume=False, overwrite=True)
    out.rename(out.with_name(out.name + PARTIAL))
    with pytest.raises(ConfigError, match="partial"):
        check_output(out, resume=False, overwrite=False)


def test_outputs_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="not both"):
        check_output(tmp_path / "x", resume=True, overwrite=True)
    with pytest.raises(ConfigError, match="--output"):
        check_output(None, resume=True, overwrite=False)
    with pytest.raises(ConfigError, match="is a folder"):
        check_output(tmp_path, resume=False, overwrite=False)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the folder"):
        check_output(tmp_path / "file" / "deeper" / "out.jsonl", resume=False, overwrite=False)


def test_overwriting_forgets_a_partial_output(tmp_path):
    out = tmp_path / "out.jsonl"
    partial = out.with_name(out.name + PARTIAL)
    partial.write_bytes(encode(record("b")))
    run(FakeEngine(), ["a.wav"], out, resume=False)
    assert not partial.exists()
    assert [one["path"] for one in lines(out)] == ["a.wav"]


def test_a_name_that_is_no_utf8_is_a_line_of_json():
    line = encode(record("a\udcff.wav"))
    assert json.loads(line.decode("ascii"))["path"] == "a\udcff.wav"
    assert "ü".encode() in encode(record("ü.wav"))


def test_libraries_that_print_do_not_reach_the_lines(capsys):
    class Chatty(FakeEngine):
        def run(self, requests, *, options, batch_size):
            for result in super().run(requests, options=options, batch_size=batch_size):
                print("Setting pad_token_id")
                yield result

    run(Chatty(), ["a.wav", "b.wav"], None, resume=False)
    out, err = capsys.readouterr()
    assert [json.loads(line)["path"] for line in out.splitlines()] == ["a.wav", "b.wav"]
    assert "Setting" in err

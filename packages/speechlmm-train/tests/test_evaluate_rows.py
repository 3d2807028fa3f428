"""Rows of an evaluation: their keys, what failed, what is shown, and what no file may do."""

import json
import math
from typing import ClassVar

import numpy as np
import pytest

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ListExamples
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.metric import MetricConfig, metrics
from speechlmm_train.cli import main
from speechlmm_train.evaluate.compare import compare, summary
from speechlmm_train.evaluate.markdown import difference, to_markdown
from speechlmm_train.evaluate.metric_choice import MetricChoice
from speechlmm_train.evaluate.playable import playable
from speechlmm_train.evaluate.prediction import Prediction, write_predictions
from speechlmm_train.evaluate.questions import Keys, questions
from speechlmm_train.evaluate.report_files import heading
from speechlmm_train.evaluate.score import report_on, score_what_can_be
from speechlmm_train.evaluate.worst import worst_examples


def asr(name):
    return Example(id=name, task="asr", text="one two", source_language="en")


class Broken(ListExamples):
    """Examples whose chat, or whose record, cannot be made."""

    def example(self, index):
        if self.examples[index].id == "unreadable":
            raise DataError("its record is broken")
        return super().example(index)

    def chat(self, index, *, draw=0, with_answer=True):
        raise DataError("it has no prompt")


def row(key, **fields):
    return Prediction(key=key, **{"dataset": "d", "task": "asr", "references": ("one",), "text": "one", **fields})


def call(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        main([str(part) for part in argv])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_no_key_is_given_twice():
    keys = Keys()
    found = [
        question.key
        for dataset, names in (("a/b", ["b", "b", "b#2", "b", "c"]), ("a", ["b/c", "b#2", "x"]))
        for question, _ in questions(Broken([asr(name) for name in names]), dataset, keys)
    ]
    assert len(set(found)) == len(found) == 8
    assert found[:2] == ["a/b/b", "a/b/b#2"]
    assert list(keys.given) == found


def test_a_chat_that_cannot_be_made_counts_as_an_empty_answer(capsys, tmp_path):
    found = list(questions(Broken([asr("a"), asr("unreadable")]), "d"))
    assert [messages for _, messages in found] == [None, None]
    first, second = (question for question, _ in found)
    assert (first.key, first.references, first.error) == ("d/a", ("one two",), "it has no prompt")
    assert (second.key, second.references, second.error) == ("d#2", (), "its record is broken")
    report = report_on([first, second], draws=0)
    counts = {name: report[name] for name in ("failed", "unreadable", "without_reference")}
    assert counts == {"failed": 2, "unreadable": 1, "without_reference": 0}
    assert report["metrics"]["wer"]["value"] == 1
    write_predictions(tmp_path / "p.jsonl", [first, second])
    code, _, err = call(capsys, "score", tmp_path / "p.jsonl")
    assert code == 1
    assert err == (
        "2 examples failed; the predictions say why; 1 of them could not be read and have no answer to be scored with\n"
    )


@pytest.mark.parametrize(
    "item",
    [
        {"type": "audio", "path": "x.wav", "start": [1]},
        {"type": "audio", "path": 5},
        {"type": "audio"},
        {"type": "audio", "path": "a\0b"},
        {"type": "video", "path": __file__, "start": [1]},
        {"type": "video", "path": "/etc/passwd"},
        {"type": "video"},
    ],
)
def test_what_is_no_medium_is_a_note(item, tmp_path):
    assert playable(item, tmp_path).kind == "note"
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_called_a_video_is_not_copied(tmp_path):
    (tmp_path / "secret.mp4").write_text("root:x:0:0\n" * 20)
    page = tmp_path / "page"
    page.mkdir()
    assert playable({"type": "video", "path": str(tmp_path / "secret.mp4")}, page).kind == "note"
    assert not list(page.iterdir())


class Adequacy(MetricConfig):
    """A plugin's metric."""

    type: str = "adequacy"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, answers):
        return np.array([[30.0 + len(answer.text), 1.0] for answer in answers]).reshape(-1, 2)

    def score(self, total):
        return {"adequacy": float(total[0] / total[1])}


@pytest.mark.parametrize(("scale", "shown"), [("number", "33.0000"), ("hundred", "33.00"), ("fraction", "3300.00 %")])
def test_a_metric_says_how_it_is_shown(scale, shown, monkeypatch):
    monkeypatch.setitem(metrics.loaded, "adequacy", Adequacy)
    if scale != "number":  # what is not said is shown as it is
        monkeypatch.setattr(Adequacy, "scale", scale)
    given = [row(f"d/{i}", metrics=("adequacy", "wer", "bleu")) for i in range(3)]
    lines = to_markdown(report_on(given, draws=10), "title").splitlines()
    assert [cell.strip() for cell in next(line for line in lines if "adequacy" in line).split("|")][4] == shown
    assert "0.00 %" in next(line for line in lines if "| wer" in line)
    table = "\n".join(summary(compare(given, given, MetricChoice(), draws=100)))
    assert table.count(f"| {shown} ") == 2


def test_speed_is_stated_as_the_field_does(tmp_path, capsys):
    given = [row(f"d/{i}", duration=10.0, seconds=0.5, num_tokens=4) for i in range(4)]
    report = report_on(given, draws=0)
    assert (report["real_time_factor"], report["inverse_real_time_factor"]) == (0.05, 20)
    assert "times real time" in to_markdown(report, "title")
    tiny = report_on([row("d/0", duration=10.0, seconds=1e-320, num_tokens=10)], draws=0)
    assert (tiny["inverse_real_time_factor"], tiny["tokens_per_second"]) == (None, None)
    lines = [{**json.loads(one.line), "seconds": 1e308} for one in given]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, err = call(capsys, "score", tmp_path / "p.jsonl", "--json")
    assert (code, err.count(": seconds: "), "Traceback" in err) == (2, 4, False)
    assert "p.jsonl:1: seconds: Input should be less than or equal to" in err


def test_perfect_answers_are_not_among_the_worst():
    bleu = [row("d/short", metrics=("bleu",)), row("d/wrong", metrics=("bleu",), text="two")]
    wer = [row("e/case", dataset="e", text="One."), row("e/failed", dataset="e", text=None, error="no file")]
    found = worst_examples([*bleu, *wer], MetricChoice(), 10)
    assert {name: [one.prediction.key for one in ranked] for name, ranked in found.items()} == {
        "d": ["d/wrong"],
        "e": ["e/failed"],
    }


class NotANumber(Adequacy):
    type: str = "not_a_number"

    def statistics(self, answers):
        return super().statistics(answers) * math.nan


def test_only_the_metric_that_fails_is_left_out(monkeypatch):
    monkeypatch.setitem(metrics.loaded, "not_a_number", NotANumber)
    given = [row("d/0", metrics=("wer", "not_a_number")), row("d/1", task="st", metrics=("bleu:", "chrf"))]
    scores, faults = score_what_can_be(given)
    assert (scores["asr"]["wer"], round(scores["st"]["chrf"])) == (0, 100)
    assert {"not_a_number", "bleu:"}.isdisjoint({*scores["asr"], *scores["st"]})
    assert faults[0] == "metric 'not_a_number' has no number (NaN) for the prediction 'd/0'"
    assert len(faults) == 2


@pytest.mark.parametrize("name", ["lr=1.jsonl", "runs/lr=1/test.jsonl", "./data=1.jsonl", "{tmp}/data.lr=1.jsonl"])
def test_a_missing_manifest_is_no_override(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = name.format(tmp=tmp_path)
    code, _, err = call(capsys, "evaluate", "--model-path", tmp_path, given)
    assert (code, err.count("\n")) == (2, 1)
    code, _, other = call(capsys, "evaluate", "--model-path", tmp_path, "nothing.jsonl")
    assert err.replace(given, "nothing.jsonl") == other


@pytest.mark.parametrize(
    ("key", "paths", "expected"),
    [
        ("d/utt-1", ["/a/utt-1.wav"], "d/utt-1"),
        ("d/17", ["/a/kitchen.wav"], "d/17 (kitchen.wav)"),
        ("d/17", ["/a/x.wav", "/a/x.wav", "/b/y.mp4"], "d/17 (x.wav, y.mp4)"),
        ("d/17", [], "d/17"),
    ],
)
def test_an_example_is_called_by_its_dataset_and_its_file(key, paths, expected):
    assert heading(row(key, media=tuple({"type": "audio", "path": path} for path in paths))) == expected


def test_differences_of_per_cent_are_in_points():
    assert [difference(scale, -0.25) for scale in ("fraction", "hundred", "number")] == [
        *("-25.00 points", "-0.25", "-0.2500")
    ]


def test_answers_that_were_cut_are_told(tmp_path, capsys):
    whole = [row(f"whole/{i}", dataset="whole", num_tokens=3) for i in range(2)]
    cut = [row(f"cut/{i}", dataset="cut", complete=False, num_tokens=512) for i in range(3)]
    some = [row("some/0", dataset="some", complete=False, num_tokens=8), row("some/1", dataset="some")]
    write_predictions(tmp_path / "p.jsonl", [*whole, *cut, *some])
    code, out, err = call(capsys, "score", tmp_path / "p.jsonl", "--output-dir", tmp_path / "s")
    assert code == 0
    assert err.splitlines() == [
        "all 3 answers of 'cut' were cut at 512 tokens",
        "1 of 2 answers of 'some' was cut at 8 tokens",
        f"the reports are in {tmp_path / 's'}",
    ]
    assert "- wer: `" in out
    assert "|norm:basic|" in out

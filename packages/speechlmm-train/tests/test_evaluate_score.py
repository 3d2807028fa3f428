"""Scoring predictions again, intervals and significance, against loops written here and against enumeration."""

import datetime
import html.parser
import itertools
import json
import random
import statistics as stats
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from speechlmm_core.errors import ConfigError, DataError
from speechlmm_train.cli import main
from speechlmm_train.evaluate.align import align, as_text
from speechlmm_train.evaluate.bootstrap import interval, paired, resampled_totals
from speechlmm_train.evaluate.compare import compare
from speechlmm_train.evaluate.metric_choice import MetricChoice
from speechlmm_train.evaluate.prediction import Prediction, as_json, read_predictions, write_predictions
from speechlmm_train.evaluate.score import report_on, score, statistics
from speechlmm_train.metrics.wer import WERConfig

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


def rows(count=40, seed=0, wrong=0.3, dataset="a"):
    """Predictions of an ASR model that mishears a share of the words."""
    random.seed(seed)
    texts = random.Random(1)
    found = []
    for i in range(count):
        reference = texts.choices(WORDS, k=texts.randint(1, 8))
        heard = [random.choice(WORDS) if random.random() < wrong else word for word in reference]
        found.append(
            Prediction(
                key=f"{dataset}/{i}",
                dataset=dataset,
                id=str(i),
                task="asr",
                source_language="en",
                references=(" ".join(reference),),
                text=" ".join(heard),
                duration=2.0,
                num_tokens=10,
                seconds=0.5,
            )
        )
    return found


def naive_wer(pairs):
    wrong = sum(x != y for r, t in pairs for x, y in zip(r.split(), t.split(), strict=True))
    return wrong / sum(len(r.split()) for r, _ in pairs)


def call(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        main([str(part) for part in argv])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_the_report_by_dataset_and_task():
    german = {"task": "st", "target_language": "de"}
    second = [one.model_copy(update=german) for one in rows(10, seed=3, dataset="b")]
    failed = second[0].model_copy(update={"text": None, "error": "no file", "num_tokens": 0, "duration": None})
    unscored = second[1].model_copy(update={"references": ()})
    every = [*rows(), failed, unscored, *second[2:]]
    report = report_on(every, draws=200)
    assert (report["examples"], report["failed"], report["without_reference"]) == (50, 1, 1)
    assert report["real_time_factor"] == pytest.approx(25 / (49 * 2), abs=1e-6)
    assert report["inverse_real_time_factor"] == pytest.approx(49 * 2 / 25)
    assert report["tokens_per_second"] == pytest.approx(490 / 25, abs=0.01)
    assert list(report["datasets"]) == ["a", "b"]
    first = report["datasets"]["a"]
    assert first["metrics"] == first["tasks"]["asr"]["metrics"] == report["tasks"]["asr"]["metrics"]
    assert set(first["metrics"]) == {"wer", "cer"}
    wer = first["metrics"]["wer"]
    assert wer["counts"]["wer_words"] == sum(len(one.reference.split()) for one in every[:40])
    assert wer["low"] < wer["value"] < wer["high"]
    assert "jiwer:" in wer["signature"]
    bleu = report["datasets"]["b"]["metrics"]["bleu"]
    assert bleu["answers"] == 9, "the failure counts as an empty answer, what has no reference does not count"
    assert bleu["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")
    lengths = [len(one.text.split()) for one in every[42:]]
    assert bleu["counts"]["bleu_length"] == sum(lengths)
    assert score(every)["asr"]["wer"] == wer["value"]


def test_intervals_are_those_of_resampling():
    given = rows(60)
    table = statistics(given)["wer"].table
    low, high = interval(WERConfig(), table, draws=4000)
    generator = random.Random(5)
    pairs = [(one.reference, one.text) for one in given]
    values = sorted(
        WERConfig().score(np.sum([table[i] for i in generator.choices(range(60), k=60)], axis=0))["wer"]
        for _ in range(4000)
    )
    assert (low, high) == pytest.approx((values[100], values[-100]), abs=0.01)
    # Normal theory for a mean over answers of one length is near enough to notice a wrong width.
    share = naive_wer([(r, t) for r, t in pairs])
    assert low < share < high
    assert high - low == pytest.approx(2 * 1.96 * stats.stdev(values), rel=0.1)
    assert interval(WERConfig(), table) == interval(WERConfig(), table)
    blocks = resampled_totals(np.ones((5_000_000 // 4, 1)), draws=7)
    assert (blocks == 5_000_000 // 4).all(), "every draw is of as many answers, in several blocks"


def test_p_values_are_those_of_enumeration():
    a, b = rows(10, seed=0, wrong=0.6), rows(10, seed=1, wrong=0.3)
    tables = [statistics(one)["wer"].table for one in (a, b)]
    metric = WERConfig()
    found = paired(metric, *tables, draws=20_000)
    observed = abs(found.difference)
    reached = 0
    for swapped in itertools.product([False, True], repeat=10):
        sides = [
            [two if swap else one for swap, one, two in zip(swapped, *pair, strict=True)]
            for pair in (tables, tables[::-1])
        ]
        x, y = (metric.score(np.sum(side, axis=0))["wer"] for side in sides)
        reached += abs(x - y) >= observed - 1e-12
    assert found.p_randomisation == pytest.approx(reached / 2**10, abs=0.01)
    assert found.low < found.difference < found.high
    same = paired(metric, tables[0], tables[0], draws=300)
    assert (same.difference, same.p_bootstrap, same.p_randomisation) == (0, 1, 1)
    far = paired(metric, statistics(rows(200, wrong=0))["wer"].table, statistics(rows(200, wrong=0.5))["wer"].table)
    assert far.p_bootstrap == far.p_randomisation == 1 / 1001


def test_compare(tmp_path, capsys):
    a, b = rows(30, wrong=0.4), rows(30, seed=9, wrong=0.1)
    write_predictions(tmp_path / "a" / "predictions.jsonl", a)
    write_predictions(tmp_path / "b.jsonl", b[::-1])
    found = compare(a, b[::-1], MetricChoice(), draws=200)
    gains = [change.gain for change in found.changes]
    worse = [gain for gain in gains if gain < 0]
    assert gains == sorted(worse) + sorted((g for g in gains if g > 0), reverse=True)
    assert len(found.changes) + found.same == 30
    own = {one.key: naive_wer([(one.reference, one.text)]) for one in a}
    for change in found.changes:
        assert change.value_a == pytest.approx(own[change.key])
        assert (change.gain > 0) == (change.value_b < change.value_a)
    code, out, err = call(capsys, "compare", tmp_path / "a", tmp_path / "b.jsonl", "--output", tmp_path / "c.md")
    assert (code, err) == (0, "")
    assert "| a       | wer" in out
    assert "better" in out
    assert "## Worse in B" in (tmp_path / "c.md").read_text()
    code, out, _ = call(capsys, "compare", tmp_path / "a", tmp_path / "b.jsonl", "--json", "--metric", "cer")
    assert set(json.loads(out)["metrics"]["a"]) == {"cer"}


def test_other_examples_are_not_compared(tmp_path, capsys):
    a, b = rows(12), rows(10, seed=2)
    with pytest.raises(ConfigError, match=r"2 examples are in A only: 'a/10', 'a/11'\ncompare what both have"):
        compare(a, b, MetricChoice())
    assert compare(a, b, MetricChoice(), common=True, draws=100).left_out == 2
    other = [b[0].model_copy(update={"references": ("else",)}), *b[1:]]
    with pytest.raises(ConfigError, match="1 example has other references in B than in A: 'a/0'"):
        compare(a[:10], other, MetricChoice())
    with pytest.raises(ConfigError, match="no example in common"):
        compare(a, rows(3, dataset="z"), MetricChoice(), common=True)
    write_predictions(tmp_path / "a.jsonl", a)
    code, _, err = call(capsys, "compare", tmp_path / "a.jsonl", tmp_path / "no.jsonl")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be read" in err


class NoNumber(WERConfig):
    type: str = "no_number"

    def statistics(self, answers):
        table = super().statistics(answers)
        table[1, 0] = np.nan
        return table


def test_nan_is_named_and_never_a_value(monkeypatch, tmp_path, capsys):
    from speechlmm_core.interfaces.metric import metrics

    monkeypatch.setitem(metrics.loaded, "no_number", NoNumber)
    given = [one.model_copy(update={"metrics": ("no_number", "wer")}) for one in rows(4)]
    report = report_on(given, draws=50)
    assert report["metrics"]["no_number"]["value"] is None
    assert report["metrics"]["no_number"]["invalid"] == ["a/1"]
    assert report["metrics"]["wer"]["value"] is not None
    with pytest.raises(DataError, match=r"metric 'no_number' has no number \(NaN\) for the prediction 'a/1'"):
        score(given)
    write_predictions(tmp_path / "p.jsonl", given)
    code, out, err = call(capsys, "score", tmp_path / "p.jsonl")
    assert (code, err) == (1, "error: metric 'no_number' has no number (NaN) for the prediction 'a/1'\n")
    assert "no number" in out
    line = json.loads(given[0].line)
    lines = [json.dumps({**line, "duration": float("nan")}), json.dumps({**line, "text": 5}), "{", json.dumps(line)]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, lines[-1]]))
    code, _, err = call(capsys, "score", tmp_path / "bad.jsonl")
    assert code == 2
    for number, expected in enumerate(
        ["is no prediction: holds NaN, which is no number", "text: Input should be", "is no prediction"], 1
    ):
        assert f"bad.jsonl:{number}: {expected}" in err
    assert "bad.jsonl:5: has the key 'a/0' of line 4" in err
    assert "Traceback" not in err


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order, and keeps what is shown."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_score_writes_a_page_that_plays(tmp_path, capsys):
    soundfile.write(tmp_path / "x.wav", np.zeros(800), 16_000)
    sound = {"type": "audio", "path": str(tmp_path / "x.wav"), "start": 0.0, "end": 0.04}
    gone = {"type": "audio", "path": str(tmp_path / "gone.wav")}
    bad = rows(5, wrong=1.0)
    bad[0] = bad[0].model_copy(update={"text": "<b>&amp", "media": (sound, gone)})
    write_predictions(tmp_path / "p.jsonl", bad)
    out = tmp_path / "reports"
    assert call(capsys, "score", tmp_path / "p.jsonl", "--output-dir", out, "--worst", "5")[0] == 0
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "report.html"}
    page = Page()
    page.feed((out / "report.html").read_text())
    assert page.open == []
    assert [source[:22] for source in page.sources] == ["data:audio/flac;base64"]
    assert "audio cannot be played" in page.text
    assert "<b>&amp" in page.text
    values = json.loads((out / "report.json").read_text())["datasets"]["a"]["tasks"]["asr"]["metrics"]
    assert f"{100 * values['wer']['value']:.2f} %" in page.text
    assert "| a       | asr  | wer" in (out / "report.md").read_text()
    code, _, err = call(capsys, "score", tmp_path / "p.jsonl", "--output-dir", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "--overwrite" in err


def test_score_with_other_metrics(tmp_path, capsys):
    row = rows(1)[0].model_copy(update={"references": ("Mister Smith's colour",), "text": "mr smith is color"})
    write_predictions(tmp_path / "p.jsonl", [row])
    values = {}
    for name in ("basic", "whisper", "none"):
        _, out, _ = call(capsys, "score", tmp_path / "p.jsonl", "--json", "--normaliser", name)
        entry = json.loads(out)["metrics"]["wer"]
        values[name] = entry["value"]
        assert f"norm:{name}" in entry["signature"]
    assert values["whisper"] == 0 < values["basic"] <= values["none"]
    _, out, _ = call(
        capsys, "score", tmp_path / "p.jsonl", "--json", "--metric", "bleu:tokenize=char", "--metric", "chrf"
    )
    assert "tok:char" in json.loads(out)["metrics"]["bleu"]["signature"]
    for wrong, expected in {
        "blue": "provides the metric 'blue'; did you mean 'bleu'?",
        "bleu:tokenise=char": "tokenise",
        "bleu:char": "expected NAME or NAME:OPTION=VALUE",
    }.items():
        code, _, err = call(capsys, "score", tmp_path / "p.jsonl", "--metric", wrong)
        assert (code, err.count("\n")) == (2, 1)
        assert expected in err


def test_scoring_needs_no_torch(tmp_path):
    write_predictions(tmp_path / "p.jsonl", rows(5))
    code = (
        "import sys\nfrom speechlmm_train.cli import main\n"
        f"for argv in (['score', {str(tmp_path / 'p.jsonl')!r}], ['score', '--help'], ['compare', '--help']):\n"
        "    try: main(argv)\n"
        "    except SystemExit as exc: assert exc.code == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_alignment_by_hand():
    pieces = align("The cat, sat down.", "the bat sat right down -")
    assert as_text(pieces) == "the [-cat,-]{+bat+} sat {+right+} down"
    assert [piece.kind for piece in pieces] == ["equal", "substitute", "equal", "insert", "equal"]
    assert as_text(align("a b", "")) == "[-a-] [-b-]"
    assert as_text(align("", "c")) == "{+c+}"
    assert as_text(align("今天好", "今天很好")) == "今 天 {+很+} 好"


def test_rows_come_back_as_they_were(tmp_path):
    row = rows(1)[0].model_copy(
        update={"fields": {"a": [1, None]}, "text": "line\nfeed\u2028", "media": ({"type": "x"},)}
    )
    write_predictions(tmp_path / "p.jsonl", [row])
    assert read_predictions(tmp_path / "p.jsonl") == [row]
    odd = {"a": float("nan"), "b": np.arange(2), 3: (datetime.date(2020, 1, 2), np.float32(0.5)), "path": "a\udc80.wav"}
    assert as_json(odd) == {"a": None, "b": [0, 1], "3": ["2020-01-02", 0.5], "path": "a\udc80.wav"}
    named = row.model_copy(update={"media": (as_json(odd),)})
    write_predictions(tmp_path / "o.jsonl", [named])
    assert read_predictions(tmp_path / "o.jsonl") == [named]
    write_predictions(tmp_path / "e.jsonl", [])
    with pytest.raises(DataError, match="holds no prediction"):
        read_predictions(tmp_path / "e.jsonl")

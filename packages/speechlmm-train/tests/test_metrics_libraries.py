"""Metrics against the libraries' own command lines on the same files, and against their corpus values."""

import re
import subprocess
import sys
from types import SimpleNamespace

import jiwer
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text.rouge import rouge_score
from torchmetrics.functional.text.squad import squad

from speechlmm_core.interfaces.metric import Answer
from speechlmm_train.metrics.answers import ExactMatchConfig, TokenF1Config
from speechlmm_train.metrics.rouge import ROUGEConfig
from speechlmm_train.metrics.translation import BLEUConfig, ChrFConfig
from speechlmm_train.metrics.wer import CERConfig, WERConfig

REFERENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "It's 5.5 degrees (outside), isn't it?",
    "Nothing ventured, nothing gained!",
    "She sells sea shells by the sea shore",
]
SECOND = [
    "A fast brown fox leaps over a lazy dog.",
    "Outside it has 5.5 degrees, hasn't it?",
    "Who does not venture, does not gain.",
    "By the sea shore she sells shells of the sea",
]
ANSWERS = [
    "The quick brown fox jumped over a lazy dog.",
    "It is 5.5 degrees outside, isn't it?",
    "Nothing ventured nothing gained",
    "She sells shells by the sea",
]
CHINESE = ["今天天气很好。", "我喜欢吃 pizza 和苹果"]
CHINESE_ANSWERS = ["今天的天气好。", "我喜欢 pizza 和梨"]


def answers(references, texts, language=None):
    rows = [(r,) if isinstance(r, str) else tuple(r) for r in references]
    return [Answer(t, r, language=language) for r, t in zip(rows, texts, strict=True)]


def command(tmp_path, module, files, *arguments):
    """Runs a library's command line on files of lines."""
    named = []
    for name, lines in files.items():
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        named.append(str(path))
    argv = [sys.executable, "-m", module, *(named[int(a[1:])] if a.startswith("@") else a for a in arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120, encoding="utf-8")
    return done.stdout.strip()


@pytest.mark.parametrize(("metric", "flags"), [(WERConfig, ()), (CERConfig, ("--cer",))])
def test_error_rates_are_jiwers(tmp_path, metric, flags):
    printed = command(tmp_path, "jiwer.cli", {"r": REFERENCES, "h": ANSWERS}, "-r", "@0", "-h", "@1", *flags)
    found = metric(normaliser="none").compute(answers(REFERENCES, ANSWERS))
    assert str(found[metric().type]) == printed


@pytest.mark.parametrize(
    ("metric", "language", "flags"),
    [
        (BLEUConfig(), "en", ("-m", "bleu")),
        (BLEUConfig(lowercase=True), "de-DE", ("-m", "bleu", "-lc")),
        (BLEUConfig(), "zh", ("-m", "bleu", "-tok", "zh")),
        (BLEUConfig(), "th", ("-m", "bleu", "-tok", "char")),
        (ChrFConfig(), "en", ("-m", "chrf")),
        (ChrFConfig(word_order=2), "en", ("-m", "chrf", "--chrf-word-order", "2")),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bleu_and_chrf_are_sacrebleus(tmp_path, metric, language, flags):
    spaced = language not in ("zh", "th")
    first, texts = (REFERENCES, ANSWERS) if spaced else (CHINESE, CHINESE_ANSWERS)
    several = [SECOND] if spaced else []
    files = {"answers": texts, "first": first, **{f"further{i}": lines for i, lines in enumerate(several)}}
    references = [f"@{i + 1}" for i in range(len(files) - 1)]
    printed = command(tmp_path, "sacrebleu", files, *references, "-i", "@0", *flags, "-w", "12", "-f", "text")
    # `BLEU|nrefs:1|…|version:2.6.0 = 12.345678901234 50.0/…`; the answer's file is no part of the signature
    name, value = re.match(r"(\S+) = ([0-9.]+)", printed.replace("\n", " ")).groups()
    given = answers(list(zip(first, *several, strict=True)), texts, language)
    assert f"{metric.compute(given)[metric.type]:.12f}" == value
    assert f"{name.partition('|')[0]}|{metric.signature_for(given)}" == name


texts = st.lists(st.sampled_from(["a", "b", "cat", "dog,", "The", ".", "x"]), max_size=6).map(" ".join)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(texts, texts, texts),
        min_size=1,
        max_size=6,
    )
)
def test_summed_statistics_give_the_corpus_value(rows):
    said, first, second = (list(column) for column in zip(*rows, strict=True))
    given = answers(list(zip(first, second, strict=True)), said, "en")
    references = [first, second]
    for metric, reference in (
        (BLEUConfig(), sacrebleu.corpus_bleu(said, references, force=True)),
        (ChrFConfig(), sacrebleu.corpus_chrf(said, references)),
    ):
        assert metric.statistics(given).shape == (len(rows), len(metric.names))
        assert metric.compute(given)[metric.type] == reference.score
    exact, by_words = ExactMatchConfig().compute(given), TokenF1Config().compute(given)
    pairs = [{"prediction_text": text, "id": str(i)} for i, text in enumerate(said)]
    gold = [{"answers": {"answer_start": [0, 0], "text": [a, b]}, "id": str(i)} for i, (_, a, b) in enumerate(rows)]
    expected = squad(pairs, gold)
    assert exact["exact_match"] * 100 == pytest.approx(float(expected["exact_match"]), abs=1e-4)
    if all(WORDS.search(text) for row in rows for text in row):  # SQuAD 1.1 has no rule for an answer of no word
        assert by_words["token_f1"] * 100 == pytest.approx(float(expected["f1"]), abs=1e-4)
    rouge = ROUGEConfig().compute(given)
    found = rouge_score(said, [list(pair) for pair in zip(first, second, strict=True)], rouge_keys=ROUGE)
    assert [rouge[key] for key in ROUGE] == pytest.approx([float(found[f"{k}_fmeasure"]) for k in ROUGE], abs=1e-6)
    assert rouge["rouge"] == rouge["rougeL"]
    filled = [(r, t) for r, t in zip(first, said, strict=True) if r.strip()]
    if filled:
        given, (spoken, heard) = answers(*zip(*filled, strict=True)), zip(*filled, strict=True)
        measures = jiwer.process_words(list(spoken), list(heard))
        values = WERConfig(normaliser="none").compute(given)
        assert values["wer"] == measures.wer
        assert values["wer_words"] == measures.hits + measures.substitutions + measures.deletions


WORDS = re.compile(r"\b(?!(?:a|the)\b)[a-z]+\b", re.IGNORECASE)
ROUGE = ("rouge1", "rouge2", "rougeL")


def test_what_is_not_installed_is_named(monkeypatch):
    from speechlmm_core.errors import DataError, MissingDependencyError
    from speechlmm_train.metrics import comet, translation

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert comet.importlib.util.find_spec("comet") is translation.importlib.util.find_spec("MeCab") is None
    with pytest.raises(MissingDependencyError, match=r"ja-mecab.*sacrebleu\[ja\]"):
        BLEUConfig(tokenize="ja-mecab").compute(answers(["これ"], ["それ"], "ja"))
    for language in ("ja", "ko"):  # as it stands, nothing else is needed
        given = answers(["これは"], ["これが"], language)
        assert BLEUConfig().compute(given)["bleu_correct_1"] == 2
        assert "|tok:char|" in BLEUConfig().signature_for(given)
    with pytest.raises(MissingDependencyError, match="pip install unbabel-comet"):
        comet.COMETConfig().compute([Answer("b", ("c",), source="a")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(DataError, match="which 1 of 2 answers lack"):
        comet.COMETConfig().compute([Answer("b", ("c",), source="a"), Answer("b", ("c",))])


def test_comet_takes_the_best_reference_and_keeps_nan(monkeypatch):
    from speechlmm_train.metrics import comet

    class Model:
        def predict(self, data, batch_size, gpus):
            return SimpleNamespace(scores=[sum(float(row[key]) for key in ("ref", "mt", "src")) for row in data])

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(comet, "_load", lambda name: Model())
    given = [
        Answer("1", ("2", "5"), source="10"),
        Answer("1", ("nan", "2"), source="0"),
        Answer("3", ("0",), source="0"),
    ]
    table = comet.COMETConfig().statistics(given)
    assert table[[0, 2]].tolist() == [[16, 1], [3, 1]]
    assert table[1, 0] != table[1, 0]
    assert comet.COMETConfig().score(table[[0, 2]].sum(axis=0))["comet"] == 9.5


def test_words_of_other_languages():
    german = ROUGEConfig().compute([Answer("Größe über alles", ("größe über ALLES!",), language="de")])
    assert german["rouge"] == german["rouge2"] == 1
    chinese = ROUGEConfig().compute([Answer("今天好", ("今天很好",), language="zh")])
    assert chinese["rouge1"] == pytest.approx(2 * 3 / 7)
    exact = ExactMatchConfig()
    assert exact.compute([Answer("der Hund.", ("Hund",), language="de")])["exact_match"] == 1
    assert exact.compute([Answer("L'eau", ("eau",), language="fr")])["exact_match"] == 1
    assert exact.compute([Answer("the dog", ("dog",), language="de")])["exact_match"] == 0
    assert TokenF1Config().compute([Answer("北京市", ("北京",), language="zh")])["token_f1"] == pytest.approx(0.8)

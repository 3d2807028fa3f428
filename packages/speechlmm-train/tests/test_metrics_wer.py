"""Error rates against hand-made alignments and a naive edit distance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.interfaces.metric import Answer
from speechlmm_train.metrics.normalise import normalise, normaliser_for
from speechlmm_train.metrics.normalise import words as split_words
from speechlmm_train.metrics.wer import CERConfig, WERConfig


def distance(a, b):
    """Levenshtein distance, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def answers(references, hypotheses):
    return [Answer(h, (r,)) for r, h in zip(references, hypotheses, strict=True)]


def test_counts_by_hand():
    values = WERConfig().compute(answers(["the cat sat down", "go"], ["the bat sat", "go now now"]))
    assert values == {
        "wer": 4 / 5,
        "wer_words": 5,
        "wer_substitutions": 1,
        "wer_deletions": 1,
        "wer_insertions": 2,
    }


words = st.lists(st.sampled_from(["a", "bb", "c", "dog"]), max_size=6).map(" ".join)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_the_rate_is_all_errors_over_all_words(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    wrong = sum(distance(r.split(), h.split()) for r, h in pairs)
    total = sum(len(r.split()) for r in references)
    expected = wrong / total if total else float(wrong > 0)
    assert WERConfig().compute(answers(references, hypotheses))["wer"] == pytest.approx(expected)
    wrong = sum(distance(r, h) for r, h in pairs)
    total = sum(len(r) for r in references)
    expected = wrong / total if total else float(wrong > 0)
    assert CERConfig().compute(answers(references, hypotheses))["cer"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "hello world"),
        ("don\u2019t 'quote' rock'n'roll", "don't quote rock'n'roll"),
        ("Größe_x", "grösse x"),
        ("ﬁne", "fine"),
        ("…", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalise(text) == expected


def test_normalisation_can_be_left_out():
    assert WERConfig(normaliser="none").compute(answers(["A b"], ["a b"]))["wer"] == 0.5
    assert WERConfig().compute(answers(["A b."], ["a b"]))["wer"] == 0


def test_marks_are_letters_and_scripts_without_spaces_are_split():
    assert normalise("हिन्दी, में!") == "हिन्दी में"
    assert split_words("我喜欢 pizza和 iPhone15") == "我 喜 欢 pizza 和 iPhone15"
    assert split_words("ที่นี่ ok") == "ที่ นี่ ok"
    assert split_words("한국어 좋아") == "한국어 좋아"
    zh = [Answer("我喜欢吃 pizza", ("我不喜欢 pizza",), language="zh")]
    values = WERConfig().compute(zh)
    assert (values["wer_words"], values["wer_deletions"] + values["wer_insertions"], values["wer"]) == (5, 2, 0.4)
    assert CERConfig().compute([Answer("今 天 好", ("今天好",), language="zh")])["cer"] == 0


def test_whisper_normalisers_by_language():
    english = Answer("Mister Colour, you'll pay $20", ("mr color you will pay twenty dollars",), language="en-GB")
    assert WERConfig(normaliser="whisper").compute([english])["wer"] == 0
    assert WERConfig().compute([english])["wer"] > 0
    assert normaliser_for("whisper", "de")("Größe (äh), ja!") == "größe ja"
    assert normaliser_for("whisper", "ja")("これは") == "こ れ は"
    assert "norm:whisper|jiwer:4" in WERConfig(normaliser="whisper").signature


def test_the_nearest_of_several_references_counts():
    given = [Answer("a b", ("x y z", "a b c")), Answer("q", ("q r", "q"))]
    assert WERConfig().compute(given) == pytest.approx(
        {"wer": 1 / 4, "wer_words": 4, "wer_substitutions": 0, "wer_deletions": 1, "wer_insertions": 0}
    )

"""Corpora of translated speech and text, made in their public layouts: MuST-C, Europarl-ST, parallel text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from speechlmm_core.errors import DataError

TALKS = {
    "ted_1": [(0.25, 0.5, "Thank you.", "Danke."), (1.0, 0.25, "It's: fine # really", "Es ist gut.")],
    "ted_2": [(0.0, 1.5, "Good morning.", "Guten Morgen.")],
}


def make_must_c(made: Any, target: str = "de", partition: str = "tst-COMMON") -> None:
    segments, sources, targets = [], [], []
    folder = f"en-{target}/data/{partition}"
    for talk, parts in TALKS.items():
        made.audio(f"{folder}/wav/{talk}.wav", 2.0)
        for offset, duration, source, translation in parts:
            segments.append(
                f"- {{duration: {duration:f}, offset: {offset:f}, rW: 2, uW: 0, "
                f"speaker_id: spk.{talk[-1]}, wav: {talk}.wav}}\n"
            )
            sources.append(f"{source}\n")
            targets.append(f"{translation}\n")
    made.text(f"{folder}/txt/{partition}.yaml", "".join(segments))
    made.text(f"{folder}/txt/{partition}.en", "".join(sources))
    made.text(f"{folder}/txt/{partition}.{target}", "".join(targets))


def test_must_c(made: Any, heard: Any) -> None:
    make_must_c(made)
    make_must_c(made, "it", "dev")
    (part,) = made.parts("MuST-C", task="st", partitions=["tst-COMMON"], languages=["en-de"]).values()
    found = list(part.examples)
    expected = [(talk, *row) for talk, rows in TALKS.items() for row in rows]
    assert part.destination == "test"
    assert len({example.id for example in found}) == len(expected)
    for example, (talk, offset, duration, source, target) in zip(found, expected, strict=True):
        assert (example.transcript, example.text, example.speaker) == (source, target, f"spk.{talk[-1]}")
        assert (example.source_language, example.target_language) == ("en", "de")
        assert (example.media["audio"]["start"], example.media["audio"]["end"]) == (offset, offset + duration)
        assert example.media["audio"]["path"].endswith(f"{talk}.wav")
        assert heard(example) == duration * 16_000
    spoken = made.examples("must_c", task="asr", partitions=["dev"], languages=["en-it"])
    assert [(e.text, e.source_language) for e in spoken] == [(row[3], "en") for row in expected]
    written = made.examples("must_c", task="mt", languages="all", partitions=["tst-COMMON"])
    assert [(e.source_text, e.text, e.target_language) for e in written] == [(r[3], r[4], "de") for r in expected]


def test_a_recording_is_not_read_once_for_each_translation(made: Any) -> None:
    make_must_c(made, "de", "dev")
    make_must_c(made, "it", "dev")
    with pytest.raises(DataError, match=r"the same recordings are in en-de, en-it; name one of them under `languages`"):
        made.parts("must_c", task="asr", languages=["en"])
    assert len(made.examples("must_c", task="st", languages=["en"])) == 6


def test_segments_in_any_yaml(made: Any) -> None:
    make_must_c(made, partition="dev")
    path = made.root / "en-de/data/dev/txt/dev.yaml"
    lines = path.read_text().splitlines()
    lines[0] = '- {"wav": "ted_1.wav", "offset": 0.25, "duration": 5e-1, "rW": [2]}'
    path.write_text("\n".join(lines) + "\n")
    first, second, _ = made.examples("must_c", task="st", languages=["en-de"])
    assert (first.media["audio"]["start"], first.media["audio"]["end"], first.speaker) == (0.25, 0.75, None)
    assert (second.media["audio"]["start"], second.media["audio"]["end"], second.speaker) == (1.0, 1.25, "spk.1")


BOMB = "- {offset: 0, duration: 1, x: [&a [1], &b [*a,*a,*a,*a], &c [*b,*b,*b,*b], &d [*c,*c,*c,*c]], wav: *d}"


@pytest.mark.parametrize(
    "line", ["- {wav: a.wav, offset: nan, duration: 1.0}", "- {wav: a.wav, offset: x, duration: 1}", BOMB, "[" * 9_999]
)
def test_a_segment_that_is_none_is_left_out_and_named(made: Any, line: str) -> None:
    make_must_c(made, partition="dev")
    path = made.root / "en-de/data/dev/txt/dev.yaml"
    path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]) + "\n")
    (part,) = made.parts("must_c", task="st", languages=["en-de"]).values()
    assert (len(part.examples), dict(part.dropped)) == (2, {"unusable record": 1})
    with pytest.raises(DataError, match=r"dev\.yaml:1: expected ") as caught:
        part.examples.whole.example(0)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"files": ["../{partition}.yaml"]}, "must lie below the corpus' `path`"),
        ({"files": ["a\0b"]}, "files[0]: "),
        ({"files": []}, "files: "),
        ({"path": "a\0b"}, "path: "),
        ({"path": "~nobody-of-that-name/x"}, "there is no such user"),
        ({"texts": {"source": "{folder}/{language}"}}, "`texts` '{folder}/{language}': there is no {language}"),
        ({"audio": "{folder}/{wave}"}, "there is no {wave}; did you mean 'wav'?"),
        ({"format": "csv"}, "format"),
    ],
)
def test_a_wrong_field_is_one_line(made: Any, entry: dict[str, Any], expected: str) -> None:
    make_must_c(made)
    with pytest.raises(DataError, match=re.escape(expected)):
        made.parts("must_c", task="asr", languages=["en-de"], **entry)


def test_what_is_wrong_with_must_c_is_one_line(made: Any) -> None:
    make_must_c(made)
    with pytest.raises(DataError, match=r"no target language 'fr' \(there are: de\)"):
        made.parts("must_c", task="st", partitions=["tst-COMMON"], languages=["en-fr"])
    made.text("en-de/data/tst-COMMON/txt/tst-COMMON.de", "Danke.\n")
    with pytest.raises(DataError, match=r"tst-COMMON.yaml' has 3 lines and '.*tst-COMMON.de' has 1"):
        made.parts("must_c", task="st", languages=["en-de"])
    (made.root / "en-de/data/tst-COMMON/txt/tst-COMMON.de").unlink()
    with pytest.raises(DataError, match=r"tst-COMMON.de' does not exist; is the corpus unpacked completely\?"):
        made.parts("must_c", task="st", languages=["en-de"])
    make_must_c(made)
    path = made.root / "en-de/data/tst-COMMON/txt/tst-COMMON.yaml"
    path.write_text(path.read_text().replace("wav: ted_2.wav", "file: ted_2.wav"))
    (part,) = made.parts("must_c", task="st", languages=["en-de"]).values()
    assert dict(part.dropped) == {"unusable record": 1}


@pytest.mark.parametrize(("top", "extension"), [("", "wav"), ("v1.1/", "m4a")])
def test_europarl_st(made: Any, heard: Any, top: str, extension: str) -> None:
    speech = "en.20080924.31.3-243"
    made.audio(f"{top}en/audios/{speech}.{extension}", 3.0)
    made.text(f"{top}en/de/dev/segments.lst", f"{speech} 0.00 1.25\n{speech} 1.25 2.75\n")
    made.text(f"{top}en/de/dev/segments.en", "Madam President,\nthank you.\n")
    made.text(f"{top}en/de/dev/segments.de", "Frau Präsidentin,\nvielen Dank.\n")
    found = made.examples("Europarl", task="ST", languages=["en-de"])
    assert [(e.transcript, e.text, e.source_language, e.target_language, heard(e)) for e in found] == [
        ("Madam President,", "Frau Präsidentin,", "en", "de", 20_000),
        ("thank you.", "vielen Dank.", "en", "de", 24_000),
    ]
    assert [e.text for e in made.examples("europarl_st", task="asr", languages=["en"])] == [
        "Madam President,",
        "thank you.",
    ]
    assert [e.target_language for e in made.examples("europarl_st", task="st", languages="all")] == ["de", "de"]
    (first, _) = made.examples("europarl_st", task="mt", languages=["en-de"])
    assert (first.source_text, first.text) == ("Madam President,", "Frau Präsidentin,")
    made.text(f"{top}en/de/dev/segments.lst", f"{speech} 0.00\n{speech} 1.25 2.75\n")
    (part,) = made.parts("europarl_st", task="st", languages=["en-de"]).values()
    assert dict(part.dropped) == {"unusable record": 1}


def test_parallel_text_in_both_directions(made: Any) -> None:
    made.text("WikiMatrix.de-en.de", "Der Hund.\nDie Katze.\n")
    made.text("WikiMatrix.de-en.en", "The dog.\nThe cat.\n")
    made.text("Tatoeba.en-fr.en", "Yes.\n")
    made.text("Tatoeba.en-fr.fr", "Oui.\n")
    for pair, sources, targets in (
        ("de-en", ["Der Hund.", "Die Katze."], ["The dog.", "The cat."]),
        ("en-de", ["The dog.", "The cat."], ["Der Hund.", "Die Katze."]),
        ("fr-en", ["Oui."], ["Yes."]),
    ):
        found = made.examples("OPUS", task="mt", languages=[pair])
        assert [e.source_text for e in found] == sources
        assert [e.text for e in found] == targets
        assert {f"{e.source_language}-{e.target_language}" for e in found} == {pair}
    assert [e.text for e in made.examples("parallel_text", task="ntp", languages=["de"])] == ["Der Hund.", "Die Katze."]
    assert len(made.examples("parallel_text", task="mt")) == 3
    with pytest.raises(DataError, match=r"no target language 'it'"):
        made.parts("parallel_text", task="mt", languages=["en-it"])


def test_parallel_tables(made: Any) -> None:
    made.text("WikiMatrix.de-en.tsv", "1.25\tDer Hund.\tThe dog.\n1.05\tDie Katze.\tThe cat.\n")
    found = made.examples("WikiMatrix", task="mt", languages=["en-de"])
    assert [(e.source_text, e.text, e.quality, e.source_language) for e in found] == [
        ("The dog.", "Der Hund.", 1.25, "en"),
        ("The cat.", "Die Katze.", 1.05, "en"),
    ]
    (part,) = made.parts("parallel_table", task="mt", languages=["de-en"], min_quality=1.1).values()
    assert [e.text for e in part.examples] == ["The dog."]
    assert dict(part.dropped) == {"quality below 1.1": 1}
    assert [e.text for e in made.examples("parallel_table", task="ntp", languages=["de"])] == [
        "Der Hund.",
        "Die Katze.",
    ]
    made.text("en-fr.tsv", "Yes.\tOui.\n")
    two = {"files": ["{source_language}-{target_language}.tsv"], "table": ["source", "target"]}
    (pair,) = made.examples("ParaCrawl", task="mt", languages=["en-fr"], columns={"quality": None}, **two)
    assert (pair.source_text, pair.text, pair.quality) == ("Yes.", "Oui.", None)
    made.text("en-fr.tsv", "Yes.\tOui.\nNo.\n")
    (part,) = made.parts("ParaCrawl", task="mt", languages=["en-fr"], columns={"quality": None}, **two).values()
    assert dict(part.dropped) == {"unusable record": 1}

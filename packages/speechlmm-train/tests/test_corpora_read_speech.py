"""Corpora of read speech, made in their public layouts: LibriSpeech, LibriTTS, LibriTTS-R, MLS, FLEURS."""

from __future__ import annotations

from typing import Any

import pytest

from speechlmm_core.errors import DataError, MediaError

UTTERANCES = {
    "dev-clean": {
        "84-121-0000": ("A QUIET MORNING", 0.5),
        "84-121-0001": ("NOTHING STIRRED", 0.75),
        "174-50561-0000": ("HE SPOKE", 0.25),
    },
    "train-clean-100": {"19-198-0000": ("NORTHANGER ABBEY", 1.0)},
}


def make_librispeech(made: Any, *, top: str = "") -> None:
    for partition, utterances in UTTERANCES.items():
        for name, (text, seconds) in utterances.items():
            speaker, chapter, _ = name.split("-")
            folder = f"{top}{partition}/{speaker}/{chapter}"
            path = made.root / f"{folder}/{speaker}-{chapter}.trans.txt"
            before = path.read_text() if path.exists() else ""
            made.text(f"{folder}/{speaker}-{chapter}.trans.txt", f"{before}{name} {text}\n")
            made.audio(f"{folder}/{name}.flac", seconds)


@pytest.mark.parametrize("top", ["", "LibriSpeech/"])
def test_librispeech(made: Any, heard: Any, top: str) -> None:
    make_librispeech(made, top=top)
    parts = made.parts("librispeech", task="asr")
    assert {name: (part.destination, len(part.examples)) for name, part in parts.items()} == {
        "dev-clean/en": ("eval", 3),
        "train-clean-100/en": ("train", 1),
    }
    found = {example.id: example for part in parts.values() for example in part.examples}
    expected = {name: value for utterances in UTTERANCES.values() for name, value in utterances.items()}
    assert found.keys() == expected.keys()
    for name, (text, seconds) in expected.items():
        example = found[name]
        assert (example.text, example.speaker, example.source_language) == (text, name.split("-")[0], "en")
        assert heard(example) == round(seconds * 16_000)


def test_librispeech_as_plain_text(made: Any) -> None:
    make_librispeech(made)
    examples = made.examples("Libri", task="NTP", partitions="train-clean-100")
    assert [(example.text, dict(example.media)) for example in examples] == [("NORTHANGER ABBEY", {})]


def test_what_is_wrong_with_librispeech_is_one_line(made: Any, heard: Any) -> None:
    with pytest.raises(DataError, match=r"holds no .*trans.txt.*; set `path`"):
        made.parts("librispeech", task="asr")
    make_librispeech(made)
    with pytest.raises(DataError, match=r"no partition 'dev-cleen'; did you mean 'dev-clean'\?"):
        made.parts("librispeech", task="asr", partitions=["dev-cleen"])
    with pytest.raises(DataError, match=r"no folder '.*nowhere'; set `path`"):
        made.parts("librispeech", task="asr", path="nowhere")
    (made.root / "train-clean-100/19/198/19-198-0000.flac").unlink()
    example = made.examples("librispeech", task="asr", partitions=["train-clean-100"])[0]
    with pytest.raises(MediaError, match=r"19-198-0000\.flac") as caught:
        heard(example)
    assert "\n" not in str(caught.value)
    made.text("dev-clean/84/121/84-121.trans.txt", "84-121-0000 FINE\n84-121-0001\n84_121 NO PARTS\n")
    with pytest.raises(DataError) as caught:
        made.parts("librispeech", task="asr", partitions=["dev-clean"])
    assert "84-121.trans.txt:2: expected the name of an utterance" in str(caught.value)
    assert "84-121.trans.txt:3: expected a name of the form <speaker>-<chapter>-<utterance>, got '84_121'" in str(
        caught.value
    )


@pytest.mark.parametrize(("preset", "top"), [("libritts", "LibriTTS"), ("LibriTTS-R", "LibriTTS_R")])
def test_libritts(made: Any, heard: Any, preset: str, top: str) -> None:
    texts = {"19_198_000000_000000": ("It was dear.", 0.5), "19_198_000001_000002": ("Mister Tilney said so.", 0.25)}
    for name, (text, seconds) in texts.items():
        made.text(f"{top}/train-clean-100/19/198/{name}.normalized.txt", text)
        made.text(f"{top}/train-clean-100/19/198/{name}.original.txt", text.replace("Mister", "Mr."))
        made.audio(f"{top}/train-clean-100/19/198/{name}.wav", seconds, rate=24_000)
    examples = made.examples(preset, task="asr", partitions="train-clean-100")
    assert [(e.id, e.text, e.speaker, heard(e)) for e in examples] == [
        (name, text, "19", round(seconds * 16_000)) for name, (text, seconds) in texts.items()
    ]
    printed = made.examples(preset, task="asr", path=f"corpus/{top}", files=["{partition}/*/*/*.original.txt"])
    assert [example.text for example in printed] == ["It was dear.", "Mr. Tilney said so."]
    assert [e.text for e in made.examples(preset, task="ntp")] == [text for text, _ in texts.values()]


MLS = {
    ("german", "train", "flac"): {"4800_10003_000000": ("ich werde gehen", 0.5)},
    ("german", "dev", "flac"): {"252_1643_000001": ("das war gut", 0.25)},
    ("polish_opus", "dev", "opus"): {"6892_10049_000000": ("było ciemno", 0.75)},
}


def test_mls(made: Any, heard: Any) -> None:
    for (folder, partition, extension), utterances in MLS.items():
        lines = [f"{name}\t{text}\n" for name, (text, _) in utterances.items()]
        made.text(f"mls_{folder}/{partition}/transcripts.txt", "".join(lines))
        for name, (_, seconds) in utterances.items():
            speaker, book, _ = name.split("_")
            made.audio(f"mls_{folder}/{partition}/audio/{speaker}/{book}/{name}.{extension}", seconds)
    (dev,) = made.parts("mls", task="asr", partitions=["dev"], languages=["de"]).values()
    (example,) = dev.examples
    assert (example.id, example.text, example.speaker, example.source_language) == (
        "252_1643_000001",
        "das war gut",
        "252",
        "de",
    )
    assert heard(example) == 4_000
    (plain,) = made.examples("mls", task="ntp", partitions=["train"], languages=["de"])
    assert (plain.text, dict(plain.media)) == ("ich werde gehen", {})
    everything = made.examples("MLS", task="asr", languages="all")
    assert [(e.id, e.source_language) for e in everything] == [
        ("252_1643_000001", "de"),
        ("6892_10049_000000", "pl"),
        ("4800_10003_000000", "de"),
    ]
    assert abs(heard(everything[1]) - 12_000) <= 1
    with pytest.raises(DataError, match=r"no source language 'fr' \(there are: de, pl\)"):
        made.parts("mls", task="asr", partitions=["dev"], languages=["fr"])
    with pytest.raises(DataError, match=r"no .*transcripts.txt for partition 'train', source_language 'pl' together"):
        made.parts("mls", task="asr", partitions=["train"], languages=["pl"])


FLEURS = {
    "en_us": [
        (1509, "10001.wav", "It's a dog, I think.", "it's a dog i think", 0.5, "MALE"),
        (1509, "10002.wav", "It's a dog, I think.", "it's a dog i think", 0.25, "FEMALE"),
        (7, "10003.wav", "Nobody else read this.", "nobody else read this", 0.25, "MALE"),
    ],
    "de_de": [(1509, "20001.wav", "Es ist ein Hund.", "es ist ein hund", 0.75, "FEMALE")],
}


@pytest.mark.parametrize("top", ["", "data/"])
def test_fleurs(made: Any, heard: Any, top: str) -> None:
    for language, rows in FLEURS.items():
        lines = []
        for number, file, raw, text, seconds, gender in rows:
            lines.append(f"{number}\t{file}\t{raw}\t{text}\t{' '.join(text)} |\t{round(seconds * 16000)}\t{gender}\n")
            made.audio(f"{top}{language}/audio/dev/{file}", seconds)
        made.text(f"{top}{language}/dev.tsv", "".join(lines))
    english = made.examples("fleurs", task="asr", languages=["en"])
    assert [(e.id, e.text, e.source_language, e.fields["gender"], heard(e)) for e in english] == [
        (file[:-4], text, "en", gender, round(seconds * 16_000))
        for _, file, _, text, seconds, gender in FLEURS["en_us"]
    ]
    pairs = made.parts("fleurs", task="st", languages=["en-de", "de-en"])
    assert [
        (e.id, e.transcript, e.text, e.source_language, e.target_language) for e in pairs["dev/en-de"].examples
    ] == [
        ("10001", "It's a dog, I think.", "Es ist ein Hund.", "en", "de"),
        ("10002", "It's a dog, I think.", "Es ist ein Hund.", "en", "de"),
    ]
    assert [(e.id, e.text) for e in pairs["dev/de-en"].examples] == [("20001", "It's a dog, I think.")]
    (text,) = made.examples("fleurs", task="mt", languages=["de-en"])
    assert (text.source_text, text.text, dict(text.media)) == ("Es ist ein Hund.", "It's a dog, I think.", {})
    assert {e.source_language for e in made.examples("fleurs", task="asr", languages="all")} == {"de", "en"}
    for languages in ("all", ["en"]):
        with pytest.raises(DataError, match=r"languages that are there \(de, en\) are a pair; name those you want"):
            made.parts("fleurs", task="st", languages=languages)
    with pytest.raises(DataError, match=r"no source language 'fr' \(there are: de, en\)"):
        made.parts("fleurs", task="st", languages=["en-fr"])
    made.text(f"{top}en_us/dev.tsv", "1509\t10001.wav\tshort\n")
    with pytest.raises(DataError, match=r"dev.tsv:1: expected 7 columns between tabs, got 3"):
        made.parts("fleurs", task="asr", languages=["en"])

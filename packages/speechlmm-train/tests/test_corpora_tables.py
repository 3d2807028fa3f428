"""Corpora in tables, made in their public layouts: Common Voice, CoVoST 2, CVSS, VoxPopuli, Alpaca, Dolly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from speechlmm_core.errors import DataError, MediaError

CLIPS = {
    "common_voice_de_1.mp3": ('Er sagte: "Nein".', 'He said: "No".', "speaker1", 0.5),
    "common_voice_de_2.mp3": ("Guten Tag.", "Good day.", "speaker2", 1.0),
}


def make_clips(made: Any) -> None:
    for name, (*_, seconds) in CLIPS.items():
        made.audio(f"de/clips/{name}", seconds, rate=48_000)


def near(samples: int, seconds: float) -> bool:
    """Whether a clip has its length, but for the padding of MP3."""
    return 0 <= samples - seconds * 16_000 <= 0.1 * 16_000


def test_common_voice(made: Any, heard: Any) -> None:
    make_clips(made)
    made.audio("zh-CN/clips/common_voice_zh-CN_9.mp3", 0.5)
    head = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment\n"
    row = "{speaker}\t{path}\t{text}\t2\t0\t\t\t\t{locale}\t\n"
    rows = [row.format(speaker=s, path=p, text=t, locale="de") for p, (t, _, s, _) in CLIPS.items()]
    for partition, part in {"train": rows[:1], "dev": rows[1:], "test": rows[1:], "validated": rows}.items():
        made.text(f"de/{partition}.tsv", head + "".join(part))
    made.text("de/reported.tsv", "sentence_id\tsentence\tlocale\treason\n1\tx\tde\ty\n")
    chinese_row = row.format(speaker="s9", path="common_voice_zh-CN_9.mp3", text="你好", locale="zh-CN")
    made.text("zh-CN/dev.tsv", head + chinese_row)
    parts = made.parts("CommonVoice", task="ASR", languages=["de"])
    assert {name: (part.destination, len(part.examples)) for name, part in parts.items()} == {
        "train/de": ("train", 1),
        "dev/de": ("eval", 1),
        "test/de": ("test", 1),
    }
    example = parts["train/de"].examples[0]
    assert (example.id, example.text, example.speaker, example.source_language) == (
        "common_voice_de_1.mp3",
        'Er sagte: "Nein".',
        "speaker1",
        "de",
    )
    assert near(heard(example), 0.5)
    assert len(made.examples("common_voice", task="asr", languages=["de"], partitions=["validated"])) == 2
    (chinese,) = made.examples("common_voice", task="asr", languages=["zh"], partitions=["dev"])
    assert (chinese.text, chinese.source_language, near(heard(chinese), 0.5)) == ("你好", "zh", True)
    (plain,) = made.examples("common_voice", task="ntp", languages=["de"], partitions=["dev"])
    assert (plain.text, dict(plain.media)) == ("Guten Tag.", {})
    with pytest.raises(DataError, match=r"no partition 'tests'; did you mean 'test'\?"):
        made.parts("common_voice", task="asr", languages=["de"], partitions=["tests"])
    (made.root / "de/clips/common_voice_de_1.mp3").unlink()
    with pytest.raises(MediaError, match=r"common_voice_de_1\.mp3") as caught:
        heard(example)
    assert "\n" not in str(caught.value)


def test_covost2(made: Any, heard: Any) -> None:
    make_clips(made)
    rows = [f"{path}\t{text}\t{english}\t{speaker}\n" for path, (text, english, speaker, _) in CLIPS.items()]
    made.text("de/covost_v2.de_en.dev.tsv", "path\tsentence\ttranslation\tclient_id\n" + "".join(rows))
    made.text("de/covost_v2.de_en.train.tsv", "path\tsentence\ttranslation\tclient_id\n" + rows[0])
    made.text("de/covost_v2.de_en.tsv", "path\ttranslation\tsplit\n")  # what the split was made of is no partition
    made.text("en/covost_v2.en_zh-CN.dev.tsv", "path\tsentence\ttranslation\tclient_id\nc.mp3\tHi\t你好\ts\n")
    parts = made.parts("CoVoST", task="ST", languages=["de-en"])
    assert [(name, part.destination) for name, part in parts.items()] == [
        ("dev/de-en", "eval"),
        ("train/de-en", "train"),
    ]
    found = parts["dev/de-en"].examples
    assert [(e.id, e.transcript, e.text, e.speaker, e.source_language, e.target_language) for e in found] == [
        (path, text, english, speaker, "de", "en") for path, (text, english, speaker, _) in CLIPS.items()
    ]
    for example, (*_, seconds) in zip(parts["dev/de-en"].examples, CLIPS.values(), strict=True):
        assert near(heard(example), seconds)
    spoken = made.examples("covost2", task="asr", languages=["de-en"], partitions=["dev"])
    assert [(e.text, near(heard(e), 1.0)) for e in spoken][1:] == [("Guten Tag.", True)]
    (written,) = made.examples("covost2", task="mt", languages=["en-zh"], partitions=["dev"])
    assert (written.source_text, written.text, written.target_language) == ("Hi", "你好", "zh")
    everything = made.parts("covost2", task="mt", languages="all", partitions=["dev"])
    assert {(e.source_language, e.target_language) for part in everything.values() for e in part.examples} == {
        ("de", "en"),
        ("en", "zh"),
    }
    made.text("en/covost_v2.en_de.dev.tsv", "path\tsentence\ttranslation\tclient_id\nc.mp3\tHi\tHallo\ts\n")
    for languages in ("en", "all"):
        with pytest.raises(DataError, match=r"recordings are in en-de, en-zh; name one of them under `languages`"):
            made.parts("covost2", task="asr", languages=languages, partitions=["dev"])
    for task in ("st", "mt"):
        both = made.examples("covost2", task=task, languages="en", partitions=["dev"])
        assert [(e.id, e.text, e.target_language) for e in both] == [("c.mp3", "Hallo", "de"), ("c.mp3", "你好", "zh")]
    with pytest.raises(DataError, match=r"no partition 'test' \(there are: dev, train\)"):
        made.parts("covost2", task="st", languages=["de-en"], partitions=["test"])
    with pytest.raises(DataError, match=r"no file fits"):
        made.parts("covost2", task="st", languages=["fr-en"], partitions=["dev"])


def test_cvss(made: Any, heard: Any) -> None:
    make_clips(made)
    made.text("de-en/dev.tsv", "".join(f"{path}\t{english}\n" for path, (_, english, *_) in CLIPS.items()))
    for at, path in enumerate(CLIPS):
        made.audio(f"de-en/dev/{path}.wav", 0.25 + at, rate=24_000)
    english = made.examples("CVSS", task="asr")
    assert [(e.id, e.text, e.source_language, heard(e)) for e in english] == [
        ("common_voice_de_1.mp3", 'He said: "No".', "en", 4_000),
        ("common_voice_de_2.mp3", "Good day.", "en", 20_000),
    ]
    translated = made.examples("cvss", task="st", languages=["de-en"])
    for example, (_, english_text, _, seconds) in zip(translated, CLIPS.values(), strict=True):
        assert (example.text, example.source_language, example.target_language) == (english_text, "de", "en")
        assert near(heard(example), seconds)
    assert [e.id for e in made.examples("cvss", task="st", languages="all")] == [e.id for e in translated]


@pytest.mark.parametrize("top", ["transcribed_data/", ""])
def test_voxpopuli(made: Any, heard: Any, top: str) -> None:
    name = "20180613-0900-PLENARY-10-en_20180613-11:05:23_0"
    made.text(
        f"{top}en/asr_test.tsv",
        "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\n"
        f"{name}\tMr. President, 5 years\tmr president five years\t96901\ttest\tmale\n",
    )
    made.audio(f"{top}en/2018/{name}.ogg", 0.5)
    (example,) = made.examples("VoxPopuli", task="asr", languages=["en"])
    assert (example.id, example.text, example.speaker, example.fields) == (
        name,
        "mr president five years",
        "96901",
        {"gender": "male"},
    )
    assert (example.source_language, heard(example)) == ("en", 8_000)
    (raw,) = made.examples("voxpopuli", task="ntp", languages=["en"], columns={"text": "raw_text"})
    assert raw.text == "Mr. President, 5 years"


def test_alpaca(made: Any) -> None:
    rows = [
        {"instruction": "Sort these.", "input": "3, 1", "output": "1, 3"},
        {"instruction": "Greet me.", "input": "", "output": "Hello!\n\nNice to see you."},
    ]
    made.text("alpaca_data.json", json.dumps(rows))
    found = made.examples("Alpaca", task="TextInstruct")
    assert [(e.instruction, e.source_text or "", e.text, e.source_language) for e in found] == [
        (row["instruction"], row["input"], row["output"], "en") for row in rows
    ]


def test_dolly(made: Any) -> None:
    rows = [
        {"instruction": "Where?", "context": "In Rome.", "response": "Rome", "category": "closed_qa"},
        {"instruction": "Name a fish.", "context": "", "response": "Tuna", "category": "open_qa"},
    ]
    made.text("databricks-dolly-15k.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = made.examples("Dolly15k", task="TextInstruct")
    assert [(e.instruction, e.source_text or "", e.text, e.fields["category"]) for e in found] == [
        tuple(row.values()) for row in rows
    ]
    (chosen,) = made.examples("dolly", where={"category": "open_qa"})
    assert chosen.text == "Tuna"
    with pytest.raises(DataError, match=r"alpaca_data\.json"):
        made.parts("alpaca")

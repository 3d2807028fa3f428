"""Corpora that presets read are those that lhotse's recipes read: names, texts, speakers and seconds are the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import yaml

from speechlmm_core.data.example import Example
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec

Row = tuple[str, str | None, str | None, float, float]
MEETING = "ES2011a"
ROOT = '<?xml version="1.0" encoding="ISO-8859-1"?>\n<nite:root xmlns:nite="http://nite.sourceforge.net/">\n'


def audio(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, 0.1 * np.sin(np.arange(round(seconds * 16_000)) * 0.05), 16_000)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def ours(root: Path, preset: str, **entry: Any) -> list[Example]:
    spec = root.parent / "spec.yaml"
    spec.write_text(yaml.safe_dump({"datasets": [{"preset": preset, "path": str(root), **entry}]}))
    return [example for part in open_spec(read_spec(spec), base=root) for example in part.examples]


def row(example: Example) -> Row:
    """Where an example is heard, what is said, by whom, and from when to when."""
    item = example.media["audio"]
    start = float(item.get("start", 0.0))
    end = float(item["end"]) if "end" in item else sf.info(item["path"]).duration
    return Path(item["path"]).name, example.text, example.speaker, start, end


def theirs(recordings: Any, supervisions: Any) -> list[Row]:
    sources = {one.id: Path(one.sources[0].source).name for one in recordings}
    return [
        (sources[one.recording_id], one.text, one.speaker, float(one.start), float(one.end)) for one in supervisions
    ]


def test_librispeech(tmp_path: Path) -> None:
    from lhotse.recipes import prepare_librispeech

    root = tmp_path / "LibriSpeech"
    for speaker, chapter, lines in (("84", "121", ["ONE TWO", "THREE"]), ("174", "5056", ["FOUR FIVE SIX"])):
        folder = root / "dev-clean" / speaker / chapter
        names = [f"{speaker}-{chapter}-{number:04d}" for number in range(len(lines))]
        for number, name in enumerate(names):
            audio(folder / f"{name}.flac", 0.5 + number / 4)
        listed = "".join(f"{name} {line}\n" for name, line in zip(names, lines, strict=True))
        text(folder / f"{speaker}-{chapter}.trans.txt", listed)
    found = prepare_librispeech(root, dataset_parts=["dev-clean"])["dev-clean"]
    examples = ours(root, "librispeech", task="asr")
    assert sorted(map(row, examples)) == sorted(theirs(**found))
    assert {example.id for example in examples} == {one.id for one in found["supervisions"]}


def test_libritts(tmp_path: Path) -> None:
    from lhotse.recipes import prepare_libritts

    root = tmp_path / "LibriTTS"
    text(root / "SPEAKERS.txt", "; ID | SEX | SUBSET | MINUTES | NAME\n19 | F | dev-clean | 25.0 | Someone\n")
    folder = root / "dev-clean/19/198"
    book = ""
    for number, line in enumerate(("Mister Tilney spoke.", "It was late.")):
        name = f"19_198_000000_{number:06d}"
        audio(folder / f"{name}.wav", 0.5 + number / 4)
        text(folder / f"{name}.normalized.txt", line)
        text(folder / f"{name}.original.txt", line.replace("Mister", "Mr."))
        book += f"{name}\t{line.replace('Mister', 'Mr.')}\t{line}\n"
    text(folder / "19_198.trans.tsv", book)
    text(folder / "19_198.book.tsv", "".join(f"{line}\t20.0\n" for line in book.splitlines()))
    found = prepare_libritts(root, dataset_parts=["dev-clean"])["dev-clean"]
    assert sorted(row(e) for e in ours(root, "libritts", task="asr")) == sorted(theirs(**found))


def test_mls(tmp_path: Path) -> None:
    from lhotse.recipes import prepare_mls

    text(tmp_path / "corpus/mls_german/metainfo.txt", "SPEAKER | GENDER | PARTITION\n252 | M | dev\n")
    for partition in ("train", "dev", "test"):
        folder = tmp_path / "corpus/mls_german" / partition
        listed = ""
        for number, line in enumerate(("das war gut", "und jetzt")):
            name = f"252_1643_{number:06d}"
            audio(folder / f"audio/252/1643/{name}.flac", 0.5 + number / 4)
            listed += f"{name}\t{line}\n"
        text(folder / "transcripts.txt", listed)
    found = prepare_mls(tmp_path / "corpus", opus=False)["german"]
    for partition in ("train", "dev", "test"):
        examples = ours(tmp_path / "corpus", "mls", task="asr", partitions=[partition], languages=["de"])
        assert sorted(map(row, examples)) == sorted(theirs(**found[partition]))


def test_must_c(tmp_path: Path) -> None:
    from lhotse.recipes.must_c import prepare_must_c

    segments = [(1, 0.25, 0.5, "Danke.", "Thanks."), (1, 1.0, 0.75, "Ja?", "Yes?"), (2, 0.0, 1.5, "Gut.", "Good.")]
    for partition in ("train", "dev", "tst-COMMON", "tst-HE"):
        folder = tmp_path / "corpus/en-de/data" / partition
        for talk in (1, 2):
            audio(folder / f"wav/ted_{talk}.wav", 2.0)
        listed = "".join(
            f"- {{duration: {length:f}, offset: {start:f}, rW: 1, uW: 0, "
            f"speaker_id: spk.{talk}, wav: ted_{talk}.wav}}\n"
            for talk, start, length, _, _ in segments
        )
        text(folder / f"txt/{partition}.yaml", listed)
        text(folder / f"txt/{partition}.de", "".join(f"{german}\n" for *_, german, _ in segments))
        text(folder / f"txt/{partition}.en", "".join(f"{english}\n" for *_, english in segments))
    manifests = tmp_path / "manifests"
    prepare_must_c(tmp_path / "corpus", manifests, tgt_lang="de")
    from lhotse import RecordingSet, SupervisionSet

    for partition in ("dev", "tst-COMMON"):
        found = theirs(
            RecordingSet.from_file(manifests / f"must_c_recordings_en-de_{partition}.jsonl.gz"),
            SupervisionSet.from_file(manifests / f"must_c_supervisions_en-de_{partition}.jsonl.gz"),
        )
        examples = ours(tmp_path / "corpus", "must_c", task="st", partitions=[partition], languages=["en-de"])
        assert sorted(map(row, examples)) == sorted(found)


def test_ami(tmp_path: Path) -> None:
    from lhotse.recipes.ami import parse_ami_annotations

    root = tmp_path / "corpus"
    words, segments = "", ""
    for number, word in enumerate(("Well", "we", "start", "now", "Right")):
        words += f'<w nite:id="{MEETING}.A.words{number}" starttime="{number}.0" endtime="{number}.5">{word}</w>\n'
    for first, last in ((0, 1), (2, 3), (4, 4)):
        href = f"{MEETING}.A.words.xml#id({MEETING}.A.words{first})..id({MEETING}.A.words{last})"
        segments += (
            f'<segment nite:id="{MEETING}.sync.{first}" transcriber_start="{first}.0" transcriber_end="{last}.5">'
            f'<nite:child href="{href}"/></segment>\n'
        )
    text(root / f"words/{MEETING}.A.words.xml", f"{ROOT}{words}</nite:root>")
    text(root / f"segments/{MEETING}.A.segments.xml", f"{ROOT}{segments}</nite:root>")
    speaker = f'<meeting observation="{MEETING}"><speaker nxt_agent="A" channel="3" global_name="MEE041"/></meeting>'
    text(root / "corpusResources/meetings.xml", f"{ROOT}{speaker}</nite:root>")
    audio(root / f"amicorpus/{MEETING}/audio/{MEETING}.Headset-3.wav", 5.0)
    annotations = parse_ami_annotations(root, normalize="none")
    found = sorted(
        (f"{meeting}.Headset-{channel}.wav", one.text, speaker, float(one.start_time), float(one.end_time))
        for (meeting, speaker, channel), several in annotations.items()
        for one in several
    )
    assert found
    assert sorted(row(example) for example in ours(root, "ami", task="asr")) == found


def test_partitions_of_meetings_are_lhotses() -> None:
    from lhotse.recipes import ami, icsi

    presets = Path(__file__).resolve().parents[1] / "packages/speechlmm-train/src/speechlmm_train/presets/dataset"
    for preset, meetings in (("ami", ami.PARTITIONS["full-corpus-asr"]), ("icsi", icsi.PARTITIONS)):
        splits = yaml.safe_load((presets / f"{preset}.yaml").read_text(encoding="utf-8"))["splits"]
        everything = [meeting for several in meetings.values() for meeting in several]
        for partition, starts in splits.items():
            chosen = [one for one in everything if re.match("|".join(map(re.escape, starts)), one)]
            assert sorted(chosen) == sorted(meetings[partition])

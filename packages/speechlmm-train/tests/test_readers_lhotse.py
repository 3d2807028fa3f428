"""The `lhotse` dataset against lhotse, which writes the manifests and loads the audio itself."""

import gzip
import json
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import lhotse
import numpy as np
import pytest
import soundfile

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection, datasets
from speechlmm_core.media.audio import load_audio_item
from speechlmm_train.readers.lhotse.config import LhotseDatasetConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Any, Any]:
    """Three recordings, the last of two channels, with two, one and two supervisions."""
    recordings, supervisions = [], []
    generator = np.random.default_rng(0)
    for number, channels in enumerate((1, 1, 2)):
        path = tmp_path / "wavs" / f"r{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, generator.normal(0, 0.1, (16_000 * (number + 1), channels)), 16_000)
        recordings.append(lhotse.Recording.from_file(path))
    for name, recording, start, duration, channel in [
        ("a", "r0", 0.0, 0.4, 0),
        ("b", "r0", 0.4, 0.6, 0),
        ("c", "r1", 0.0, 2.0, 0),
        ("d", "r2", 0.25, 1.5, 0),
        ("e", "r2", 0.5, 2.5, 1),
    ]:
        supervisions.append(
            lhotse.SupervisionSegment(
                id=name,
                recording_id=recording,
                start=start,
                duration=duration,
                channel=channel,
                text=f"text of {name}",
                language="English",
                speaker=f"spk-{name}",
                custom={"intent": f"i{name}"},
            )
        )
    return lhotse.RecordingSet.from_recordings(recordings), lhotse.SupervisionSet.from_segments(supervisions)


def check(examples: Any, cuts: Any) -> None:
    """Each supervision's example has the audio that lhotse cuts out for it."""
    expected = [
        (supervision, cut.trim_to_supervisions(keep_overlapping=False)[number])
        for cut in cuts
        for number, supervision in enumerate(sorted(cut.supervisions, key=lambda one: one.start))
    ]
    assert len(examples) == len(expected)
    by_name = {example.id: example for example in examples}
    for supervision, cut in expected:
        example = by_name[supervision.id]
        assert (example.text, example.speaker) == (supervision.text, supervision.speaker)
        assert (example.source_language, example.fields) == ("en", {"intent": f"i{supervision.id}"})
        assert example.duration == pytest.approx(cut.duration)
        found = load_audio_item(example.media["audio"], 16_000).values.numpy()
        np.testing.assert_allclose(found, cut.load_audio()[0], atol=2e-4)
    assert list(pickle.loads(pickle.dumps(examples))) == list(examples)


COLUMNS: dict[str, str | None] = {"fields.intent": "custom.intent"}


def test_cuts_are_those_of_lhotse(tmp_path: Path, corpus: Any) -> None:
    cuts = lhotse.CutSet.from_manifests(*corpus)
    assert {type(cut).__name__ for cut in cuts} == {"MonoCut", "MultiCut"}
    cuts.to_file(tmp_path / "x_cuts_train.jsonl.gz")
    parts = cuts.trim_to_supervisions(keep_overlapping=False)
    parts.to_file(tmp_path / "x_cuts_dev.jsonl")
    config = LhotseDatasetConfig(path=str(tmp_path), columns=COLUMNS)
    check(config.read(tmp_path, Selection("train")), cuts)
    check(config.read(tmp_path, Selection("dev")), parts)
    check(LhotseDatasetConfig(path="x_cuts_dev.jsonl", columns=COLUMNS).read(tmp_path), parts)
    assert config.partitions(tmp_path) == ["dev", "train"]
    assert datasets.get("lhotse") is LhotseDatasetConfig
    with pytest.raises(DataError, match=r"for 'test'; partitions that are there: dev, train"):
        config.read(tmp_path, Selection("test"))


def test_cuts_as_units(tmp_path: Path, corpus: Any) -> None:
    cuts = lhotse.CutSet.from_manifests(*corpus)
    windows = cuts.cut_into_windows(0.5)
    windows.to_file(tmp_path / "cuts.jsonl.gz")
    examples = LhotseDatasetConfig(path=str(tmp_path), unit="cut").read(tmp_path)
    assert len(examples) == len(list(windows))
    for example, cut in zip(examples, windows, strict=True):
        assert example.id == cut.id
        assert example.text == (" ".join(one.text for one in cut.supervisions) or None)
        found = load_audio_item(example.media["audio"], 16_000).values.numpy()
        np.testing.assert_allclose(found, cut.load_audio().mean(axis=0), atol=2e-4)


def test_recordings_with_supervisions(tmp_path: Path, corpus: Any) -> None:
    recordings, supervisions = corpus
    recordings.to_file(tmp_path / "x_recordings_train.jsonl.gz")
    supervisions.to_file(tmp_path / "x_supervisions_train.jsonl.gz")
    cuts = lhotse.CutSet.from_manifests(*corpus)
    config = LhotseDatasetConfig(path=str(tmp_path), columns=COLUMNS)
    check(config.read(tmp_path, Selection("train")), cuts)
    check(config.read(tmp_path), cuts)
    named = LhotseDatasetConfig(
        path=str(tmp_path),
        columns=COLUMNS,
        supervisions="x_supervisions_{partition}.jsonl.gz",
        recordings="x_recordings_{partition}.jsonl.gz",
    )
    check(named.read(tmp_path, Selection("train")), cuts)
    lhotse.RecordingSet.from_recordings(list(recordings)[1:]).to_file(tmp_path / "x_recordings_train.jsonl.gz")
    with pytest.raises(DataError, match=r"(?s)2 faults.*train\.jsonl\.gz:1: there is no recording 'r0'"):
        config.read(tmp_path)


# lhotse's own reader leaves its archives open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_shar_folders_are_read_at_random(tmp_path: Path, corpus: Any) -> None:
    cuts = lhotse.CutSet.from_manifests(*corpus).trim_to_supervisions(keep_overlapping=False)
    (tmp_path / "shar/train").mkdir(parents=True)
    cuts.to_shar(tmp_path / "shar/train", fields={"recording": "flac"}, shard_size=2)
    config = LhotseDatasetConfig(path="shar", columns=COLUMNS)
    again = lhotse.CutSet.from_shar(in_dir=tmp_path / "shar/train")
    check(config.read(tmp_path, Selection("train")), list(again))
    check(LhotseDatasetConfig(path="shar/train", columns=COLUMNS).read(tmp_path), list(again))
    assert config.partitions(tmp_path) == ["train"]
    item = config.read(tmp_path)[3].media["audio"]
    with tarfile.open(item["path"]) as archive:
        assert archive.getmember(item["member"]).offset_data == item["offset"]
    archive_1 = tmp_path / "shar/train/recording.000001.tar"
    (tmp_path / "shar/train/recording.000000.tar").replace(archive_1)
    with pytest.raises(DataError, match=r"(?s)recording\.000000\.tar: no such file.*is not where it should be"):
        config.read(tmp_path)


def test_padding_is_taken_off(tmp_path: Path, corpus: Any) -> None:
    cuts = lhotse.CutSet.from_manifests(*corpus)
    mono = cuts.filter(lambda cut: cut.num_channels == 1).to_eager()
    mono.pad(duration=5.0).to_file(tmp_path / "cuts.jsonl.gz")
    check(LhotseDatasetConfig(path=str(tmp_path), columns=COLUMNS).read(tmp_path), mono)


def recording(**changes: Any) -> dict[str, Any]:
    source = {"type": "file", "channels": [0], "source": "a.wav"}
    return {"id": "r", "sources": [source], "sampling_rate": 16_000, "num_samples": 16_000, "duration": 1.0, **changes}


def sourced(**changes: Any) -> dict[str, Any]:
    return recording(sources=[{"type": "file", "channels": [0], "source": "a.wav", **changes}])


SUPERVISION = {"id": "s", "recording_id": "r", "start": 0.0, "duration": 1.0, "channel": 0, "text": "x"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recording": sourced(type="command", source="rm -rf /")}, "the output of a command, which is never run"),
        (
            {"recording": sourced(type="url", source="https://x.org/a.wav")},
            r"is at 'https://x\.org/a\.wav'; download it",
        ),
        ({"recording": sourced(type="memory", source="?")}, "is not base64"),
        ({"recording": sourced(type="ais", source="x")}, "a source of type 'ais'; expected a file"),
        ({"recording": sourced(source="")}, "a source of type 'file'; expected a file"),
        ({"recording": recording(sources=[])}, "has no `sources`"),
        ({"recording": recording(transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}])}, "to be changed by Speed"),
        ({"recording": None}, "has no recording; features alone are not read"),
        ({"channel": 3}, r"has no channel \[3\], but \[0\]"),
        ({"channel": "x"}, "`channel` must be a number"),
        ({"start": "x"}, "`start` must be a number of seconds, got 'x'"),
        ({"duration": None}, "`duration` must be a number"),
        ({"start": 7.0}, r"7 to 8 s is no part of the recording 'r' of 1 s"),
        ({"supervisions": [{**SUPERVISION, "start": 3.0}]}, "'s' lies outside its cut 'c'"),
        ({"supervisions": {"a": 1}}, "`supervisions` that are no list"),
        ({"type": "MixedCut"}, "the cut 'c' mixes several"),
        ({"type": "Song"}, "expected a cut, got a Song"),
        ({"type": None}, "expected a cut, got an object without a `type`"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    cut = {"id": "c", "start": 0.0, "duration": 1.0, "channel": 0, "supervisions": [SUPERVISION], "type": "MonoCut"}
    if "channel" in changes:
        cut["supervisions"] = [{**SUPERVISION, "channel": None}]
    line = {**cut, "recording": recording(), **changes}
    (tmp_path / "cuts.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=rf"cuts\.jsonl:1: .*{message}"):
        LhotseDatasetConfig(path=str(tmp_path)).read(tmp_path)


def test_memory_and_silence(tmp_path: Path) -> None:
    import base64
    import io

    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000), 16_000, format="WAV")
    place = base64.b64encode(file.getvalue()).decode()
    cut = {"id": "c", "start": 0.0, "duration": 1.0, "channel": 0, "supervisions": [], "type": "MonoCut"}
    line = {**cut, "recording": sourced(type="memory", source=place)}
    (tmp_path / "cuts.jsonl").write_text(json.dumps(line) + "\n")
    (example,) = LhotseDatasetConfig(path=str(tmp_path)).read(tmp_path)
    assert (example.id, example.text) == ("c", None)
    assert load_audio_item(example.media["audio"], 16_000).num_samples == 16_000


def test_other_manifests_and_damage(tmp_path: Path) -> None:
    (tmp_path / "cuts.yaml").write_text("[]")
    with pytest.raises(DataError, match=r"expected a manifest by lines .*lhotse copy cuts\.yaml cuts\.jsonl\.gz"):
        LhotseDatasetConfig(path="cuts.yaml").read(tmp_path)
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(b'{"type": "MonoCut"}\n')[:-6])
    with pytest.raises(DataError, match=r"cuts\.jsonl\.gz: truncated"):
        LhotseDatasetConfig(path="cuts.jsonl.gz").read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither manifests of cuts .*nor a Shar folder"):
        LhotseDatasetConfig(path="empty").read(tmp_path)


def test_lhotse_is_not_needed_to_read(tmp_path: Path, corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lhotse.CutSet.from_manifests(*corpus).to_file(tmp_path / "cuts.jsonl.gz")
    monkeypatch.setitem(sys.modules, "lhotse", None)
    assert len(LhotseDatasetConfig(path=str(tmp_path)).read(tmp_path)) == 5

"""`prepare` on corpora whose media are members of archives, cells of tables, bytes, arrays and videos."""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ListExamples
from speechlmm_core.data.index.open import index_dir_of
from speechlmm_core.data.index.prepared import PreparedExamples
from speechlmm_core.data.index.views import prepared_in
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.interfaces.dataset import EVERYTHING, DatasetConfig, Selection, datasets
from speechlmm_train.prepare.prepare import prepare
from speechlmm_train.prepare.report import PreparationReport
from speechlmm_train.prepare.settings import Settings

RATE = 16_000
SECONDS = (0.5, 1.0, 1.5)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("speechlmm_train.prepare.histogram.draw_histogram", lambda *_: False)


def flac(seconds: float) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(round(seconds * 100)).uniform(-0.1, 0.1, round(seconds * RATE))
    soundfile.write(file, values, RATE, format="FLAC")
    return file.getvalue()


def prepared(folder: Path, **entry: Any) -> tuple[PreparedExamples, Sequence[Example], PreparationReport]:
    """The index of an entry, its examples as they open without it, and the report."""
    spec = folder / "s.yaml"
    spec.write_text(yaml.safe_dump({"datasets": [{"name": "made", **entry}]}))
    expected = open_spec(read_spec(spec), base=folder)
    report = prepare(spec, index_dir=index_dir_of(spec), settings=Settings("full"), jobs=0, progress=False)
    opened = open_spec(read_spec(spec), base=folder, index_dir=index_dir_of(spec))
    found = prepared_in(opened[0].examples)
    assert len(found) == 1
    return found[0], expected[0].examples, report


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_parts_of_files_are_measured_like_files(tmp_path: Path, layout: str) -> None:
    (tmp_path / "train").mkdir()
    if layout == "parquet":
        rows = [{"audio": {"bytes": flac(one), "path": f"{one}.flac"}, "text": f"{one}"} for one in SECONDS]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train" / "0.parquet")
        found, expected, _ = prepared(
            tmp_path, type="parquet", path=".", columns={"id": "audio.member", "audio": "audio", "text": "text"}
        )
    else:
        with tarfile.open(tmp_path / "train" / "0.tar", "w") as archive:
            for at, one in enumerate(SECONDS):
                for member, data in ((f"{at}.flac", flac(one)), (f"{at}.txt", f"{one}".encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        found, expected, _ = prepared(
            tmp_path, type="webdataset", path=".", files="train/0.tar", columns={"audio": "flac", "text": "txt"}
        )
    assert list(found) == list(expected)
    assert found.header.stored
    assert found.seconds.tolist() == list(SECONDS)
    digests = [bytes(one) for one in found.column("hashes")]
    assert digests == [hashlib.blake2b(flac(one), digest_size=16).digest() for one in SECONDS]
    assert len(found.header.sources)
    values = [soundfile.read(io.BytesIO(flac(one)))[0] for one in SECONDS]
    np.testing.assert_allclose(found.column("peaks"), [np.abs(one).max() for one in values], rtol=1e-3)


def memory(kind: str, seconds: float) -> dict[str, Any]:
    if kind == "bytes":
        return {"type": "audio", "bytes": flac(seconds)}
    return {"type": "audio", "array": soundfile.read(io.BytesIO(flac(seconds)))[0], "sampling_rate": RATE}


class InMemoryConfig(DatasetConfig):
    """Examples that hold their media."""

    type: Any = "test.in_memory"
    kind: str = "bytes"

    def read(self, base: Path, selection: Selection = EVERYTHING) -> Sequence[Example]:
        return ListExamples(
            [
                Example(id=f"{at}", task="asr", text=f"{one}", media={"audio": memory(self.kind, one)})
                for at, one in enumerate([*SECONDS, SECONDS[1]])
            ]
        )


@pytest.mark.parametrize("kind", ["bytes", "array"])
def test_media_in_memory_come_from_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(datasets.loaded, "test.in_memory", InMemoryConfig)
    found, expected, report = prepared(tmp_path, type="test.in_memory", kind=kind)
    assert not found.header.stored
    assert report.parts[0].reasons == {"duplicate": 1}
    assert [(one.id, one.text) for one in found] == [(one.id, one.text) for one in expected][:3]
    assert found.seconds.tolist() == list(SECONDS)
    if kind == "bytes":
        assert [one.media for one in found] == [one.media for one in expected][:3]


def test_videos_last_as_long_as_their_reader_says(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            picture = np.full((48, 64, 3), number * 5, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    (tmp_path / "m.jsonl").write_text('{"video": "a.mp4", "text": "x"}\n{"media": {"face": "a.mp4"}, "text": "y"}\n')
    found, _, report = prepared(tmp_path, type="jsonl", path="m.jsonl")
    assert report.parts[0].kept == 2
    assert found.seconds.tolist() == pytest.approx([1.2, 1.2])
    assert found.headers(0) == [(1_200_000, 1_000_000)]


def test_text_alone_needs_no_media(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]}\n'
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "d"}]}\n'
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "d"}]}\n'
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}\n'
    )
    found, expected, report = prepared(tmp_path, type="jsonl", path="m.jsonl")
    assert report.parts[0].reasons == {"duplicate": 1, "empty text": 1}
    assert list(found) == list(expected)[:2]
    assert found.num_words.tolist() == [2, 1]
    assert found.seconds.tolist() == [0, 0]

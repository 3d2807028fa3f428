"""The `audiofolder` dataset against the builder of `datasets`, and by hand where that one has no such layout."""

import csv
import gc
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets as hf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection, datasets
from speechlmm_core.media.audio import load_audio_item
from speechlmm_train.readers.audiofolder.config import AudioFolderDatasetConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    hf.disable_progress_bars()
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("validation", 2)):
        for number in range(count):
            path = tmp_path / "af" / split / "clips" / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.full(1600 + 160 * number, 0.1), 16_000)
    return tmp_path / "af"


def rows(count: int) -> list[dict[str, Any]]:
    return [{"file_name": f"clips/{n}.wav", "transcription": f'a, "{n}" ü', "speaker": f"s{n}"} for n in range(count)]


def write(path: Path, table: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    else:
        pq.write_table(pa.Table.from_pylist(table), path)


# `datasets` leaves the tables open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_tables_beside_the_files_as_datasets_reads_them(
    folder: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `datasets` asks for torchcodec before it looks at what is only a path.
    encoders = ModuleType("torchcodec.encoders")
    encoders.AudioEncoder = None  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", encoders)
    write(folder / f"train/metadata.{ending}", rows(3))
    write(folder / f"validation/metadata.{ending}", rows(2))
    config = AudioFolderDatasetConfig(path="af", columns={"speaker": "speaker"})
    assert config.partitions(tmp_path) == ["train", "validation"]
    loaded: Any = hf.load_dataset("audiofolder", data_dir=str(folder), cache_dir=str(tmp_path / "hf"))
    gc.collect()
    for asked, split in (("train", "train"), ("dev", "validation")):
        expected = loaded[split].cast_column("audio", hf.Audio(decode=False))
        examples = config.read(tmp_path, Selection(asked))
        assert [(example.media["audio"]["path"], example.text, example.speaker) for example in examples] == [
            (row["audio"]["path"], row["transcription"], row["speaker"]) for row in expected
        ]
    assert load_audio_item(examples[1].media["audio"], 16_000).num_samples == 1760
    assert list(pickle.loads(pickle.dumps(examples))) == list(examples)
    assert datasets.get("audiofolder") is AudioFolderDatasetConfig
    assert [one.id for one in config.read(tmp_path)] == [
        *(f"train/clips/{n}.wav" for n in range(3)),
        *(f"validation/clips/{n}.wav" for n in range(2)),
    ]


def test_folders_of_any_name_are_partitions_where_they_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "train").rename(folder / "alpha")
    (folder / "validation").rename(folder / "beta")
    assert AudioFolderDatasetConfig(path="af").partitions(tmp_path) == []
    named = AudioFolderDatasetConfig(path="af", partition_names={"train": "alpha", "dev": "beta"})
    assert named.partitions(tmp_path) == ["dev", "train"]
    alpha = AudioFolderDatasetConfig(path="af/alpha").read(tmp_path)
    assert [one.media for one in named.read(tmp_path, Selection("train"))] == [one.media for one in alpha]
    assert len(alpha)


def test_one_table_above_the_partitions(folder: Path, tmp_path: Path) -> None:
    table = [
        {"file_name": f"{split}/clips/{n}.wav", "text": f"{split}{n}"}
        for split in ("train", "validation")
        for n in (0, 1)
    ]
    write(folder / "metadata.csv", table)
    config = AudioFolderDatasetConfig(path="af")
    assert [one.text for one in config.read(tmp_path, Selection("validation"))] == ["validation0", "validation1"]
    assert [one.text for one in config.read(tmp_path)] == ["train0", "train1", "validation0", "validation1"]


def test_texts_and_class_folders(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train/clips/0.txt").write_text("\ufeff hello\n")
    (folder / "train/.hidden.wav").touch()
    (folder / "train/clips/movie.mp4").touch()
    (folder / "train/loop").symlink_to(folder / "train", target_is_directory=True)
    config = AudioFolderDatasetConfig(path="af", columns={"fields.label": "label"})
    examples = config.read(tmp_path, Selection("train"))
    assert [(one.id, one.text, one.fields) for one in examples] == [
        ("clips/0.wav", "hello", {"label": "clips"}),
        ("clips/1.wav", None, {"label": "clips"}),
        ("clips/2.wav", None, {"label": "clips"}),
        ("clips/movie.mp4", None, {"label": "clips"}),
    ]
    assert list(examples[3].media) == ["video"]
    assert len(AudioFolderDatasetConfig(path="af/train/clips").read(tmp_path, Selection("train"))) == 4
    write(folder / "train/metadata.jsonl", rows(2))
    assert len(config.read(tmp_path, Selection("train"))) == 2
    assert "2 files are not named in metadata" in caplog.text


def test_several_files_a_row(folder: Path, tmp_path: Path) -> None:
    table = [{"audio_file_name": "clips/0.wav", "speaker_file_name": "clips/1.wav", "text": "x"}]
    write(folder / "train/metadata.jsonl", table)
    config = AudioFolderDatasetConfig(path="af/train", columns={"id": None, "media.speaker": "speaker"})
    (example,) = config.read(tmp_path)
    assert {name: Path(item["path"]).name for name, item in example.media.items()} == {
        "audio": "0.wav",
        "speaker": "1.wav",
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metadata.csv",
            "file_name,text\nclips/9.wav,x\nclips/0.wav,y\n",
            r"metadata\.csv:2: there is no file 'clips/9\.wav'",
        ),
        (
            "metadata.csv",
            "file_name,text\n../../x.wav,x\n",
            r"metadata\.csv:2: `file_name` '\.\./\.\./x\.wav' leads out",
        ),
        ("metadata.csv", "file_name,text\n/etc/passwd,x\n", "leads out of the folder"),
        ("metadata.csv", "name,text\nclips/0.wav,x\n", r"metadata\.csv:2: a table of files needs a column `file_name`"),
        ("metadata.csv", "file_name,text\n,x\n", r"`file_name` must be a file's path, got None"),
        (
            "metadata.csv",
            "file_name,text\nclips/0.wav,x\nclips/0.wav,x\n",
            r"metadata\.csv:3: the id 'clips/0\.wav' stands",
        ),
        ("metadata.jsonl", '{"file_name": 3}\n', "must be a file's path, got 3"),
        ("metadata.jsonl", "{", r"metadata\.jsonl:1: bad JSON"),
        ("metadata.csv", "file_name\n", "no rows"),
        ("metadata.parquet", "PAR1 and nothing", r"metadata\.parquet: no Parquet file"),
        ("clips/0.txt", b"\xff\xfe", r"0\.txt: not UTF-8"),
        ("clips/0.txt", b"a\0", r"0\.txt: a NUL byte"),
        ("clips/0.txt", b"x" * 2_000_000, r"0\.txt: more than 1 MiB"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (folder / "train" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        list(AudioFolderDatasetConfig(path="af").read(tmp_path, Selection("train")))


def test_wrong_folders_are_explained(folder: Path, tmp_path: Path) -> None:
    config = AudioFolderDatasetConfig(path="af")
    with pytest.raises(DataError, match="no partition 'test'; those that are there: train, validation"):
        config.read(tmp_path, Selection("test"))
    with pytest.raises(DataError, match="is no folder's name"):
        config.read(tmp_path, Selection("../af"))
    with pytest.raises(DataError, match="does not exist"):
        AudioFolderDatasetConfig(path="nowhere").read(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no audio or video files, and no metadata"):
        AudioFolderDatasetConfig(path="none").read(tmp_path)
    write(folder / "train/metadata.csv", rows(1))
    write(folder / "train/metadata.jsonl", rows(1))
    with pytest.raises(DataError, match="keep one table"):
        config.read(tmp_path, Selection("train"))

"""The `parquet` dataset against `datasets` itself, which writes the files and reads them; the hub is local files."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.interfaces.dataset import Selection, datasets
from speechlmm_core.media.audio import load_audio_item
from speechlmm_train.readers.parquet import stream
from speechlmm_train.readers.parquet.config import ParquetDatasetConfig

COLUMNS: dict[str, str | None] = {"id": "audio.member", "audio": "audio", "text": "text", "fields.intent": "intent"}
INTENTS = ["stop", "play"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    hf.disable_progress_bars()
    return tmp_path / "cache"


def sound(seed: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).normal(0, 0.1, 800 + 10 * seed), 16_000, format="FLAC")
    return file.getvalue()


def made(numbers: range) -> hf.Dataset:
    """Rows whose audio is stored as bytes; the fourth has a label and no text."""
    features = hf.Features(
        audio={"bytes": hf.Value("binary"), "path": hf.Value("string")},
        text=hf.Value("string"),
        intent=hf.ClassLabel(names=INTENTS),
        n=hf.Value("int64"),
    )
    rows = {
        "audio": [{"bytes": sound(n), "path": f"{n}.flac"} for n in numbers],
        "text": [None if n == 3 else f"wört {n}" for n in numbers],
        "intent": [n % 2 for n in numbers],
        "n": list(numbers),
    }
    # The feature's own encoding needs torchcodec; a cast does not.
    return hf.Dataset.from_dict(rows, features=features).cast_column("audio", hf.Audio(decode=False))


def check(examples: Any, numbers: range) -> None:
    assert [example.id for example in examples] == [f"{n}.flac" for n in numbers]
    for n, example in zip(numbers, examples, strict=True):
        assert example.text == (None if n == 3 else f"wört {n}")
        assert example.fields == {"intent": INTENTS[n % 2]}
        expected, _ = soundfile.read(io.BytesIO(sound(n)), dtype="float32")
        item = example.media["audio"]
        assert "bytes" not in item
        np.testing.assert_array_equal(load_audio_item(item, 16_000).values, expected)
    assert list(pickle.loads(pickle.dumps(examples))) == list(examples)


def test_saved_datasets_are_read_where_they_are(tmp_path: Path, cache: Path) -> None:
    hf.DatasetDict(train=made(range(5)), validation=made(range(5, 7))).save_to_disk(tmp_path / "saved", num_shards=None)
    made(range(4)).save_to_disk(tmp_path / "one", num_shards=2)
    config = ParquetDatasetConfig(path="saved", columns=COLUMNS, partition_names={"dev": "validation"})
    check(config.read(tmp_path, Selection("train")), range(5))
    check(config.read(tmp_path, Selection("dev")), range(5, 7))
    check(config.read(tmp_path), range(7))
    check(ParquetDatasetConfig(path="one", columns=COLUMNS).read(tmp_path), range(4))
    assert config.partitions(tmp_path) == ["dev", "train"]
    assert datasets.get("parquet") is ParquetDatasetConfig
    assert not (cache / "arrow").exists()
    with pytest.raises(DataError, match=r"no partition 'test'; those that are there: train, validation"):
        config.read(tmp_path, Selection("test"))


@pytest.mark.parametrize("form", ["data/{}-00000-of-00001", "{}/0000", "{}", "{}-00000-of-00001"])
def test_parquet_is_converted_once(tmp_path: Path, cache: Path, form: str) -> None:
    for split, numbers in (("train", range(5)), ("test", range(5, 8))):
        path = tmp_path / "pq" / f"{form.format(split)}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        made(numbers).to_parquet(path, batch_size=2)
    config = ParquetDatasetConfig(path="pq", columns=COLUMNS)
    examples = config.read(tmp_path, Selection("train"))
    check(examples, range(5))
    assert examples.place(2) == f"{tmp_path}/pq/{form.format('train')}.parquet (row 3)"
    assert config.partitions(tmp_path) == ["test", "train"]
    (arrow,) = (cache / "arrow").iterdir()
    before = arrow.stat().st_mtime_ns
    check(config.read(tmp_path, Selection("train")), range(5))
    assert arrow.stat().st_mtime_ns == before
    assert len(config.read(tmp_path)) == 8
    with pytest.raises(DataError, match=r"no file fits .*partitions that are there: test, train"):
        config.read(tmp_path, Selection("dev"))


def test_plain_tables_and_paths(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.flac").write_bytes(sound(1))
    kinds = {"p": ["clips/a.flac"], "o": [{"bytes": None, "path": "clips/a.flac"}], "b": [sound(2)], "z": [None]}
    table = pa.table({**kinds, "when": ["x"]}).cast(
        pa.schema(
            [
                ("p", pa.string()),
                ("o", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                ("b", pa.large_binary()),
                ("z", pa.binary()),
                ("when", pa.string()),
            ]
        )
    )
    pq.write_table(table, tmp_path / "t.parquet")
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    for name in ("t.parquet", "t.arrow"):
        for column, seed in (("p", 1), ("o", 1), ("b", 2)):
            (example,) = ParquetDatasetConfig(path=name, columns={"audio": column}).read(tmp_path)
            expected, _ = soundfile.read(io.BytesIO(sound(seed)), dtype="float32")
            np.testing.assert_array_equal(load_audio_item(example.media["audio"], 16_000).values, expected)
        (example,) = ParquetDatasetConfig(path=name, columns={"audio": "z", "text": "when"}).read(tmp_path)
        assert (example.media, example.text) == ({}, "x")
    with pytest.raises(DataError, match="there is no column 'txt'"):
        ParquetDatasetConfig(path="t.parquet", columns={"text": "txt"}).read(tmp_path)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_damage_is_named(tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        made(range(4)).to_parquet(tmp_path / "a.parquet")
        content = (tmp_path / "a.parquet").read_bytes()
    else:
        made(range(4)).save_to_disk(tmp_path / "saved")
        content = next((tmp_path / "saved").glob("*.arrow")).read_bytes()
    generator = np.random.default_rng(0)
    faults: list[str] = []
    for number in range(60):
        changed = bytearray(content[: int(generator.integers(0, len(content)))] if number % 2 else content)
        for at in generator.integers(0, max(1, len(changed)), 5):
            changed[at : at + 1] = bytes([int(generator.integers(0, 256))])
        path = tmp_path / f"x{number}.{ending}"
        path.write_bytes(bytes(changed))
        try:
            for example in ParquetDatasetConfig(path=str(path), columns={**COLUMNS, "id": None}).read(tmp_path):
                load_audio_item(example.media.get("audio", {}), 16_000)
        except (DataError, MediaError) as exc:
            faults.append(str(exc))
    assert len(faults) > 25
    assert [fault for fault in faults if len(fault.splitlines()) > 2] == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("state.json", "{}", r"state\.json: expected the names of its `_data_files`"),
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "expected the names of its `_data_files`"),
        ("state.json", "[", r"state\.json: cannot be read"),
        ("state.json", '{"_data_files": [{"filename": "x.arrow"}]}', r"x\.arrow: cannot be read: No such file"),
        ("dataset_dict.json", '{"splits": ["../x"]}', "expected the names of its `splits`"),
        ("dataset_dict.json", "[]", "expected an object"),
        ("x.txt", "", "no file fits"),
        ("x.parquet", "", r"x\.parquet: no Arrow file that can be read"),
        ("x.arrow", "ARROW1 and nothing", r"x\.arrow: no Arrow file that can be read"),
    ],
)
def test_wrong_folders_are_explained(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / file).write_text(content)
    with pytest.raises(DataError, match=message):
        ParquetDatasetConfig(path="f").read(tmp_path)


def test_the_hub_is_asked_for_subset_partition_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(range(5)).to_parquet(tmp_path / "t.parquet")
    made(range(5, 8)).to_parquet(tmp_path / "v.parquet")
    real, asked = hf.load_dataset, []

    def load(name: str, subset: str | None = None, **options: Any) -> Any:
        asked.append((name, subset, options))
        files = {"train": str(tmp_path / "t.parquet"), "validation": str(tmp_path / "v.parquet")}
        return real("parquet", data_files=files, split=options["split"], streaming=options.get("streaming", False))

    monkeypatch.setattr(hf, "load_dataset", load)
    config = ParquetDatasetConfig(
        hub="acme/sounds",
        subset="{source_language}",
        revision="v1",
        columns=COLUMNS,
        language_names={"de": "de_de"},
        partition_names={"dev": "validation"},
    )
    check(config.read(tmp_path, Selection("dev", "de")), range(5, 8))
    assert asked == [("acme/sounds", "de_de", {"split": "validation", "revision": "v1"})]
    assert "trust_remote_code" not in str(asked)
    check(config.read(tmp_path, Selection(None, "de")), range(8))
    assert config.read(tmp_path, Selection(None, "de")).told(7)["partition"] == "dev"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DataError, match=r"needs 'source_language', which the specification does not give"):
        config.read(tmp_path, Selection("dev"))
    with pytest.raises(DataError, match="no partition's name"):
        config.read(tmp_path, Selection("train[:5]", "de"))


def test_a_stream_is_read_as_far_as_asked_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    made(range(9)).to_parquet(tmp_path / "t.parquet")
    real = hf.load_dataset
    read: list[int] = []

    def load(name: str, subset: str | None = None, **options: Any) -> Any:
        assert options["streaming"] is True
        loaded: Any = real("parquet", data_files={"train": str(tmp_path / "t.parquet")}, split="train", streaming=True)
        return loaded.map(lambda row: read.append(row["n"]) or row, features=loaded.features)

    monkeypatch.setattr(hf, "load_dataset", load)
    config = ParquetDatasetConfig(hub="acme/sounds", streaming=True, columns=COLUMNS)
    check(config.read(tmp_path, Selection("train", limit=3)), range(3))
    assert max(read) < 5
    check(config.read(tmp_path, Selection("train", limit=5)), range(5))
    (folder,) = (cache / "streams").iterdir()
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'{"half')
    with (folder / "media.bin").open("ab") as file:
        file.write(b"left over")
    check(config.read(tmp_path, Selection("train")), range(9))
    assert (folder / "media.bin").read_bytes() == b"".join(sound(n) for n in range(9))

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(hf, "load_dataset", unreachable)
    check(config.read(tmp_path, Selection("train")), range(9))
    check(config.read(tmp_path, Selection("train", limit=2)), range(2))
    with pytest.raises(DataError, match="needs its partitions by name"):
        config.read(tmp_path)


def test_an_interrupted_stream_keeps_whole_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    made(range(6)).to_parquet(tmp_path / "t.parquet")
    real = hf.load_dataset
    add = stream._Spool.add

    def load(*_: Any, **__: Any) -> Any:
        return real("parquet", data_files={"train": str(tmp_path / "t.parquet")}, split="train", streaming=True)

    def failing(spool: Any, record: Any) -> None:
        if spool.count == 4:
            raise ConnectionError("the line went dead")
        add(spool, record)

    monkeypatch.setattr(hf, "load_dataset", load)
    monkeypatch.setattr(stream._Spool, "add", failing)
    config = ParquetDatasetConfig(hub="acme/sounds", streaming=True, columns=COLUMNS)
    with pytest.raises(DataError, match=r"'acme/sounds' cannot be read \(the line went dead\)"):
        config.read(tmp_path, Selection("train"))
    (folder,) = (cache / "streams").iterdir()
    assert [json.loads(line)["n"] for line in (folder / "records.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    monkeypatch.setattr(stream._Spool, "add", add)
    check(config.read(tmp_path, Selection("train")), range(6))


@pytest.mark.parametrize("streaming", [False, True])
def test_without_the_hub_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    config = ParquetDatasetConfig(hub="acme/sounds-of-nowhere", streaming=streaming)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"acme/sounds-of-nowhere' cannot be read .*HF_HUB_OFFLINE is set.*hf download"):
        config.read(tmp_path, Selection("train"))
    for wrong in ("a/b/c", "../x", "", "a b"):
        with pytest.raises(DataError, match="is no dataset's name"):
            ParquetDatasetConfig(hub=wrong).read(tmp_path, Selection("train"))
    with pytest.raises(DataError, match="exclude each other"):
        ParquetDatasetConfig(hub="a/b", path="c").read(tmp_path)
    assert os.environ["HF_HUB_OFFLINE"] == "1"

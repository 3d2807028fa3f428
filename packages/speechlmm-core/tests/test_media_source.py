"""Media in parts of files: byte ranges, cells of tables, bytes in memory; each is read as the file of its own is."""

import io
import os
import pickle
import struct
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from speechlmm_core.errors import MediaError, MissingDependencyError
from speechlmm_core.media.audio import audio_info, audio_item_length, load_audio, load_audio_item
from speechlmm_core.media.part_file import PartFile
from speechlmm_core.media.source import MediaSource, as_source, item_name, item_source
from speechlmm_core.media.video import VideoOptions, load_video_item, video_item_length

FORMATS = {"a.wav": "WAV", "a.flac": "FLAC", "a.ogg": "OGG", "a.mp3": "MP3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    samples = np.random.default_rng(0).normal(0, 0.1, 20_000)
    for name, kind in FORMATS.items():
        soundfile.write(folder / name, samples, 16_000, format=kind)
    return folder


def members(path: Path) -> dict[str, tuple[int, int]]:
    with tarfile.open(path) as archive:
        return {one.name: (one.offset_data, one.size) for one in archive}


@pytest.fixture(scope="module")
def archive(folder: Path) -> Path:
    with tarfile.open(folder / "all.tar", "w") as archive:
        for name in FORMATS:
            archive.add(folder / name, arcname=f"clips/{name}")
    return folder / "all.tar"


def tables(folder: Path) -> dict[str, tuple[Path, str]]:
    """The same bytes in each kind of table, three rows a batch, as a column of bytes and one of objects."""
    data = [(folder / name).read_bytes() for name in FORMATS]
    objects = [{"bytes": one, "path": name} for one, name in zip(data, FORMATS, strict=True)]
    table = pa.table({"id": list(FORMATS), "raw": pa.array(data, pa.binary()), "audio": objects})
    with pa.OSFile(str(folder / "t.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    with pa.OSFile(str(folder / "s.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    pq.write_table(table, folder / "t.parquet", row_group_size=3)
    found = [(folder / name, column) for name in ("t.arrow", "s.arrow", "t.parquet") for column in ("raw", "audio")]
    return {f"{path.name}:{column}": (path, column) for path, column in [*found, (folder / "t.arrow", "audio.bytes")]}


def locators(folder: Path, archive: Path, number: int, name: str) -> list[dict[str, Any]]:
    offset, size = members(archive)[f"clips/{name}"]
    found: list[dict[str, Any]] = [
        {"path": str(archive), "offset": offset, "size": size, "member": f"clips/{name}"},
        {"bytes": (folder / name).read_bytes()},
    ]
    return found + [{"path": str(path), "row": number, "column": column} for path, column in tables(folder).values()]


@pytest.mark.parametrize(("number", "name"), list(enumerate(FORMATS)))
def test_a_part_is_read_as_the_file_is(folder: Path, archive: Path, number: int, name: str) -> None:
    whole = load_audio(folder / name, sampling_rate=8000).values
    piece = load_audio(folder / name, sampling_rate=16_000, start=0.3, end=0.9).values
    for locator in locators(folder, archive, number, name):
        item = {"type": "audio", **locator}
        np.testing.assert_array_equal(load_audio_item(item, 8000).values, whole)
        np.testing.assert_array_equal(load_audio_item({**item, "start": 0.3, "end": 0.9}, 16_000).values, piece)
        assert audio_item_length(item, 8000) == len(whole)
        source = item_source(item)
        assert source is not None
        assert audio_info(source) == audio_info(folder / name)
        assert source.read() == (folder / name).read_bytes()
        assert source.num_bytes() == (folder / name).stat().st_size
        assert pickle.loads(pickle.dumps(source)) == source


def test_a_video_in_an_archive_is_read_as_the_file_is(tmp_path: Path, write_video: Any) -> None:
    path = write_video(tmp_path / "a.mp4", 20)
    with tarfile.open(tmp_path / "v.tar", "w") as archive:
        archive.add(path, arcname="a.mp4")
    offset, size = members(tmp_path / "v.tar")["a.mp4"]
    options = VideoOptions(crop="none")
    expected = load_video_item({"path": path}, options).values
    places = [{"path": tmp_path / "v.tar", "offset": offset, "size": size}, {"bytes": path.read_bytes()}]
    for item in places:
        np.testing.assert_array_equal(load_video_item(item, options).values, expected)
        assert video_item_length(item, options) == len(expected)
        np.testing.assert_array_equal(
            load_video_item({**item, "start": 0.2, "end": 0.6}, options).values, expected[5:15]
        )


@pytest.mark.parametrize("name", list(FORMATS))
def test_damage_names_the_member(folder: Path, archive: Path, tmp_path: Path, name: str) -> None:
    offset, size = members(archive)[f"clips/{name}"]
    item = {"path": str(archive), "offset": offset, "size": size, "member": f"clips/{name}"}
    assert item_name(item) == f"{archive}:clips/{name}"
    cut = tmp_path / "cut.tar"
    cut.write_bytes(archive.read_bytes()[: offset + size // 2])
    with pytest.raises(MediaError, match=rf"cut\.tar:clips/{name}: truncated: it should end at byte"):
        load_audio_item({**item, "path": str(cut)}, 16_000)
    junk = {"path": str(archive), "offset": offset + 7, "size": size - 7}
    with pytest.raises(MediaError, match=rf"all\.tar \(bytes {offset + 7} to {offset + size}\): "):
        load_audio_item({**junk, "start": 0, "end": 99}, 16_000)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"offset": 3}, "both its `offset` and its `size`"),
        ({"offset": -1, "size": 3}, "`offset` must be a whole number, 0 or more, got -1"),
        ({"offset": 1, "size": 1 << 64}, "`size` must be a whole number"),
        ({"offset": True, "size": 3}, "`offset` must be"),
        ({"offset": 0, "size": 3, "row": 0, "column": "a"}, "exclude each other"),
        ({"row": 3}, "both its `row` and its `column`"),
        ({"row": 3, "column": ""}, "`column` must be the name"),
        ({"offset": 0, "size": 0}, "is empty"),
        ({"offset": 1 << 62, "size": 3}, "truncated"),
        ({"row": 9, "column": "raw"}, "the table has 4 rows"),
        ({"row": 1, "column": "sound"}, r"no such column \(columns: id, raw, audio\)"),
        ({"row": 1, "column": "audio.sound"}, "damaged one"),
        ({"row": 1, "column": "audio", "bytes": b"x"}, "either a `path`"),
        ({"bytes": b"x"}, "either a `path`"),
    ],
)
def test_wrong_locators_are_explained(folder: Path, keys: dict[str, Any], message: str) -> None:
    tables(folder)
    with pytest.raises(MediaError, match=message) as caught:
        load_audio_item({"path": str(folder / "t.arrow"), **keys}, 16_000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["two.wav", "two.flac", "two.mp3"])
def test_one_channel_of_several(tmp_path: Path, name: str) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (20_000, 2)).astype(np.float32)
    soundfile.write(tmp_path / name, samples, 16_000)
    values, _ = soundfile.read(tmp_path / name, dtype="float32")  # (L, 2)
    tolerance = 1e-3 if name.endswith("mp3") else 0.0
    item = {"path": str(tmp_path / name)}
    for channel in (0, 1):
        found = load_audio_item({**item, "channel": channel}, 16_000).values
        np.testing.assert_allclose(found, values[:, channel], atol=tolerance)
        piece = load_audio_item({"bytes": (tmp_path / name).read_bytes(), "channel": channel, "start": 0.5}, 16_000)
        np.testing.assert_allclose(piece.values, values[8000:, channel], atol=tolerance)
    np.testing.assert_allclose(load_audio_item(item, 16_000).values, values.mean(1), atol=tolerance + 1e-7)
    with pytest.raises(MediaError, match=r"there is no channel 2, as the audio has 2, from 0 on"):
        load_audio_item({**item, "channel": 2}, 16_000)
    with pytest.raises(MediaError, match="`channel` must be a whole number"):
        load_audio_item({"bytes": b"x", "channel": -1}, 16_000)


def test_a_cell_may_name_a_file(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "a.wav").write_bytes((folder / "a.wav").read_bytes())
    column = pa.array([{"bytes": None, "path": "a.wav"}, {"bytes": None, "path": None}, None])
    pq.write_table(pa.table({"audio": column, "name": ["a.wav"] * 3, "n": [1, 2, 3]}), tmp_path / "t.parquet")
    item = {"path": str(tmp_path / "t.parquet"), "row": 0, "column": "audio"}
    assert audio_item_length(item, 16_000) == audio_item_length({**item, "column": "name"}, 16_000) == 20_000
    for row in (1, 2):
        with pytest.raises(MediaError, match=rf"row {row} of 'audio'\): the cell is empty"):
            audio_item_length({**item, "row": row}, 16_000)
    with pytest.raises(MediaError, match="of type int64"):
        audio_item_length({**item, "column": "n"}, 16_000)


@pytest.mark.parametrize("name", ["t.arrow", "s.arrow", "t.parquet"])
def test_damaged_tables_are_errors(folder: Path, tmp_path: Path, name: str) -> None:
    tables(folder)
    data = (folder / name).read_bytes()
    generator = np.random.default_rng(0)
    faults: list[str] = []
    for number in range(60):
        changed = bytearray(data[: len(data) if number % 2 else int(generator.integers(0, len(data)))])
        for at in generator.integers(0, max(1, len(changed)), 30):
            changed[at : at + 1] = bytes(generator.integers(0, 256, 1, np.uint8))
        for at in generator.integers(0, min(1500, len(changed)) or 1, number % 5):
            changed[at : at + 1] = b"\xff"
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(changed)
        for row in (0, 3):
            try:
                load_audio_item({"path": str(path), "row": row, "column": "audio"}, 16_000)
            except MediaError as exc:
                faults.append(str(exc))
    assert len(faults) > 30
    assert [fault for fault in faults if f"-{name}" not in fault or "\n" in fault] == []


def test_threads_and_forks_read_the_same_tables(folder: Path) -> None:
    items = [
        {"path": str(path), "row": row, "column": column}
        for path, column in tables(folder).values()
        for row in range(4)
    ]
    expected = [audio_item_length(item, 16_000) for item in items]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda item: audio_item_length(item, 16_000), items)) == expected
    read, write = os.pipe()
    child = os.fork()
    if not child:
        found = [audio_item_length(item, 16_000) for item in items] == expected
        os.write(write, struct.pack("?", found))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"\x01"


def test_without_pyarrow_its_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (folder / "x.arrow").write_bytes(b"x")
    with pytest.raises(MissingDependencyError, match=r"speechlmm-core\[parquet\]"):
        load_audio_item({"path": str(folder / "x.arrow"), "row": 0, "column": "raw"}, 16_000)


def test_names_stay_on_one_line(tmp_path: Path) -> None:
    source = MediaSource(tmp_path / "a.tar", 0, 4, member="a\n\x1b[31m" + "b" * 400)
    assert str(source).startswith(f"{tmp_path}/a.tar:a\\n\\x1b[31mbbb")
    assert len(str(source)) < len(str(tmp_path)) + 230
    assert str(as_source("~root/x")) in {"/root/x", str(Path("~root/x").expanduser())}
    with pytest.raises(MediaError, match="no such user"):
        as_source("~nobody-of-this-name/x")


def test_identities_differ_by_part(archive: Path) -> None:
    parts = [MediaSource(archive), *(MediaSource(archive, at, size) for at, size in ((0, 5), (0, 6), (1, 5)))]
    parts += [MediaSource(archive, row=row, column=column) for row in (0, 1) for column in "ab"]
    assert len({part.identity() for part in parts}) == len(parts)


def test_a_part_behaves_as_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5
    (tmp_path / "x").write_bytes(content)
    generator = np.random.default_rng(1)
    real = io.BytesIO(content[100:900])
    for part in (PartFile.of_file(tmp_path / "x", 100, 800), PartFile.of_bytes(content[100:900])):
        real.seek(0)
        for _ in range(300):
            whence = int(generator.integers(0, 3))
            offset = int(generator.integers(-900, 900))
            before = part.tell()
            if {0: 0, 1: before, 2: 800}[whence] + offset >= 0:
                assert part.seek(offset, whence) == real.seek(offset, whence)
            else:
                assert part.seek(offset, whence) == before
            count = int(generator.integers(0, 500))
            assert part.read(count) == real.read(count)
        part.close()
        assert part.closed


@pytest.mark.parametrize("kind", ["string", "object"])
@pytest.mark.parametrize("table", ["t.arrow", "t.parquet"])
def test_a_cell_names_files_in_the_folder_of_its_table_only(tmp_path: Path, kind: str, table: str) -> None:
    inside, outside = tmp_path / "corpus" / "clips" / "a.wav", tmp_path / "other.wav"
    inside.parent.mkdir(parents=True)
    for file in (inside, outside):
        file.write_bytes(file.name.encode())
    names = ["clips/a.wav", str(inside), "clips/../clips/a.wav", "../other.wav", str(outside), "", "/", "../corpus2/a"]
    cells = names if kind == "string" else [{"bytes": None, "path": name} for name in names]
    made = pa.table({"audio": cells})
    path = tmp_path / "corpus" / table
    if table == "t.parquet":
        pq.write_table(made, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made)
    found = [item_source({"path": str(path), "row": row, "column": "audio"}) for row in range(len(names))]
    assert [one.read() for one in found[:3] if one is not None] == [b"a.wav"] * 3
    for one in found[3:]:
        assert one is not None
        with pytest.raises(MediaError, match="outside the table's folder"):
            one.read()


@pytest.mark.parametrize("place", [{"offset": 2, "size": 2}, {"row": 2, "column": "x"}])
@pytest.mark.parametrize("data", [{"bytes": b"abcdef"}, {"array": np.zeros(9, np.float32), "sampling_rate": 16_000}])
def test_what_is_in_memory_has_no_parts(data: dict[str, Any], place: dict[str, Any]) -> None:
    # All of it was used, without a word.
    with pytest.raises(MediaError, match=f"got `{next(iter(place))}`"):
        item_source({"type": "audio", **data, **place})


def test_a_channel_of_an_array() -> None:
    values = np.stack([np.zeros(100), np.ones(100)]).astype(np.float32)
    item = {"type": "audio", "array": values, "sampling_rate": 16_000}
    for channel, level in ((None, 0.5), (0, 0), (1, 1)):
        found = load_audio_item({**item, "channel": channel}, 16_000).values
        np.testing.assert_array_equal(found, np.full(100, level, np.float32))
    assert load_audio_item({**item, "array": values[1], "channel": 0}, 16_000).values.sum() == 100
    for array, channel in ((values, 2), (values[0], 1), (values, -1), (values, True), (values, "left")):
        with pytest.raises(MediaError, match="channel"):
            load_audio_item({**item, "array": array, "channel": channel}, 16_000)
        with pytest.raises(MediaError, match="channel"):
            audio_item_length({**item, "array": array, "channel": channel}, 16_000)


def test_a_file_that_is_missing_is_named_once(folder: Path) -> None:
    for path in (folder / "none.wav", folder / "a.wav" / "b.wav"):
        with pytest.raises(MediaError) as info:
            as_source(path).check("an audio file")
        assert str(info.value) == f"{path}: no such file; check the path"
    with pytest.raises(MediaError, match=r"^[^:]*: expected an audio file, but this is a folder$"):
        as_source(folder).check("an audio file")

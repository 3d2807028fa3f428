"""The `webdataset` dataset against tarfile, which writes the shards and reads them sequentially."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechlmm_core.errors import DataError, MediaError
from speechlmm_core.interfaces.dataset import Selection, datasets
from speechlmm_core.media.audio import load_audio_item
from speechlmm_train.readers.webdataset.config import WebDatasetConfig
from speechlmm_train.readers.webdataset.reader import expand

COLUMNS: dict[str, str | None] = {"audio": "flac", "text": "txt", "speaker": "json.speaker"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sound(seed: int) -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(seed).normal(0, 0.1, 800 + 100 * seed)
    soundfile.write(file, samples, 16_000, format="FLAC")
    return file.getvalue()


def pack(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(numbers: range, folder: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for number in numbers:
        found[f"{folder}{number:04}.flac"] = sound(number)
        found[f"{folder}{number:04}.txt"] = f"wört {number}\n".encode()
        found[f"{folder}{number:04}.json"] = json.dumps({"speaker": f"s{number % 2}"}).encode()
        found[f"{folder}{number:04}.seg.cls"] = str(number).encode()
    return found


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_of_tarfile(tmp_path: Path, form: int) -> None:
    long = "clips/" + "long-ünäme-" * 15
    path = pack(tmp_path / "a.tar", samples(range(3), "x/"), format=form)
    if form != tarfile.USTAR_FORMAT:
        path = pack(tmp_path / "a.tar", {**samples(range(3), "x/"), **samples(range(3, 5), long)}, format=form)
    config = WebDatasetConfig(path=str(path), columns={**COLUMNS, "fields.n": "seg.cls"})
    examples = config.read(tmp_path)
    expected: dict[str, dict[str, Any]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            key, _, ending = member.name.partition(".")
            file = archive.extractfile(member)
            assert file is not None
            expected.setdefault(key, {})[ending] = file.read()
    assert [example.id for example in examples] == list(expected)
    for example, row in zip(examples, expected.values(), strict=True):
        assert example.text == row["txt"].decode().strip()
        assert example.speaker == json.loads(row["json"])["speaker"]
        assert example.fields == {"n": int(row["seg.cls"])}
        item = example.media["audio"]
        with path.open("rb") as file:
            file.seek(item["offset"])
            assert file.read(item["size"]) == row["flac"]
        values, _ = soundfile.read(io.BytesIO(row["flac"]), dtype="float32")
        np.testing.assert_array_equal(load_audio_item(item, 16_000).values, values)
    assert list(pickle.loads(pickle.dumps(examples))) == list(examples)


def test_shards_by_ranges_globs_and_partitions(tmp_path: Path, cache: Path) -> None:
    for number in range(3):
        pack(tmp_path / f"wds/train-{number:03}.tar", samples(range(2 * number, 2 * number + 2)))
    pack(tmp_path / "wds/dev-000.tar", samples(range(9, 10)))
    by_range = WebDatasetConfig(path="wds/train-{000..002}.tar", columns=COLUMNS).read(tmp_path)
    assert [example.text for example in by_range] == [f"wört {number}" for number in range(6)]
    assert by_range.place(3) == f"{tmp_path}/wds/train-001.tar:0003"
    by_glob = WebDatasetConfig(path="wds", files="train-*.tar", columns=COLUMNS)
    assert [example.id for example in by_glob.read(tmp_path)] == [f"{number:04}" for number in range(6)]
    named = WebDatasetConfig(path="wds", files="{partition}-{000..002}.tar", columns={"text": "txt"})
    assert named.partitions(tmp_path) == ["dev", "train"]
    assert len(named.read(tmp_path, Selection("train"))) == 6
    with pytest.raises(DataError, match=r"(?s)2 faults.*no file fits 'dev-001\.tar'.*'dev-002\.tar'"):
        named.read(tmp_path, Selection("dev"))
    assert len(list((cache / "shards").iterdir())) == 3
    assert datasets.get("webdataset") is WebDatasetConfig


def test_ranges() -> None:
    assert expand(["a{08..11}b{0..1}"]) == [f"a{i:02}b{j}" for i in range(8, 12) for j in range(2)]
    assert expand(["{partition}.tar", "x"]) == ["{partition}.tar", "x"]
    for wrong in ("{5..3}", "{0..999999999}", "{0..999}{0..999}"):
        with pytest.raises(DataError, match="is no range of at most"):
            expand([wrong])


def test_the_index_is_kept_until_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    path = pack(tmp_path / "a.tar", samples(range(3)))
    config = WebDatasetConfig(path="a.tar", columns=COLUMNS)
    first = list(config.read(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "TarFile", None)
        assert list(config.read(tmp_path)) == first
    for file in (cache / "shards").iterdir():
        file.write_bytes(b"PK damaged")
    assert list(config.read(tmp_path)) == first
    pack(path, samples(range(4)))
    assert len(config.read(tmp_path)) == 4


def link(name: str, kind: bytes, target: str = "a.flac") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (tarfile.TarInfo("../../etc/a.flac"), r"h\.tar:\.\./\.\./etc/a\.flac: the name leads out"),
        (tarfile.TarInfo("/etc/a.flac"), r"h\.tar:/etc/a\.flac: the name leads out"),
        (link("b.flac", tarfile.SYMTYPE, "/etc/passwd"), r"h\.tar:b\.flac: a link, which has no data"),
        (link("b.flac", tarfile.LNKTYPE), r"h\.tar:b\.flac: a link"),
        (link("b.flac", tarfile.CHRTYPE), r"h\.tar:b\.flac: neither a file nor a folder"),
        (link("b.flac", tarfile.FIFOTYPE), r"neither a file"),
        (tarfile.TarInfo("0000.FLAC"), r"h\.tar:0000\.FLAC: the sample has two members with this ending"),
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, info: tarfile.TarInfo, message: str) -> None:
    path = tmp_path / "h.tar"
    with tarfile.open(path, "w") as archive:
        flac = tarfile.TarInfo("0000.flac")
        flac.size = 3
        archive.addfile(flac, io.BytesIO(b"abc"))
        archive.addfile(info)
    with pytest.raises(DataError, match=message):
        WebDatasetConfig(path=str(path)).read(tmp_path)


@pytest.mark.parametrize("size", [1 << 40, (1 << 62), -5])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_huge_declared_sizes_are_errors(tmp_path: Path, size: int, kind: bytes) -> None:
    info = tarfile.TarInfo("b.flac")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    number = size.to_bytes(12, "big", signed=True)
    header[124:136] = bytes([number[0] | 0x80]) + number[1:] if size > 0 else number
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}".encode() + b"\0 "
    first = pack(tmp_path / "a.tar", {"a.flac": sound(1)}).read_bytes().rstrip(b"\0")
    first += bytes(-len(first) % 512)
    path = tmp_path / "h.tar"
    path.write_bytes(first + bytes(header) + bytes(2048))
    with pytest.raises(DataError, match=r"h\.tar") as caught:
        WebDatasetConfig(path=str(path)).read(tmp_path)
    assert len(str(caught.value)) < 1000


def test_compressed_and_damaged_shards_are_named(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", samples(range(5)))
    content = path.read_bytes()
    packed = tmp_path / "p.tar"
    packed.write_bytes(gzip.compress(content))
    for name, data, message in [
        ("p.tar", packed.read_bytes(), r"p\.tar: a compressed archive.*gunzip"),
        ("e.tar", b"", r"e\.tar: the file is empty"),
        ("n.tar", b"not an archive" * 100, r"n\.tar: not a tar archive"),
        ("z.tar", bytes(1024), "no samples"),
        ("t.tar", content[: len(content) // 3], r"t\.tar:?.*truncated"),
        ("m.tar", content[:512] + content[512:].replace(b"0003.flac", b"0004.flaX"), r"m\.tar: damaged: there is no"),
        ("j.tar", pack(tmp_path / "j", {"a.json": b"{"}).read_bytes(), r"j\.tar:a\.json: bad JSON"),
        ("u.tar", pack(tmp_path / "u", {"a.txt": b"\xff"}).read_bytes(), r"u\.tar:a\.txt: not UTF-8"),
        ("d.tar", pack(tmp_path / "d", {"a.json": b"[" * 99_999}).read_bytes(), r"d\.tar:a\.json: bad JSON"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            list(WebDatasetConfig(path=name).read(tmp_path))
    with pytest.raises(DataError, match=r"(?s)2 faults.*e\.tar.*p\.tar"):
        WebDatasetConfig(path=str(tmp_path), files=["[ep].tar", "e.tar", "p.tar"]).read(tmp_path)


def test_any_truncation_or_bit_flip_is_an_error_or_the_same(tmp_path: Path) -> None:
    content = pack(tmp_path / "a.tar", {**samples(range(3)), "z" * 150 + ".txt": b"x"}).read_bytes()
    generator = np.random.default_rng(0)
    faults = 0
    for number in range(150):
        changed = bytearray(content[: int(generator.integers(0, len(content)))] if number % 3 else content)
        for at in generator.integers(0, max(1, len(changed)), number % 3 * 4 + 1):
            changed[at : at + 1] = bytes([int(generator.integers(0, 256))])
        path = tmp_path / f"{number}.tar"
        path.write_bytes(bytes(changed))
        try:
            for example in WebDatasetConfig(path=str(path), columns={"audio": "flac"}).read(tmp_path):
                load_audio_item(example.media["audio"], 16_000)
        except (DataError, MediaError):
            faults += 1
    assert faults > 80


def test_the_same_key_twice_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "s/a.tar", samples(range(2)))
    pack(tmp_path / "s/b.tar", samples(range(1, 3)))
    with pytest.raises(
        DataError, match=r"s/b\.tar:0001: the id '0001' stands at .*a\.tar:0001 already \(1 such rows\)"
    ):
        WebDatasetConfig(path="s", columns=COLUMNS).read(tmp_path)
    assert len(WebDatasetConfig(path="s", columns={**COLUMNS, "id": None}).read(tmp_path)) == 4

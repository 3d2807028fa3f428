"""Each reader in a specification: what is opened, and headers that are read once, also of parts of files."""

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from speechlmm_core.data.header_cache import HeaderCache
from speechlmm_core.data.index.views import prepared_in
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.errors import DataError, SpeechLMMError
from speechlmm_core.interfaces.dataset import datasets
from speechlmm_core.media import audio
from speechlmm_core.media.audio import load_audio_item
from speechlmm_core.media.source import file_source
from speechlmm_train.prepare.prepare import prepare
from speechlmm_train.prepare.settings import Settings

READERS = ["audiofolder", "lhotse", "parquet", "table", "webdataset"]
LENGTHS = [1600, 3200, 4800]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sound(length: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(length).normal(0, 0.1, length), 16_000, format="FLAC")
    return file.getvalue()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """The same three clips in each layout, under one specification."""
    files = {f"{number}.flac": sound(length) for number, length in enumerate(LENGTHS)}
    for reader in READERS:
        (tmp_path / reader / "train").mkdir(parents=True)
    for name, content in files.items():
        for reader in ("audiofolder", "table", "lhotse"):
            (tmp_path / reader / "train" / name).write_bytes(content)
        (tmp_path / "audiofolder/train" / name).with_suffix(".txt").write_text(f"text {name[0]}")
    lines = ["file\twords", *(f"train/{name}\ttext {name[0]}" for name in files)]
    (tmp_path / "table/train.tsv").write_text("\n".join(lines) + "\n")
    rows = [{"audio": {"bytes": content, "path": name}, "text": f"text {name[0]}"} for name, content in files.items()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet/train/0.parquet")
    with tarfile.open(tmp_path / "webdataset/train/0.tar", "w") as archive:
        for name, content in files.items():
            for member, data in ((name, content), (f"{name[0]}.txt", f"text {name[0]}".encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    with (tmp_path / "lhotse/cuts_train.jsonl").open("w") as file:
        for (name, _), length in zip(files.items(), LENGTHS, strict=True):
            seconds = length / 16_000
            times = {"start": 0.0, "duration": seconds, "channel": 0}
            said = {"id": name, "recording_id": name, **times, "text": f"text {name[0]}", "language": "English"}
            source = {"type": "file", "channels": [0], "source": f"train/{name}"}
            kept = {
                "id": name,
                "sources": [source],
                "sampling_rate": 16_000,
                "num_samples": length,
                "duration": seconds,
            }
            cut = {"id": f"cut-{name}", **times, "supervisions": [said], "recording": kept, "type": "MonoCut"}
            file.write(json.dumps(cut) + "\n")
    own: dict[str, dict[str, Any]] = {
        "table": {"files": "{partition}.tsv", "columns": {"audio": "file", "text": "words"}},
        "parquet": {"columns": {"id": "audio.member", "audio": "audio", "text": "text"}},
        "webdataset": {"files": "{partition}/{0..0}.tar", "columns": {"audio": "flac", "text": "txt"}},
    }
    shared = {"task": "asr", "languages": ["en"]}
    entries = [
        {"name": name, "type": name, "path": name, **shared, "partitions": {"train": {}}, **own.get(name, {})}
        for name in READERS
    ]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    return tmp_path / "spec.yaml"


def test_all_layouts_give_the_same_examples(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_spec(read_spec(spec), base=tmp_path)
    assert [one.dataset for one in opened] == READERS
    items: list[dict[str, Any]] = []
    for one in opened:
        found = [(example.text, example.source_language) for example in one.examples]
        assert found == [(f"text {number}", "en") for number in range(3)], one.name
        media = [example.media["audio"] for example in one.examples]
        for item, length in zip(media, LENGTHS, strict=True):
            values, _ = soundfile.read(io.BytesIO(sound(length)), dtype="float32")
            np.testing.assert_array_equal(load_audio_item(item, 16_000).values, values)
        items += media
    sources = [source for item in items if (source := file_source(item)) is not None]
    assert len(set(sources)) == len(items) == 15
    with ThreadPoolExecutor(2) as pool:
        headers = HeaderCache.open(tmp_path / "headers", "x")
        headers.read(sources, pool)
        assert [headers.length(item, 8_000) for item in items] == [length // 2 for length in LENGTHS] * 5
        headers.save()
        monkeypatch.setattr(audio, "audio_info", None)
        again = HeaderCache.open(tmp_path / "headers", "x")
        again.read(sources, pool)
        assert [again.length(item, 16_000) for item in items] == LENGTHS * 5


def test_relative_paths_are_found_from_anywhere(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A specification and paths that are relative, an index made of them, and another working folder since."""
    monkeypatch.chdir(tmp_path)
    plain = open_spec(read_spec(Path(spec.name)), base=Path())
    settings = Settings("full", max_words_per_minute=10_000, max_characters_per_second=1000)
    prepare(Path(spec.name), index_dir=Path("index"), settings=settings, jobs=0, progress=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    indexed = open_spec(read_spec(spec), base=tmp_path, index_dir=tmp_path / "index")
    for opened in (plain, indexed):
        assert [one.dataset for one in opened] == READERS
        for one in opened:
            for example, length in zip(one.examples, LENGTHS, strict=True):
                assert load_audio_item(example.media["audio"], 16_000).num_samples == length, one.name
    assert all(len(prepared_in(one.examples)) == 1 for one in indexed)


def test_a_manifest_may_name_parts(spec: Path, tmp_path: Path) -> None:
    (tar,) = [one for one in open_spec(read_spec(spec), base=tmp_path) if one.dataset == "webdataset"]
    keys = ("offset", "size", "member")
    lines = [
        {"audio": {"path": "webdataset/train/0.tar", **{key: example.media["audio"][key] for key in keys}}, "text": "x"}
        for example in tar.examples
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = [{"type": "jsonl", "path": "m.jsonl", "task": "asr", "name": "m"}]
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    (opened,) = open_spec(read_spec(tmp_path / "m.yaml"), base=tmp_path)
    for example, length in zip(opened.examples, LENGTHS, strict=True):
        assert load_audio_item(example.media["audio"], 16_000).num_samples == length
    lines[1]["audio"]["size"] = -1  # pyright: ignore[reportIndexIssue]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"m\.jsonl:2: `audio`: `size` must be a whole number, 0 or more, got -1"):
        open_spec(read_spec(tmp_path / "m.yaml"), base=tmp_path)


def test_a_partition_of_another_name_is_named(spec: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(spec.read_text())
    for entry in content["datasets"]:
        entry["partitions"] = {"trian": {}}
    spec.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError) as caught:
        open_spec(read_spec(spec), base=tmp_path)
    for reader in READERS:
        assert any(reader in line and "train" in line for line in str(caught.value).splitlines()), reader


WRONG: list[Any] = [
    None,
    3,
    -1,
    1.5,
    True,
    "",
    "\0",
    "{",
    "}",
    "{}",
    "{a",
    "{0}",
    "{a.b[c}",
    "*",
    "**",
    "/",
    "..",
    "~x/y",
    "[",
    "x" * 5000,
]
WRONG += [
    [],
    {},
    [1],
    [""],
    ["\0"],
    {"a": 1},
    {"a": ["b"]},
    {"": ""},
    {"id": "{"},
    {"a": "\0"},
    {"partition": "x"},
    {"a": {}},
]


@pytest.mark.parametrize("reader", READERS)
def test_every_field_may_be_wrong(spec: Path, tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (entry,) = [one for one in yaml.safe_load(spec.read_text())["datasets"] if one["type"] == reader]
    refused = 0
    fields = [name for name in datasets.get(reader).model_fields if name not in ("type", "hub")]
    for field in fields:
        for wrong in WRONG:
            if field == "path" and wrong in ("/", ".."):
                continue  # folders, of which all below would be looked through
            (tmp_path / "w.yaml").write_text(yaml.safe_dump({"datasets": [{**entry, field: wrong}]}))
            try:
                for one in open_spec(read_spec(tmp_path / "w.yaml"), base=tmp_path):
                    list(one.examples)
            except SpeechLMMError as exc:
                refused += bool(str(exc))
    assert refused > 5 * len(fields)

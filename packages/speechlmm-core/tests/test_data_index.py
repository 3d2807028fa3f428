import json
import logging
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.example import Example
from speechlmm_core.data.index.header import CHECKED_BYTES, IndexHeader
from speechlmm_core.data.index.layout import EXAMPLES, HEADER, Status, part_digest, part_folder
from speechlmm_core.data.index.listed import MANY
from speechlmm_core.data.index.open import index_dir_of, made_by, open_prepared
from speechlmm_core.data.index.prepared import PreparedExamples
from speechlmm_core.data.index.rows import answer_of, decode_example, encode_example, media_of
from speechlmm_core.data.index.state import FileState, content_hash
from speechlmm_core.data.index.write import write_part
from speechlmm_core.data.jsonl.config import JsonlDatasetConfig
from speechlmm_core.data.jsonl.reader import JsonlExamples
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import EVERYTHING, Selection
from speechlmm_core.media.source import MediaSource

READER = JsonlDatasetConfig(path="m.jsonl")


def index_of(base: Path, statuses: list[Status], *, name: str = "m", rooted: bool = True, **header: Any) -> Path:
    """Writes the index of the manifest `m.jsonl` by hand; each line has one medium of a second per line number."""
    examples = JsonlExamples(base / "m.jsonl", check_media=False, check_task=False)
    count = len(examples)
    root = f"{base}/" if rooted else ""
    lines = [encode_example(example, root) for example in examples]
    base.mkdir(exist_ok=True)
    (base / "staged").write_bytes(b"".join(lines))
    paths = [Path(media_of(example)[0]["path"]) for example in examples]
    found = [path.stat() if path.exists() else None for path in paths]
    hashes = [content_hash(MediaSource(path)) if path.exists() else bytes(16) for path in paths]
    columns = {
        "seconds": np.arange(count) + 1.0,
        "words": [len((answer_of(example) or "").split()) for example in examples],
        "characters": np.zeros(count),
        "quality": [np.nan if example.quality is None else example.quality for example in examples],
        "status": np.array(statuses),
        "place_files": np.zeros(count),
        "place_numbers": np.arange(count) + 1,
        "lines": np.cumsum([0, *map(len, lines)]),
        "media_starts": np.arange(count + 1),
        "num_samples": (np.arange(count) + 1) * 16_000,
        "sampling_rates": np.full(count, 16_000),
        "sizes": [one.st_size if one else 0 for one in found],
        "times": [one.st_mtime_ns if one else 0 for one in found],
        "keys": np.arange(count),
        "measured": np.arange(count),
        "peaks": np.full(count, np.nan),
        "clipped": np.full(count, np.nan),
        "hashes": np.frombuffer(b"".join(hashes), np.uint8),
    }
    kept = np.array([status == Status.OK for status in statuses], bool)
    digest = part_digest(name, READER, base, EVERYTHING)
    settings = {
        "sources": (FileState.of(base / "m.jsonl"),),
        "places": (str(base / "m.jsonl"),),
        "root": root,
        **header,
    }
    basic = IndexHeader(name, digest, 0, 0, 0, "fast", "", spec="x.yaml", made_by=made_by(READER), **settings)
    folder = part_folder(base / "x.index", name, digest)
    write_part(folder, basic, columns, base / "staged", kept=kept)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for number in range(5):
        (tmp_path / f"{number}.wav").write_bytes(b"sound %d" % number)
    lines = [{"audio": f"{n}.wav", "text": "wörter " * n + "½", "id": f"é{n}"} for n in range(5)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def opened(base: Path) -> PreparedExamples:
    found = open_prepared(base / "x.index", "m", READER, base, EVERYTHING)
    assert found is not None
    return found


def test_an_index_gives_the_corpus_minus_quarantine(corpus: Path) -> None:
    index_of(corpus, [Status.OK, Status.SILENT, Status.OK, Status.OK, Status.DUPLICATE], quarantined={"silent": 1})
    found = opened(corpus)
    expected = [READER.read(corpus)[i] for i in (0, 2, 3)]
    assert list(found) == expected
    assert [found.place(i) for i in range(3)] == [f"{corpus / 'm.jsonl'}:{n}" for n in (1, 3, 4)]
    assert found.seconds.tolist() == [1, 3, 4]
    assert found.num_words.tolist() == [1, 3, 4]
    assert found.rows.tolist() == [0, 2, 3]
    assert found.total == 5
    assert found.quarantined == {"silent": 1}
    assert found.headers(1) == [(48_000, 16_000)]
    index_of(corpus, [Status.OK] * 5, rooted=False)
    assert list(opened(corpus)) == list(READER.read(corpus))
    assert isinstance(found.seconds.base, np.memmap) or isinstance(found.seconds, np.memmap)
    index_of(corpus, [Status.OK, Status.SILENT, Status.OK, Status.OK, Status.DUPLICATE])
    found = opened(corpus)
    copy = pickle.loads(pickle.dumps(found))
    assert list(copy) == expected
    assert len(pickle.dumps(found)) < 5000


def test_what_was_not_prepared_is_none(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert open_prepared(corpus / "x.index", "m", READER, corpus, EVERYTHING) is None
    index_of(corpus, [Status.OK] * 5, limit=5)
    assert open_prepared(corpus / "x.index", "m", READER, corpus, Selection(limit=4)) is not None
    assert open_prepared(corpus / "x.index", "m", READER, corpus, EVERYTHING) is None
    assert open_prepared(corpus / "x.index", "m", READER, corpus, Selection(limit=6)) is None
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert open_prepared(corpus / "x.index", "m", READER, corpus, Selection(partition="dev")) is None
    assert "m: prepared with other settings of its reader" in caplog.text
    assert index_dir_of(Path("a/x.yaml")) == Path("a/x.index")


def test_a_manifest_that_changed_is_named(corpus: Path) -> None:
    index_of(corpus, [Status.OK] * 5)
    manifest = corpus / "m.jsonl"
    os.utime(manifest, (1, 1))  # touched, but the same
    assert len(opened(corpus)) == 5
    text = manifest.read_text()
    manifest.write_text(text.replace("1.wav", "2.wav"))
    with pytest.raises(DataError, match=r"m\.jsonl has changed since.*speechlmm-train prepare x\.yaml"):
        opened(corpus)
    manifest.write_text(text + "\n")
    with pytest.raises(DataError, match=r"m\.jsonl has changed: \d+ bytes, \d+ when"):
        opened(corpus)
    manifest.unlink()
    with pytest.raises(DataError, match=r"m\.jsonl does not exist any more"):
        opened(corpus)


def test_media_that_changed_are_named_when_they_are_asked_for(corpus: Path) -> None:
    index_of(corpus, [Status.OK] * 5)
    found = opened(corpus)
    os.utime(corpus / "2.wav", (1, 1))  # touched, but the same
    assert found[2].id == "é2"
    (corpus / "3.wav").write_bytes(b"SOUND 3")
    with pytest.raises(DataError, match=r"3\.wav has changed since it was prepared.*prepare x\.yaml.*only what is new"):
        pickle.loads(pickle.dumps(found))[3]
    with found.unchecked():
        assert found[3].id == "é3"
    (corpus / "4.wav").unlink()
    with pytest.raises(DataError, match=r"4\.wav does not exist any more"):
        pickle.loads(pickle.dumps(found))[4]
    with pytest.raises(DataError, match=r"\.wav"):  # some are looked at on opening
        opened(corpus)


def test_an_index_prepared_anew_is_not_mixed_with_the_old_one(corpus: Path) -> None:
    folder = index_of(corpus, [Status.OK] * 5)
    state = pickle.dumps(opened(corpus))
    (folder / "sizes-x.npy").write_bytes(b"counted")
    index_of(corpus, [Status.OK] * 5)
    assert len(pickle.loads(state)) == 5  # it was written again as it was
    assert (folder / "sizes-x.npy").read_bytes() == b"counted"
    index_of(corpus, [Status.OK] * 4 + [Status.SILENT])
    assert not (folder / "sizes-x.npy").exists()
    with pytest.raises(DataError, match="was prepared anew while it was in use; start again"):
        pickle.loads(state)


def test_damaged_files_are_named(corpus: Path) -> None:
    folder = index_of(corpus, [Status.OK] * 5)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 4
        for broken in (whole[:-1], bytes(flipped), b""):
            file.write_bytes(broken)
            with pytest.raises(DataError, match=rf"{file.name}: damaged index .*; run `speechlmm-train prepare"):
                opened(corpus)
        file.unlink()
        if file.name == HEADER:
            assert open_prepared(corpus / "x.index", "m", READER, corpus, EVERYTHING) is None
        else:
            with pytest.raises(DataError, match="damaged index"):
                opened(corpus)
        file.write_bytes(whole)
    assert len(opened(corpus)) == 5


def test_damage_that_only_shows_later_is_named(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = index_of(corpus, [Status.OK] * 5)
    monkeypatch.setattr("speechlmm_core.data.index.header.CHECKED_BYTES", 0)  # as if all files were large
    found = opened(corpus)
    (folder / EXAMPLES).write_bytes(b"[" * (folder / EXAMPLES).stat().st_size)
    with pytest.raises(DataError, match="row 1 is no example"):
        found[1]
    np.save(folder / "lines.npy", np.full(6, -5))
    with pytest.raises(DataError, match="row 0 is no example"):
        opened(corpus)
    assert CHECKED_BYTES


@pytest.mark.parametrize("text", ["", "[]", "null", '{"version": 1}', '{"version": 1, "checksum": "x"}', "[" * 10_000])
def test_a_header_that_is_none_is_damaged(corpus: Path, text: str) -> None:
    folder = index_of(corpus, [Status.OK] * 5)
    (folder / HEADER).write_text(text)
    with pytest.raises(DataError, match="damaged index"):
        opened(corpus)


def test_an_index_of_another_version_is_refused(corpus: Path) -> None:
    folder = index_of(corpus, [Status.OK] * 5)
    header = json.loads((folder / HEADER).read_text())
    (folder / HEADER).write_text(json.dumps({**header, "version": 2}))
    with pytest.raises(DataError, match=r"version 2, and this release reads version 1"):
        opened(corpus)
    shutil.rmtree(folder)
    index_of(corpus, [Status.OK] * 5, **{})
    (folder / HEADER).unlink()
    assert open_prepared(corpus / "x.index", "m", READER, corpus, EVERYTHING) is None


def test_examples_that_hold_bytes_come_from_the_reader(corpus: Path) -> None:
    index_of(corpus, [Status.OK, Status.SILENT, Status.OK, Status.OK, Status.OK], stored=False)
    assert list(opened(corpus)) == [READER.read(corpus)[i] for i in (0, 2, 3, 4)]
    with pytest.raises(TypeError):
        encode_example(Example(media={"audio": {"type": "audio", "bytes": b"x"}}))


def test_an_index_takes_at_most_200_bytes_a_row_besides_text(tmp_path: Path) -> None:
    count = 20_000
    with (tmp_path / "m.jsonl").open("w") as file:
        for n in range(count):
            line = {"audio": f"{n % 7}.wav", "text": f"the text of number {n}", "id": f"utt-{n}", "language": "en"}
            file.write(json.dumps(line) + "\n")
    folder = index_of(tmp_path, [Status.OK] * count)
    text = sum(
        len(part.encode())
        for example in JsonlExamples(tmp_path / "m.jsonl", check_media=False, check_task=False)
        for part in (example.text or "", example.id)
    )
    taken = sum(file.stat().st_size for file in folder.iterdir())
    assert (taken - text) / count <= 200


texts = st.text(max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
paths = texts | st.sampled_from(["/a/b", "/", "a", "ab", "/a/"])
items = st.fixed_dictionaries(
    {"type": st.sampled_from(["audio", "video", "x"]), "path": paths}, optional={"start": st.floats(0, 9)}
)
contents = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}) | items, max_size=3)
messages = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=contents), max_size=3
)


@given(
    st.sampled_from(["", "/", "a", "/a/"]),
    st.builds(
        Example,
        id=texts,
        task=texts,
        media=st.dictionaries(st.sampled_from(["audio", "video"]), items, max_size=2),
        text=st.none() | texts,
        source_language=st.none() | texts,
        quality=st.none() | st.floats(allow_nan=False),
        fields=st.dictionaries(texts, values, max_size=3),
        messages=st.none() | messages,
        duration=st.none() | st.floats(allow_nan=False),
    ),
)
def test_examples_survive_their_lines(root: str, example: Example) -> None:
    line = encode_example(example, root)
    assert line.count(b"\n") == 1
    assert decode_example(line, root) == example


def test_lone_surrogates_survive() -> None:
    example = Example.model_construct(id="\udce9", media={"audio": {"type": "audio", "path": "/a/\udcff\0.wav"}})
    again = decode_example(encode_example(example))
    assert (again.id, again.media) == (example.id, example.media)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_part_that_is_prepared_again_while_it_is_in_use(corpus: Path, pickled: bool) -> None:
    index_of(corpus, [Status.OK] * 5)
    old = opened(corpus)
    if pickled:
        old = pickle.loads(pickle.dumps(old))
    lines = (corpus / "m.jsonl").read_text().splitlines()
    (corpus / "m.jsonl").write_text("\n".join(lines[:0:-1]) + "\n")
    index_of(corpus, [Status.DUPLICATE, *[Status.OK] * 3])
    # All of it is as it was, also what is first asked for now.
    assert [one.id for one in old] == ["é0", "é1", "é2", "é3", "é4"]
    assert list(old.num_words) == [1, 2, 3, 4, 5]
    assert list(old.rows) == [0, 1, 2, 3, 4]
    assert [old.headers(index) for index in range(5)] == [[(16_000 * n, 16_000)] for n in range(1, 6)]
    assert old.place(4).endswith("m.jsonl:5")
    assert [one.id for one in opened(corpus)] == ["é3", "é2", "é1"]


def test_a_part_that_is_prepared_again_while_it_is_opened(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index_of(corpus, [Status.OK] * 5)
    real = np.load

    def meanwhile(*args: Any, **options: Any) -> Any:
        monkeypatch.undo()
        index_of(corpus, [Status.DUPLICATE, *[Status.OK] * 4])
        return real(*args, **options)

    monkeypatch.setattr(np, "load", meanwhile)
    with pytest.raises(DataError, match="was prepared anew while it was opened; start again"):
        opened(corpus)
    assert len(opened(corpus)) == 4


def test_a_table_of_many_files_that_list_examples(corpus: Path) -> None:
    names = ["a.txt", "ö ü.txt", "new\nline.txt", os.fsdecode(b"\xff.txt"), *(f"d/{n}.txt" for n in range(MANY))]
    (corpus / "texts" / "d").mkdir(parents=True)
    paths = [corpus / "texts" / name for name in names]
    for path in paths:
        path.write_text(path.stem, errors="surrogateescape")
    sources = tuple(FileState.of(path, hashed=number != 1) for number, path in enumerate(paths))
    folder = index_of(corpus, [Status.OK] * 5, sources=sources)
    header = IndexHeader.read(folder)
    assert header.sources == ()
    assert len(opened(corpus)) == 5
    for path in (paths[0], paths[2], paths[3], paths[-1]):
        os.utime(path, (1, 1))
    assert len(opened(corpus)) == 5
    for path in paths[1:4]:
        before = path.stat()
        os.utime(path, (1, 1))
        if path != paths[1]:  # that is not hashed, and has changed where its time has
            path.write_bytes(path.read_bytes()[: before.st_size - 1] + b"?")
        with pytest.raises(DataError, match=f"^m: {re.escape(str(path))} has changed since it was prepared; run"):
            opened(corpus)
        path.write_text(path.stem, errors="surrogateescape")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert len(opened(corpus)) == 5
    (folder / "listed.txt").write_bytes((folder / "listed.txt").read_bytes() + b"\0x")
    with pytest.raises(DataError, match=r"listed\.txt: damaged index"):
        opened(corpus)

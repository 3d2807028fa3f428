"""The `table` dataset against Python's own csv, json and gzip."""

import csv
import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection, datasets
from speechlmm_train.readers.table.config import TableDatasetConfig
from speechlmm_train.readers.table.nested import rows

TEXT = {"text": "sentence", "id": "name"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def records(path: Path, **options: Any) -> list[dict[str, Any]]:
    found = TableDatasetConfig(path=str(path), **options).records(path.parent, Selection())
    return [dict(found.record(index)) for index in range(len(found))]


def test_it_is_registered() -> None:
    assert datasets.get("table") is TableDatasetConfig
    with pytest.raises(DataError, match="needs the `path`"):
        TableDatasetConfig().read(Path())


def test_tsv_becomes_examples(tmp_path: Path) -> None:
    write(tmp_path / "cv/de/dev.tsv", 'client_id\tpath\tsentence\nx\ta.mp3\t"Nein", sagt sie.\n\ny\tb.mp3\tJa.\n')
    write(tmp_path / "cv/de/train.tsv", "client_id\tpath\tsentence\nz\tc.mp3\tGut.\n")
    write(tmp_path / "cv/fr/dev.tsv", "client_id\tpath\tsentence\nz\td.mp3\tOui.\n")
    config = TableDatasetConfig(
        path="cv",
        files="{language}/{partition}.tsv",
        media_root="{language}/clips",
        columns={
            "id": "path",
            "audio": "path",
            "text": "sentence",
            "speaker": "client_id",
            "fields.from": "{partition}",
        },
    )
    examples = config.read(tmp_path, Selection("dev", "de"))
    assert [example.id for example in examples] == ["a.mp3", "b.mp3"]
    assert examples[0].text == '"Nein", sagt sie.'
    assert examples[0].media == {"audio": {"type": "audio", "path": str(tmp_path / "cv/de/clips/a.mp3")}}
    assert (examples[0].source_language, examples[0].speaker, examples[0].fields) == ("de", "x", {"from": "dev"})
    assert examples.place(1) == f"{tmp_path}/cv/de/dev.tsv:4"
    everything = config.read(tmp_path)
    assert [(one.id, one.source_language) for one in everything] == [
        ("a.mp3", "de"),
        ("b.mp3", "de"),
        ("c.mp3", "de"),
        ("d.mp3", "fr"),
    ]
    assert config.partitions(tmp_path) == ["dev", "train"]
    assert [one.id for one in pickle.loads(pickle.dumps(everything))] == [one.id for one in everything]
    with pytest.raises(DataError, match=r"no file fits 'de/test\.tsv'; partitions that are there: dev, train"):
        config.read(tmp_path, Selection("test", "de"))


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=8), st.sampled_from([",", ";", "\t"]))
def test_csv_is_read_as_pythons_module_reads_it(tmp_path_factory: Any, table: list[list[str]], delimiter: str) -> None:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([["a", "b"], *table])
    path = write(tmp_path_factory.mktemp("csv") / "t.csv", file.getvalue())
    found = records(path, delimiter=delimiter)
    with path.open(newline="", encoding="utf-8") as handle:
        expected = [{k: v or None for k, v in row.items()} for row in csv.DictReader(handle, delimiter=delimiter)]
    assert found == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8))
def test_unquoted_lines_are_split_at_tabs(tmp_path_factory: Any, table: list[tuple[str, str]]) -> None:
    clean = [tuple(cell.replace("\n", " ").replace("\t", " ") for cell in row) for row in table]
    text = "".join("x\t" + "\t".join(row) + "\n" for row in clean)
    path = write(tmp_path_factory.mktemp("tsv") / "t.tsv", "n\ta\tb\n" + text)
    assert [(row["a"] or "", row["b"] or "") for row in records(path)] == clean


def test_first_lines_and_column_names(tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt", "\ufeffspk-1 HELLO THERE WORLD\nspk-2 YES\n")
    names = {"column_names": ["id", "words"], "delimiter": " "}
    assert records(path, **names) == [{"id": "spk-1", "words": "HELLO THERE WORLD"}, {"id": "spk-2", "words": "YES"}]
    assert records(path, **names, header=True) == [{"id": "spk-2", "words": "YES"}]
    assert records(path) == [{"text": "spk-1 HELLO THERE WORLD"}, {"text": "spk-2 YES"}]
    assert [row["words"] for row in records(write(tmp_path / "u.csv", "a,b\n"), column_names=["id", "words"])] == ["b"]
    index = write(tmp_path / "i.csv", ",b\r\n0,x\r\n")
    assert records(index) == [{"column_1": "0", "b": "x"}]
    latin = write(tmp_path / "l.tsv", "a\tb\nK\xe4se\t1\n".encode("latin-1"))
    assert records(latin, encoding="latin-1") == [{"a": "Käse", "b": "1"}]


def test_parts_and_where(tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt", "12_34_5\tone\n6_7_8\ttwo\n9_9_9\tthree\n")
    options: dict[str, Any] = {
        "column_names": ["id", "text"],
        "delimiter": "\t",
        "parts": {"id": "{speaker}_{book}_{n}"},
        "where": {"speaker": ["12", "9"]},
    }
    assert [(row["speaker"], row["book"], row["n"], row["text"]) for row in records(path, **options)] == [
        ("12", "34", "5", "one"),
        ("9", "9", "9", "three"),
    ]
    years = write(tmp_path / "y.jsonl", '{"id": "20090112-x"}\n')
    assert records(years, parts={"id": "{year:4}{month:2}{rest}"})[0]["month"] == "01"
    with pytest.raises(DataError, match=r"no rows with \{'speaker': 'z'\}"):
        records(path, **{**options, "where": {"speaker": "z"}})
    with pytest.raises(DataError, match=r"t\.txt:1: `parts\.text` does not fit 'one'"):
        records(path, **{**options, "parts": {"text": "{a}-{b}"}})


SQUAD = {
    "version": "1",
    "data": [
        {
            "title": "A",
            "paragraphs": [
                {"context": "c1", "qas": [{"id": "q1", "answers": [{"text": "x"}]}, {"id": "q2", "answers": []}]},
                {"context": "c2", "qas": [{"id": "q3", "answers": [{"text": "y"}]}]},
            ],
        },
        {"title": "B", "paragraphs": [{"context": "c3", "qas": []}]},
    ],
}


def test_nested_json(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", json.dumps(SQUAD))
    columns = {
        "id": "id",
        "instruction": "id",
        "text": "answers.0.text",
        "source_text": "paragraphs.context",
        "fields.title": "data.title",
        "fields.version": "version",
    }
    config = TableDatasetConfig(
        path=str(tmp_path), files="{partition}.json", record_path="data.paragraphs.qas", columns=columns
    )
    examples = config.read(tmp_path, Selection("train"))
    expected = []
    for article in SQUAD["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answer = qa["answers"][0]["text"] if qa["answers"] else None
                expected.append((qa["id"], answer, paragraph["context"], article["title"]))
    assert [(e.id, e.text, e.source_text, e.fields["title"]) for e in examples] == expected
    assert examples[0].fields["version"] == "1"
    with pytest.raises(DataError, match=r"holds one object \(keys: version, data\); name its rows by `record_path`"):
        records(path)
    with pytest.raises(DataError, match="there is no 'paragraph'"):
        records(path, record_path="data.paragraph")


def test_lists_and_objects_of_objects(tmp_path: Path) -> None:
    line = {"slurp_id": 7, "sentence": "wake me", "recordings": [{"file": "a.flac"}, {"file": "b.flac"}]}
    path = write(tmp_path / "t.jsonl", json.dumps(line) + "\n\n" + json.dumps({**line, "recordings": []}) + "\n")
    assert [(row["file"], row["sentence"]) for row in records(path, record_path="recordings")] == [
        ("a.flac", "wake me"),
        ("b.flac", "wake me"),
    ]
    meetings = {"m1": {"n": 1}, "m2": {"n": 2}}
    assert records(write(tmp_path / "m.json", json.dumps(meetings)), record_path="*") == [
        {"key": "m1", "n": 1},
        {"key": "m2", "n": 2},
    ]
    assert records(write(tmp_path / "l.json", '[{"a": 1}, {"a": 2, "b": null}]')) == [{"a": 1}, {"a": 2, "b": None}]
    assert list(rows([{"x": [1, 2]}], "x")) == [{"x": 1}, {"x": 2}]


def test_compressed_tables_are_unpacked_once(tmp_path: Path, cache: Path) -> None:
    lines = [{"n": number, "t": "ä" * number} for number in range(50)]
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    assert records(path) == lines
    (unpacked,) = (cache / "unpacked").iterdir()
    before = unpacked.stat().st_mtime_ns
    assert records(path)[3] == lines[3]
    assert unpacked.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"t\.jsonl\.gz: truncated or damaged"):
        records(path)
    assert len(list((cache / "unpacked").iterdir())) == 1


def test_a_bomb_is_refused(tmp_path: Path, cache: Path) -> None:
    with gzip.open(tmp_path / "bomb.tsv.gz", "wb", compresslevel=9) as file:
        for _ in range(90):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match=r"bomb\.tsv\.gz: unpacks to more than 64 MiB"):
        records(tmp_path / "bomb.tsv.gz")
    assert not list((cache / "unpacked").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "a\tb\n1\t2\n1\t2\t3\n", r"t\.tsv:3: expected 2 columns \(a, b\), got 3"),
        ("t.csv", "a,b\n1,2\n3\n", r"t\.csv:3: expected 2 columns"),
        ("t.csv", 'a,b\n1,"2\n3,4\n', r"t\.csv:\d: no CSV: .*does a quote lack its end"),
        ("t.csv", "a,b\n1," + "x" * 10_000_000 + "\n", r"t\.csv:2: no CSV: field larger than field limit"),
        ("t.tsv", "a\tb\n1\t" + "x" * 10_000_000 + "\n", r"t\.tsv:2: column 'b' has 10000000 characters"),
        ("t.tsv", "a\tb\n1\t\0\n", r"t\.tsv:2: a NUL byte"),
        ("t.tsv", "a\tb\n1\t2\n".encode("utf-16"), r"t\.tsv:1: UTF-16"),
        ("t.tsv", b"a\tb\n1\t\xe4\n", r"t\.tsv:2: not UTF-8 \(.* at byte 2\)"),
        ("t.tsv", b"a\xe4\tb\n1\t2\n", r"t\.tsv:1: not UTF-8"),
        ("t.csv", b"a,b\n1,2\n\xff,3\n", r"t\.csv:3: not UTF-8"),
        ("t.tsv", "a\ta\n1\t2\n", r"t\.tsv:1: the first line names the column 'a' twice"),
        ("t.tsv", "", r"t\.tsv:1: the table is empty"),
        ("t.tsv", "a\tb\n", "no rows"),
        ("t.jsonl", '{"a": 1}\n[1]\n', r"t\.jsonl:2: expected a JSON object, got \[1\]"),
        ("t.jsonl", '{"a": 1}\n{"a": 1\n', r"t\.jsonl:2: bad JSON: .* at column"),
        ("t.jsonl", '{"a": "\\ud800"}\n', r"t\.jsonl:1: half a character"),
        ("t.jsonl", "[" * 100_000 + "\n", r"t\.jsonl:1: bad JSON"),
        ("t.jsonl", '{"a": ' + "9" * 5000 + "}\n", r"t\.jsonl:1: bad JSON"),
        ("t.json", '[{"a": 1},\n 2]', r"t\.json: expected objects as rows, got 2"),
        ("t.json", '[{"a": 1},\n{2]', r"t\.json:2: bad JSON"),
        ("t.json", '"x"', "expected objects as rows"),
        ("t.json", b"\xff\xfe[", "not UTF-8"),
        ("t.json", "[" * 100_000, "bad JSON"),
        ("t.json", '[{"a": "\\udc00"}]', "half a character"),
        ("t.xyz", "a", "give its `format`"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        records(path)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": "{partition.tsv"}, "no file fits"),
        ({"files": "{}.tsv"}, "is no placeholder"),
        ({"files": "../{partition}.tsv"}, "must lie below"),
        ({"files": "/etc/*.tsv"}, "must lie below"),
        ({"files": []}, "expected a table, or a folder with its `files`"),
        ({"encoding": "utf-16"}, "`encoding` 'utf-16'"),
        ({"encoding": "no such"}, "`encoding` 'no such'"),
        ({"encoding": "zlib"}, "`encoding` 'zlib'"),
        ({"quoting": True, "delimiter": "::"}, "`delimiter` of one character"),
        ({"parts": {"a": "x"}}, "names no part"),
        ({"parts": {"a": "{x}{x}"}}, "a name of its own"),
        ({"header": False}, "name its columns by `column_names`"),
        ({"media_root": "{language}/clips"}, "neither the files' names nor the selection tell 'language'"),
        ({"where": {"z": "1"}}, "there is no column 'z'"),
        ({"columns": {"text": "c"}}, "there is no column 'c'"),
        ({"columns": {"id": "a"}}, r"train\.tsv:3: the id '1' stands at .*train\.tsv:2 already \(1 such rows\)"),
        ({"columns": {"id": "{a}"}}, "the id '1' stands at"),
        ({"path": "~no-such-user-here/x"}, "no such user"),
        ({"path": "a\0b"}, "needs the `path`"),
        ({"path": "nowhere"}, "does not exist"),
    ],
)
def test_wrong_options_are_explained(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write(tmp_path / "train.tsv", "a\tb\n1\t2\n1\t3\n")
    with pytest.raises(DataError, match=message):
        TableDatasetConfig(**{"path": str(tmp_path), "files": "{partition}.tsv", **options}).read(tmp_path)


def test_names_of_the_corpus(tmp_path: Path) -> None:
    write(tmp_path / "mls_german/dev/transcripts.txt", "1_2_3\thallo\n")
    config = TableDatasetConfig(
        path=str(tmp_path),
        files="mls_{language}/{partition}/transcripts.txt",
        column_names=["id", "text"],
        delimiter="\t",
        language_names={"de": "german"},
        partition_names={"validation": "dev"},
        columns={"id": "id", "text": "text"},
    )
    assert config.partitions(tmp_path) == ["validation"]
    (example,) = config.read(tmp_path, Selection("validation", "de"))
    assert example.source_language == "de"
    assert config.read(tmp_path).example(0).source_language == "de"


def test_a_changed_table_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "a\tb\n1\t2\n")
    examples = TableDatasetConfig(path=str(path), columns={"text": "b"}).read(tmp_path)
    path.write_text("a\tb\n1\t2\n3\t4\n")
    with pytest.raises(DataError, match="was changed after it was opened"):
        examples[0]


def test_damaged_tables_never_crash(tmp_path: Path) -> None:
    file = io.StringIO()
    csv.writer(file).writerows([["id", "b"], *([str(n), 'x "y",\nz'] for n in range(30))])
    packed = gzip.compress(file.getvalue().encode())
    generator = np.random.default_rng(0)
    faults: list[str] = []
    for number in range(80):
        content = bytearray(packed if number % 2 else file.getvalue().encode())
        for at in generator.integers(0, len(content), 3):
            content[at] = int(generator.integers(0, 256))
        path = write(tmp_path / (f"{number}.csv.gz" if number % 2 else f"{number}.csv"), bytes(content))
        try:
            examples = TableDatasetConfig(path=str(path), columns={"id": "id"}).read(tmp_path)
            assert len(list(examples)) == len(examples)
        except DataError as exc:
            faults.append(str(exc))
    assert len(faults) > 20
    assert [fault for fault in faults if "csv" not in fault] == []

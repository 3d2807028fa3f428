"""Every field of a specification wrong in turn: what comes of it is a line for the user, and nothing else."""

import copy
import datetime
import json
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechlmm_core.data.spec.entries import dataset_spec
from speechlmm_core.data.spec.entry_faults import SpecFaults
from speechlmm_core.data.spec.file import parse_lists, read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.data.spec.schema import SpecFile
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.registry import Registry
from speechlmm_core.schema import export_json_schema

SCHEMA = export_json_schema(SpecFile)
VALID: dict[str, Any] = {
    "datasets": [
        "a.jsonl",
        {
            "type": "jsonl",
            "path": "{partition}.jsonl",
            "name": "own",
            "task": {"type": "st", "prompt_languages": ["en"], "num_few_shots": 0},
            "task_options": {"system": "Listen."},
            "languages": ["en-de", {"source": "en", "target": "fr"}],
            "columns": {"text": "words", "fields.x": "=y", "transcript": None},
            "weight": 2,
            "amount": 10,
            "max_duration": 30,
            "partitions": {
                "a": {
                    "amount": ":100%",
                    "destination": "eval",
                    "min_duration": 0.5,
                    "max_duration": 20,
                    "min_num_words": 1,
                    "max_num_words": 100,
                    "min_quality": 0.1,
                }
            },
        },
        {"JSONL": {"datapath": "a.jsonl", "task": "ASR", "additional_args": {"system": "x"}, "languages": "all"}},
    ],
    "train": ["a.jsonl"],
    "eval": "a.jsonl",
}
BAD: list[Any] = [
    *(None, True, False, 0, -1, 10**30, 10**400, 1e308, -0.5, math.inf, -math.inf, math.nan),
    *("", " ", "x" * 5000, "\0", "\ud800", "${}", "${oc.env:}", "${NO_SUCH}", "${a.b}", "{", "{}", "{0}", "a:b", "%"),
    *([], [[]], [None], [{}], {}, {"": 1}, {"type": 3}, {"type": "st"}, {"a": {"b": {}}}, {1: 2}, {None: None}),
    *(datetime.date(2020, 1, 1), b"bytes", {1, 2}, ("en",), object()),
]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a document."""
    yield path
    if isinstance(node, dict | list):
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(inner, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    whole = copy.deepcopy(document)
    node = whole
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    line = {
        "audio": "a.wav",
        "text": "x",
        "words": "y",
        "transcript": "z",
        "language": "en",
        "duration": 1,
        "quality": 1,
    }
    (path / "a.jsonl").write_text((json.dumps(line) + "\n") * 5)
    (path / "a.wav").write_bytes(b"RIFF")
    return path


@pytest.fixture(autouse=True, scope="module")
def _known_components() -> Iterator[None]:
    """What is installed, looked up once and not for each of thousands of documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "entry_points", lru_cache(Registry.entry_points))
        yield


def test_no_document_is_too_strange(folder: Path) -> None:
    assert all(check(value, folder) for value in BAD)


def check(document: Any, folder: Path) -> list[str]:
    """Parses a document and, where that succeeds, opens it; returns the lines of what is wrong."""
    faults = SpecFaults()
    specs = parse_lists(document, faults)
    if not faults.lines:
        try:
            open_spec(specs, base=folder)
        except (DataError, ConfigError) as exc:
            return str(exc).splitlines()
    assert all(line and "\n" not in line and len(line) < 4000 for line in faults.lines), faults.lines
    return faults.lines


def test_the_document_is_right(folder: Path) -> None:
    assert check(VALID, folder) == []
    jsonschema.validate(VALID, SCHEMA)
    (folder / "spec.yaml").write_text(yaml.safe_dump(VALID))
    assert [spec.name for spec in read_spec(folder / "spec.yaml").datasets][1] == "own"


@pytest.mark.parametrize("path", [path for path in places(VALID) if path], ids=lambda path: ".".join(map(str, path)))
def test_every_field_wrong_in_turn(folder: Path, path: tuple[Any, ...]) -> None:
    for value in BAD:
        for line in check(replaced(VALID, path, value), folder):
            assert "Traceback" not in line


@pytest.mark.parametrize("path", [path for path in places(VALID) if path and isinstance(path[-1], str)])
def test_every_key_mistyped_in_turn(folder: Path, path: tuple[Any, ...]) -> None:
    document = copy.deepcopy(VALID)
    node = document
    for key in path[:-1]:
        node = node[key]
    node[f"{path[-1]}x"] = node.pop(path[-1])
    free = {"partitions", "columns"}
    lines = check(document, folder)
    if len(path) < 2 or path[-2] not in free:
        assert any(f"{path[-1]}x" in line for line in lines), lines


def properties() -> list[tuple[int, str]]:
    """Fields that the schema knows, by the form of the entry."""
    options = SCHEMA["$defs"]["dataset_entry"]["anyOf"]
    return [(at, name) for at, option in enumerate(options) for name in option.get("properties", {})]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_duration", False), ("weight", True), ("min_num_words", True), ("min_quality", "1"), ("task", {})],
)
def test_what_the_schema_refuses_and_the_parser_took(folder: Path, field: str, value: Any) -> None:
    (line,) = check({"datasets": [{"type": "jsonl", "path": "a.jsonl", field: value}]}, folder)
    assert field in line


def test_a_key_with_the_end_of_a_line_makes_no_second_line(folder: Path) -> None:
    assert check({"datasets": [{"type": "jsonl", "path": "a.jsonl", "amount": {"\n": "\0"}}]}, folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(properties()), value=ANYTHING)
def test_fields_of_the_schema_take_anything(folder: Path, field: tuple[int, str], value: Any) -> None:
    option = SCHEMA["$defs"]["dataset_entry"]["anyOf"][field[0]]
    entry = {"type": "jsonl", "path": "a.jsonl"} if "preset" not in option["properties"] else {"preset": "none"}
    lines = check({"datasets": [{**entry, field[1]: value}]}, folder)
    refused = not jsonschema.Draft202012Validator({**SCHEMA, **option}).is_valid({**entry, field[1]: value})
    # What the schema refuses, so does the parser; null stands for a field that is left out.
    if refused and value is not None and entry.get("type") == option["properties"].get("type", {}).get("const"):
        assert lines, (field, value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200) | st.text(alphabet="datse: -{}[]&*!<>|'\"\n%@`x1,?#~", max_size=80).map(str.encode))
def test_a_file_of_anything(folder: Path, raw: bytes) -> None:
    path = folder / "any.yaml"
    path.write_bytes(raw)
    with pytest.raises(DataError):
        read_spec(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_a_few_bytes_changed(folder: Path, data: st.DataObject) -> None:
    raw = bytearray(yaml.safe_dump(VALID).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "changed.yaml"
    path.write_bytes(raw)
    try:
        open_spec(read_spec(path), base=folder)
    except (DataError, ConfigError):
        return


@pytest.mark.parametrize("entry", [None, 3, [], {}, "", " ", {"a": 1, "b": 2}, {"type": None}, {"preset": None}])
def test_what_is_no_entry(entry: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        dataset_spec(entry)

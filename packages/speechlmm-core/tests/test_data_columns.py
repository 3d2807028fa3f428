"""Templates of columns, which fill in values and do nothing else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.data.columns import ColumnMap
from speechlmm_core.errors import DataError


def value(template: str, record: dict[str, Any], **constants: str) -> Any:
    return ColumnMap({"id": template}, constants=constants).value("id", record)


@pytest.mark.parametrize(
    "template",
    [
        "{file!z}",
        "{file!r}",
        "{file!s:x}",
        "{file:999999999d}",
        "{file:>2000000000}",
        "{file:{file}}",
        "{f:}",
        "a{f!a}b",
    ],
)
def test_braces_hold_a_name_and_no_format(template: str) -> None:
    if template == "{f:}":  # an empty format is none
        assert value(template, {"f": 1}) == "1"
        return
    with pytest.raises(DataError, match=r"columns\.id: .* has a format in .*; braces hold a column's name and no more"):
        ColumnMap({"id": template})


def test_no_attribute_is_looked_up() -> None:
    for name in ("file.__class__", "file.upper", "file[0]"):
        with pytest.raises(DataError, match="there is no column"):
            value(f"{{{name}}}", {"file": "a"})


def test_paths_into_nested_columns() -> None:
    record = {"speaker": {"id": 7, "names": ["ann", "b"]}, "a.b": "flat", "none": None}
    assert value("{speaker.id}/{speaker.names.1}-{a.b}", record) == "7/b-flat"
    assert value("{{x}}{a.b}{partition}", record, partition="dev") == "{x}flatdev"
    assert value("{speaker.names.5}x", record) is None
    assert value("x{none}", record) is None
    with pytest.raises(DataError, match=r"there is no column 'speaker\.nmae'"):
        value("{speaker.nmae}", record)


@given(st.lists(st.tuples(st.text(), st.sampled_from("abc"))), st.text())
def test_templates_are_those_of_python(parts: list[tuple[str, str]], end: str) -> None:
    def literal(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    template = "{a}" + "".join(f"{literal(text)}{{{name}}}" for text, name in parts) + literal(end)
    record = {"a": 1, "b": "{b}", "c": 2.5}
    assert value(template, record) == template.format(**record)

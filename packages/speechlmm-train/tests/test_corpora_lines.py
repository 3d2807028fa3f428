"""Lines of files by number, and layouts of files by templates, against loops over what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlmm_core.data import text_lines
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.corpora import lines as lines_module
from speechlmm_train.corpora.layout import Layout, fill
from speechlmm_train.corpora.lines import AlignedLines, Lines, read_text

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00\ufeff"), max_size=12)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 16])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_those_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, end: str
) -> None:
    monkeypatch.setattr(lines_module, "KEPT_BYTES", kept_bytes)
    number = 0

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.lists(TEXT, max_size=5), min_size=1, max_size=3), st.booleans(), st.booleans())
    def check(files: list[list[str]], last_end: bool, mark: bool) -> None:
        nonlocal number
        number += 1
        paths: list[str] = []
        expected: list[tuple[str, str]] = []
        for at, texts in enumerate(files):
            path = tmp_path / f"{number}_{at}.txt"
            ending = end if last_end or not texts or not texts[-1] else ""
            content = end.join(texts) + (ending if texts else "")
            path.write_bytes((b"\xef\xbb\xbf" if mark and content else b"") + content.encode())
            paths.append(str(path))
            expected += [(text, f"{path}:{line}") for line, text in enumerate(texts, 1)]
        whole = Lines(paths, keep_empty=True)
        assert [(whole.line(i), whole.place(i)) for i in range(len(whole))] == expected
        assert list(whole.all()) == [text for text, _ in expected]
        some = Lines(paths)
        kept = [pair for pair in expected if pair[0].encode().strip()]
        backwards = [(some.line(i), some.place(i)) for i in reversed(range(len(some)))]
        assert backwards[::-1] == kept

    check()


def test_aligned_lines_must_be_as_many(tmp_path: Path) -> None:
    for name, text in {"a": "1\n\n3\n", "b": "eins\nzwei\ndrei", "c": "un\n"}.items():
        (tmp_path / name).write_text(text)
    path = {name: [str(tmp_path / name)] for name in "abc"}
    rows = AlignedLines({"a": path["a"], "b": path["b"]})
    assert [rows.row(i) for i in range(len(rows))] == [
        {"a": a, "b": b} for a, b in (("1", "eins"), ("", "zwei"), ("3", "drei"))
    ]
    with pytest.raises(DataError, match=r"a' has 3 lines and '.*c' has 1; they must correspond by line"):
        AlignedLines({"a": path["a"], "c": path["c"]})


def test_a_line_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\xfe\n")
    lines = Lines([str(tmp_path / "a.txt")])
    assert lines.line(0) == "fine"
    with pytest.raises(DataError, match=r"a\.txt:2 is not UTF-8"):
        lines.line(1)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"a\.txt' does not exist"):
        Lines([str(tmp_path / "a.txt")])


def test_lines_without_an_end_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MAX_LINE", 100)
    (tmp_path / "a.txt").write_bytes(b"x" * 99 + b"\n" + b"x" * 100 + b"\n" + b"x\n")
    with pytest.raises(DataError, match=r"a\.txt:2: a line of over 0 MiB; this is no text by lines"):
        Lines([str(tmp_path / "a.txt")])
    monkeypatch.setattr(lines_module, "MAX_TEXT", 201)
    with pytest.raises(DataError, match=r"a\.txt' has over"):
        read_text(str(tmp_path / "a.txt"))
    (tmp_path / "b.txt").write_bytes(b"x" * 99 + b"\n" + b"x" * 99)
    assert len(Lines([str(tmp_path / "b.txt")])) == 2
    assert len(read_text(str(tmp_path / "b.txt"))) == 199
    (tmp_path / "z.txt").symlink_to("/dev/zero")
    for read in (lambda path: Lines([path]), read_text):
        with pytest.raises(DataError, match=r"z\.txt' cannot be read: it is not a file but a folder or a device"):
            read(str(tmp_path / "z.txt"))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(layout: Layout, root: Path, **selection: Any) -> list[tuple[str, dict[str, str]]]:
    return [
        (Path(one.path).relative_to(root).as_posix(), dict(one.told))
        for one in layout.search(root, Selection(**selection))
    ]


def test_layouts_of_pairs(tmp_path: Path) -> None:
    touch(tmp_path, "zh-CN-en/dev.tsv", "de-en/dev.tsv", "de-en/train.tsv", "de-en/deep/dev.tsv", "notes/dev.tsv")
    layout = Layout(["{source_language}-{target_language}/{partition}.tsv"])
    told = {"source_language": "zh-CN", "target_language": "en", "partition": "dev"}
    assert found(layout, tmp_path, source_language="zh-CN") == [("zh-CN-en/dev.tsv", told)]
    assert [name for name, _ in found(layout, tmp_path, partition="dev")] == ["de-en/dev.tsv", "zh-CN-en/dev.tsv"]
    assert layout.values(tmp_path, "partition") == ["dev", "train"]
    assert layout.values(tmp_path, "meeting") == []


def test_layouts_with_brackets_repeats_and_names(tmp_path: Path) -> None:
    touch(tmp_path, "a[1]/x/x.txt", "a[1]/x/y.txt", "mls_german/x", "mls_german_opus/x", "mls_lm_german/x")
    assert found(Layout(["a[1]/{partition}/{partition}.txt"]), tmp_path) == [("a[1]/x/x.txt", {"partition": "x"})]
    layout = Layout(["mls_{source_language}/x"], {"de": "german"})
    assert found(layout, tmp_path) == [("mls_german/x", {"source_language": "de"})]
    assert layout.values(tmp_path, "source_language") == ["de"]


def test_templates_are_filled_and_never_run() -> None:
    values = {"id": "7", "folder": "/a{id}"}
    assert fill("audio", "{folder}/{id}.flac", values) == "/a{id}/7.flac"
    assert fill("audio", "{id!r:>9}{0}{id.__class__}{", values) == "{id!r:>9}{0}{id.__class__}{"
    with pytest.raises(DataError, match=r"`audio` '\{ids\}': there is no \{ids\}; did you mean 'id'\? \(id, folder\)"):
        fill("audio", "{ids}", values)

"""Specifications that packages ship: found by name after the user's own; their paths start at the working folder."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from speechlmm_core.data import shipped
from speechlmm_core.data.index.layout import index_dir_of
from speechlmm_core.data.shipped import base_of, is_shipped, shipped_specs
from speechlmm_core.data.spec.find import find_spec
from speechlmm_core.errors import DataError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with two specifications, and one that cannot be imported."""
    root = tmp_path / "site" / "shipping_presets"
    (root / "datasets" / "deep").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "datasets" / "one.yaml").write_text("train: [a.jsonl]\n")
    (root / "datasets" / "deep" / "two.yaml").write_text("train: [a.jsonl]\n")
    monkeypatch.delitem(sys.modules, "shipping_presets", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    names = {"ours": "shipping_presets", "broken": "shipping_nothing"}
    entries = [EntryPoint(name, value, "speechlmm.presets") for name, value in names.items()]
    monkeypatch.setattr(shipped, "entry_points", lambda group: entries)
    monkeypatch.setattr(shipped, "describe", lambda entry: entry.name)
    shipped_specs.cache_clear()
    yield root / "datasets"
    shipped_specs.cache_clear()


def test_they_are_found_by_name_after_the_users_own(package, tmp_path):
    assert find_spec("one", tmp_path) == package / "one.yaml"
    assert find_spec("deep/two.yaml", tmp_path) == package / "deep" / "two.yaml"
    own = tmp_path / "conf" / "datasets" / "one.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("train: [b.jsonl]\n")
    assert find_spec("one", tmp_path) == own
    with pytest.raises(DataError, match="did you mean 'deep/two'"):
        find_spec("deep/tow", tmp_path)


def test_their_paths_start_at_the_working_folder_and_they_are_prepared_beside_the_corpora(
    package, tmp_path, monkeypatch
):
    theirs, own = package / "deep" / "two.yaml", tmp_path / "x" / "two.yaml"
    assert (is_shipped(theirs), is_shipped(own)) == (True, False)
    assert base_of(theirs, tmp_path) == tmp_path
    assert base_of(theirs) == Path.cwd()
    assert base_of(own, tmp_path) == tmp_path / "x"
    monkeypatch.setenv("DATA_HOME", str(tmp_path / "corpora"))
    assert index_dir_of(theirs) == tmp_path / "corpora" / "two.index"
    assert index_dir_of(own) == tmp_path / "x" / "two.index"
    monkeypatch.delenv("DATA_HOME")
    assert index_dir_of(theirs) == Path("data/two.index")

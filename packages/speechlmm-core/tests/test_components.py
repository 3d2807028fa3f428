"""The list of installed components."""

import subprocess
import sys

import pytest

from speechlmm_core.components import ComponentRow, list_components
from speechlmm_core.registry import KINDS


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Two distributions that claim one name, and one whose module does not exist."""
    for name, version, summary in (("acme-speech", "3.1", "Speech by Acme"), ("bold", "0.2", "")):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(head + (f"Summary: {summary}\n" if summary else ""))
        (info / "entry_points.txt").write_text(f"[speechlmm.encoder]\nacme.ears = {name[:4]}_nowhere:Config\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_the_components_of_core_are_listed():
    rows = {(row.kind, row.name): row for row in list_components()}
    row = rows["decoder", "causal_lm"]
    assert row.distribution == "speechlmm-core"
    assert row.version
    assert row.summary.startswith("Registries")
    assert ("task", "asr") in rows


def test_rows_come_by_kind_and_name():
    rows = list_components()
    assert rows == sorted(rows, key=lambda row: (KINDS.index(row.kind), row.name))
    assert list_components("task") == [row for row in rows if row.kind == "task"]


def test_rivals_have_a_row_each_and_nothing_is_imported(plugins):
    rows = [row for row in list_components("encoder") if row.name == "acme.ears"]
    assert rows == [
        ComponentRow("encoder", "acme.ears", "acme-speech", "3.1", "Speech by Acme"),
        ComponentRow("encoder", "acme.ears", "bold", "0.2", ""),
    ]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"unknown kind 'encodr' .*encoder"):
        list_components("encodr")


def test_listing_imports_no_plugin_and_no_framework():
    code = (
        "import sys; from speechlmm_core import list_components; list_components();"
        "tops = {name.partition('.')[0] for name in sys.modules};"
        "print(*sorted(name for name in tops if name in ('torch', 'transformers') or name.startswith('speechlmm_')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["speechlmm_core"]

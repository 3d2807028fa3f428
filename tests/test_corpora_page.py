"""The table of corpora says what the presets say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.presets import find_preset, plain_name
from speechlmm_core.interfaces.dataset import datasets
from speechlmm_core.interfaces.task import tasks

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ROOT / "packages/speechlmm-train/src/speechlmm_train/presets/dataset"
PAGE = ROOT / "docs/reference/corpora.md"
NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
OF_THE_FIRST_SPEECHLMM = {
    "CoVoST": "covost2",
    "MuSTC": "must_c",
    "LibriTTS": "libritts",
    "LibriTTS-R": "libritts_r",
    "SpeechMassive": "speech_massive",
    "Slurp": "slurp",
    "MLS": "mls",
    "CVSS": "cvss",
    "Alpaca": "alpaca",
    "CommonVoice": "common_voice",
    "NllbParacrawl": "parallel_table",
    "LRS2VideoOnly": "lrs2",
    "Wikimedia": "parallel_text",
    "Dolly15k": "dolly",
    "Oasst": "oasst",
    "AMI": "ami",
    "ICSI": "icsi",
    "Europarl": "europarl_st",
    "SpokenSQuAD": "spoken_squad",
}


def rows() -> dict[str, list[str]]:
    """Cells of the table's rows by preset."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and (name := re.fullmatch(r"`(\w+)`", cells[1])):
            assert name[1] not in found
            found[name[1]] = cells
    return found


def test_the_table_names_every_preset() -> None:
    assert sorted(rows()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_a_preset_serves(name: str) -> None:
    preset = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    cells = rows()[name]
    assert len(cells) == 7
    assert sorted(re.findall(r"`(\w+)`", cells[2])) == sorted(preset["tasks"])
    assert set(preset["tasks"]) <= set(tasks.names())
    assert preset["type"] in datasets.names()
    if languages := preset.get("languages"):
        assert cells[4] == ", ".join(languages)
    for partition in preset.get("partitions") or preset.get("splits") or ():
        assert partition in cells[3]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_where_it_comes_from(name: str) -> None:
    head = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").partition("\naliases:")[0]
    assert re.search(r"https://\S+", head)
    assert re.search(r"[Ll]icence: \S", head)
    assert "# Layout" in head
    assert all(line.startswith("#") and len(line) <= 120 for line in head.splitlines())


def test_the_example_is_a_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.setenv("DATA_HOME", "/corpora")
    (tmp_path / "corpus.yaml").write_text(example)
    (dataset,) = read_spec(tmp_path / "corpus.yaml").datasets
    assert (dataset.name, dataset.reader.type, [str(pair) for pair in dataset.languages or ()]) == (
        "covost2",
        "table",
        ["en-de", "de-en"],
    )
    assert getattr(dataset.reader, "path", None) == "/corpora/cv-corpus-4"


def test_names_of_the_first_speechlmm_are_known() -> None:
    assert {old: find_preset(old) for old in OF_THE_FIRST_SPEECHLMM} == OF_THE_FIRST_SPEECHLMM


def test_no_name_stands_for_two_presets() -> None:
    owner: dict[str, str] = {}
    for name in NAMES:
        preset = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
        for one in {plain_name(str(alias)) for alias in (name, *preset["aliases"])}:
            assert owner.setdefault(one, name) == name

"""What a command writes takes nothing from what it reads, however that is named."""

import json
import re

import pytest

from speechlmm_core.errors import ConfigError
from speechlmm_train.replacing import bases_of, check_apart


@pytest.fixture
def components(tmp_path, monkeypatch):
    """Base checkpoints that are found by their names alone."""
    root = tmp_path / "components"
    (root / "llm" / "mean").mkdir(parents=True)
    (root / "encoder").mkdir()
    (root / "encoder" / "large.pt").touch()
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(root))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return root


@pytest.mark.parametrize(
    ("output", "source", "place"),
    [
        ("llm", "llm", "is"),
        (".", "llm", "holds"),
        ("llm/mean", "llm", "lies in"),
        ("encoder", "encoder/large.pt", "holds"),
        ("llm", "llm/../llm", "is"),
    ],
)
def test_base_checkpoints_are_found_by_their_names(components, output, source, place):
    with pytest.raises(ConfigError, match=re.escape(f"{place} {source!r}, which is read")):
        check_apart(components / output, [source])


@pytest.mark.parametrize("source", ["llm", "encoder/large.pt", "someone/model", "bytes", "/gone", "gone.safetensors"])
def test_what_lies_apart_or_is_not_here_is_passed_over(components, tmp_path, source):
    check_apart(tmp_path / "out", [source])


def test_a_folder_comes_before_one_below_the_root(components, tmp_path):
    (tmp_path / "elsewhere" / "llm").mkdir()
    check_apart(components / "llm", ["llm"])
    with pytest.raises(ConfigError, match="is 'llm'"):
        check_apart(tmp_path / "elsewhere" / "llm", ["llm"])


def test_bases_of_a_checkpoint_are_its_own_to_name(components, tmp_path):
    """`save: trainable` writes the name of a base checkpoint as the run was given it."""
    (tmp_path / "one").mkdir()
    config = {"model": {}, "bases": {"text_decoder": {"pretrained": "llm"}}}
    (tmp_path / "one" / "config.json").write_text(json.dumps({"model_type": "speechlmm", **config}))
    with pytest.raises(ConfigError, match="is 'llm', which is read"):
        check_apart(components / "llm", bases_of(tmp_path / "one"))

"""The presets validate without a network, and neither they nor the configurations import a framework."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from importlib.metadata import entry_points
from importlib.resources import files

import pytest
import yaml

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders

FOLDER = files("speechlmm_encoders.presets") / "model"
GROUPS = ("audio_encoder", "video_encoder")
PRESETS = sorted(
    (group, entry.name.removesuffix(".yaml"))
    for group in GROUPS
    for entry in (FOLDER / group).iterdir()
    if entry.name.endswith(".yaml")
)
TINY = [(group, name) for group, name in PRESETS if name.startswith("tiny_")]
PUBLISHED = {
    "auto_avsr": (768, 25),
    "hf_audio": (1024, 50),
    "hubert": (1024, 50),
    "hubert_base": (768, 50),
    "seamless": (1024, Fraction(25, 4)),
    "w2v_bert_2": (1024, 50),
    "wavlm": (1024, 50),
    "wavlm_base": (768, 50),
    "whisper": (1280, 50),
    "whisper_unrestricted": (1280, 50),
}
"""Width and frames per second of each published model, as its paper has them."""


def read(group, name):
    text = (FOLDER / group / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# @package model.{group}\n# "), "the package, then a comment with the source"
    return yaml.safe_load(text)


def registered():
    """Config classes of this package's encoders, by name."""
    points = entry_points(group="speechlmm.encoder")
    return {point.name: point for point in points if point.value.startswith("speechlmm_encoders.")}


@pytest.mark.parametrize("kind", sorted(registered()))
def test_every_encoder_has_a_preset_and_a_tiny_one(kind):
    group = f"{registered()[kind].load().modality}_encoder"
    assert {(group, kind), (group, f"tiny_{kind}")} <= set(PRESETS)


def test_every_published_preset_is_known_here():
    assert sorted(PUBLISHED) == sorted(name for _, name in PRESETS if not name.startswith("tiny_"))


@pytest.mark.parametrize(("group", "name"), PRESETS)
def test_presets_validate(group, name):
    config = encoders.validate(read(group, name))
    assert config.type in registered()
    assert f"{name.removeprefix('tiny_')}_".startswith(f"{config.type}_")
    assert group == f"{config.modality}_encoder"
    assert config.sampling_rate == {"audio": 16_000, "video": 25}[config.modality]
    if name.startswith("tiny_"):
        assert config.pretrained is None
    else:
        assert config.pretrained
        assert (config.hidden_size, config.frame_rate) == PUBLISHED[name]
    assert encoders.validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(("group", "name"), TINY)
def test_tiny_presets_are_tiny(group, name):
    config = encoders.validate(read(group, name))
    assert config.hidden_size == 32
    assert sum(parameter.numel() for parameter in config.build(BuildContext()).parameters()) < 100_000


def test_configurations_import_no_framework():
    modules = sorted({point.module for point in registered().values()})
    names = sorted(point.attr for point in registered().values())
    code = (
        f"import importlib, sys; modules = [importlib.import_module(name) for name in {modules!r}]; "
        f"classes = [getattr(module, name) for module in modules for name in {names!r} if hasattr(module, name)]; "
        "configs = [cls() for cls in classes]; "
        "assert all(config.output_lengths(10 * config.sampling_rate) > 0 for config in configs); "
        "print(len(configs), [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"{len(names)} []"

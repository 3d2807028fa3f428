"""The presets: every name of the first SpeechLMM, for audio and for video, and a tiny one of every adapter."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from importlib.metadata import entry_points
from importlib.resources import files

import pytest
import torch
import yaml

from speechlmm_adapters.stack.config import StackAdapterConfig
from speechlmm_core.features import Features
from speechlmm_core.interfaces.adapter import adapters
from speechlmm_core.interfaces.context import BuildContext

FOLDER = files("speechlmm_adapters.presets") / "model"
GROUPS = ("audio_adapter", "video_adapter")
FIRST = {
    *(f"{combination}{length}" for combination in ("cformer", "cmlp") for length in ("", "_cif", "_conv", "_ctc")),
    *("cif", "conv", "ctc", "mlp", "qformer", "transformer"),
}
TYPES = {entry.name for entry in entry_points(group="speechlmm.adapter") if "speechlmm_adapters." in entry.value}
TEXTS = {
    (group, entry.name.removesuffix(".yaml")): entry.read_text(encoding="utf-8")
    for group in GROUPS
    for entry in (FOLDER / group).iterdir()
    if entry.name.endswith(".yaml")
}
NAMES = sorted(name for group, name in TEXTS if group == "audio_adapter")


def read(name, group="audio_adapter"):
    return adapters.validate(yaml.safe_load(TEXTS[group, name]))


def test_names():
    assert set(NAMES) == FIRST | {"identity"} | {f"tiny_{name}" for name in TYPES - {"identity"}}
    assert {read(name).type for name in NAMES} == TYPES


@pytest.mark.parametrize("name", NAMES)
def test_audio_and_video_have_the_same(name):
    audio, video = (TEXTS[group, name].splitlines() for group in GROUPS)
    assert [audio[0], video[0]] == [f"# @package model.{group}" for group in GROUPS]
    assert audio[1:] == video[1:]
    assert sorted(name for group, name in TEXTS if group == "video_adapter") == NAMES


def stages_of(name):
    config = read(name)
    return config.stages if isinstance(config, StackAdapterConfig) else [config]


@pytest.mark.parametrize("name", sorted(FIRST))
def test_numbers_of_the_first(name):
    """Layer norms as in BERT; and nothing that CIF fires is bounded, as there are scripts of many tokens a second."""
    for stage in stages_of(name):
        assert getattr(stage, "layer_norm_eps", 1e-12) == 1e-12
        assert getattr(stage, "max_frame_rate", None) is None


@pytest.mark.parametrize("name", NAMES)
def test_presets_validate_and_build(name):
    config = read(name)
    assert adapters.validate(config.model_dump(mode="json")) == config
    assert name.removeprefix("tiny_") == config.type or config.type == "stack"
    ctx = BuildContext(input_size=48, output_size=48, frame_rate=Fraction(50), vocab_size=101)
    if not name.startswith("tiny_"):
        with torch.device("meta"):
            config.build(ctx)
        return
    adapter = config.build(ctx).eval()
    assert sum(p.numel() for p in adapter.parameters()) < 100_000
    out = adapter(Features(torch.randn(2, 40, 48), torch.tensor([40, 9])))
    assert out.values.shape[2] == 48
    expected = config.output_lengths(40, Fraction(50))
    assert expected is None or out.lengths[0] == expected


@pytest.mark.parametrize("name", sorted(FIRST))
def test_combinations_are_a_length_adapter_and_a_modality_adapter(name):
    combination, _, length = name.partition("_")
    if combination not in ("cformer", "cmlp"):
        return
    config = read(name)
    assert isinstance(config, StackAdapterConfig)
    last = read({"cformer": "transformer", "cmlp": "mlp"}[combination])
    assert config.stages == [read(length or "conv"), last]


@pytest.mark.parametrize(
    ("name", "lengths", "losses"),
    [
        ("mlp", 1500, []),
        ("transformer", 1500, []),
        ("conv", 375, []),
        ("qformer", 89, []),
        ("cif", None, ["quantity"]),
        ("ctc", None, ["ctc"]),
        ("cformer", 375, []),
        ("cmlp_conv", 375, []),
        ("cformer_cif", None, ["cif_quantity"]),
        ("cmlp_ctc", None, ["ctc"]),
    ],
)
def test_what_comes_out_of_half_a_minute(name, lengths, losses):
    config = read(name, "video_adapter")
    assert config.output_lengths(1500, Fraction(50)) == lengths
    assert list(config.objectives("video_adapter")) == losses


def test_configurations_import_no_framework():
    code = (
        "import sys; from speechlmm_core.interfaces.adapter import adapters; "
        f"print([adapters.get(name)().type for name in {sorted(TYPES)!r}]); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [repr(sorted(TYPES)), "[]"]

"""The presets validate, and neither they nor the configurations import a framework."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import pytest
import yaml

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders

FOLDER = files("speechlmm_encoders.presets") / "model" / "audio_encoder"
NAMES = sorted(entry.name for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


def read(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text.startswith("# @package model.audio_encoder\n")
    return yaml.safe_load(text)


def test_there_is_one_for_every_encoder_and_a_tiny_one():
    assert (
        sorted(f"{tiny}{kind}.yaml" for tiny in ("", "tiny_") for kind in ("whisper", "whisper_unrestricted", "hubert"))
        == NAMES
    )


@pytest.mark.parametrize("name", NAMES)
def test_presets_validate(name):
    config = encoders.validate(read(name))
    assert config.type == name.removesuffix(".yaml").removeprefix("tiny_")
    assert config.sampling_rate == 16_000
    assert config.hidden_size == (32 if name.startswith("tiny_") else {"hubert": 1024}.get(config.type, 1280))
    if name.startswith("tiny_"):
        assert sum(p.numel() for p in config.build(BuildContext()).parameters()) < 100_000


def test_configurations_import_no_framework():
    code = (
        "import sys; from speechlmm_encoders.whisper.config import *; from speechlmm_encoders.hubert.config import *; "
        "print([WhisperEncoderConfig().output_lengths(16000), HubertEncoderConfig().output_lengths(16000)]); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[50, 49]", "[]"]

"""Every registered encoder, adapter and objective keeps its contract."""

from importlib.resources import files
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from speechlmm_core.components import list_components
from speechlmm_core.interfaces.adapter import adapters
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.interfaces.objective import objectives
from speechlmm_core.schema import model_schema
from speechlmm_core.testing import adapter_checks, encoder_checks, objective_checks


def preset(package: str, group: str, name: str) -> dict[str, Any]:
    """A shipped preset."""
    return yaml.safe_load((files(package) / "model" / group / f"{name}.yaml").read_text())


def encoder(name: str, **changes: Any) -> Any:
    return encoders.validate(preset("speechlmm_encoders.presets", "audio_encoder", name) | changes)


ENCODERS = {
    "whisper": encoder("tiny_whisper"),
    "whisper_padding": encoder("tiny_whisper", keep_padding=True),
    "whisper_chunks": encoder("tiny_whisper", chunk_seconds=0.4, chunk_overlap_seconds=0.08),
    "whisper_unrestricted": encoder("tiny_whisper_unrestricted"),
    "whisper_unrestricted_chunks": encoder("tiny_whisper_unrestricted", chunk_seconds=0.5, chunk_overlap_seconds=0.08),
    "hubert": encoder("tiny_hubert"),
}
ADAPTERS = {
    "mlp": adapters.validate(preset("speechlmm_adapters.presets", "audio_adapter", "tiny_mlp")),
    "mlp_three": adapters.validate({"type": "mlp", "stack": 3, "num_layers": 3, "hidden_size": 24}),
    "mlp_one": adapters.validate({"type": "mlp", "stack": 1, "num_layers": 1}),
    "identity": adapters.validate({"type": "identity"}),
}
OBJECTIVES = {
    "ctc_encoder": objectives.validate({"type": "ctc", "stage": "audio_encoder"}),
    "ctc_adapter": objectives.validate(
        {"type": "ctc", "stage": "audio_adapter", "vocabulary": "text_decoder", "head": "embeddings"}
    ),
    "next_token": objectives.validate({"type": "next_token"}),
}
TAIL = {"margin": 2}  # the spectrogram's frames after a clip's last still hold the sound of its last samples
OPTIONS = {"whisper": TAIL, "whisper_padding": TAIL, "whisper_chunks": TAIL}


def cases(checks: Any, configs: dict[str, Any], **options: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(check, id=f"{name}-{check}")
        for name, config in configs.items()
        for check in checks(config, **options.get(name, {}))
    ]


def model_presets() -> list[Any]:
    """Every shipped preset of a part of the model."""
    packages = ("speechlmm_core.presets", "speechlmm_encoders.presets", "speechlmm_adapters.presets")
    return [
        pytest.param(group.name, file, id=f"{group.name}-{file.name}")
        for package in packages
        for group in (files(package) / "model").iterdir()
        if group.is_dir()
        for file in group.iterdir()
        if file.name.endswith(".yaml")
    ]


@pytest.fixture(scope="module")
def editor_schema() -> Draft202012Validator:
    return Draft202012Validator(model_schema())


@pytest.mark.parametrize(("group", "file"), model_presets())
def test_every_shipped_preset_fits_the_editor_schema(editor_schema, group, file):
    text = file.read_text(encoding="utf-8")
    assert text.startswith(f"# @package model.{group}\n")
    part = yaml.safe_load(text)
    document = {"text_decoder": {"type": "causal_lm"}, group: part}
    assert [error.message for error in editor_schema.iter_errors(document)] == []
    assert not editor_schema.is_valid({**document, group: {**part, "no_such_key": 1}})


@pytest.mark.parametrize("kind", ["encoder", "adapter", "objective"])
def test_every_shipped_component_is_under_contract(kind):
    tested = {"encoder": ENCODERS, "adapter": ADAPTERS, "objective": OBJECTIVES}[kind]
    shipped = {row.name for row in list_components(kind) if row.distribution.startswith("speechlmm-")}
    assert shipped == {config.type for config in tested.values()}


@pytest.mark.parametrize("check", cases(encoder_checks, ENCODERS, **OPTIONS))
def test_encoders(check):
    check()


@pytest.mark.parametrize("check", cases(adapter_checks, ADAPTERS))
def test_adapters(check):
    check()


@pytest.mark.parametrize("check", cases(objective_checks, OBJECTIVES))
def test_objectives(check):
    check()

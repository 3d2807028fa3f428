"""Every registered encoder, adapter and objective keeps its contract."""

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
from speechlmm_core.testing.presets import installed_presets, preset_files


def tiny(kind: str, part: str, name: str, **changes: Any) -> Any:
    registry = encoders if kind == "encoder" else adapters
    return registry.validate(installed_presets(part, name)[name] | changes)


def all_tiny(kind: str, part: str) -> dict[str, Any]:
    """The tiny presets of a part of the model, those of plugins that were added later included."""
    return {name.removeprefix("tiny_"): tiny(kind, part, name) for name in installed_presets(part, "tiny_")}


def whisper(name: str, **changes: Any) -> Any:
    return tiny("encoder", "audio_encoder", name, **changes)


ENCODERS = {
    **all_tiny("encoder", "audio_encoder"),
    **all_tiny("encoder", "video_encoder"),
    "whisper_padding": whisper("tiny_whisper", keep_padding=True),
    "whisper_chunks": whisper("tiny_whisper", chunk_seconds=0.4, chunk_overlap_seconds=0.08),
    "whisper_unrestricted_chunks": whisper("tiny_whisper_unrestricted", chunk_seconds=0.5, chunk_overlap_seconds=0.08),
}
# Each in both roles, for audio and for video.
ADAPTERS = {
    **all_tiny("adapter", "audio_adapter"),
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
OPTIONS = {
    "whisper": TAIL,
    "whisper_padding": {**TAIL, "skip": ("chunks",)},  # whole windows and chunks exclude each other
    "whisper_chunks": TAIL,
}


def cases(checks: Any, configs: dict[str, Any], **options: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(check, id=f"{name}-{check}")
        for name, config in configs.items()
        for check in checks(config, **options.get(name, {}))
    ]


def brought_by_adapters() -> set[str]:
    """Types of the losses that adapters bring; they read what those put out beside their frames (see `in_a_model`)."""
    return {
        objective.type
        for config in [*ADAPTERS.values(), tiny("adapter", "audio_adapter", "tiny_cif", ctc_loss_weight=1.0)]
        for objective in config.objectives("audio_adapter").values()
    }


def model_presets() -> list[Any]:
    """Every preset of a part of the model, but for the demo's, whose tokenizer is made with its corpus."""
    return [
        pytest.param(part, file, id=f"{part}-{name}")
        for part, presets in preset_files().items()
        for name, file in presets.items()
        if name != "demo"
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
    own = brought_by_adapters() & shipped if kind == "objective" else set()
    assert shipped == {config.type for config in tested.values()} | own


@pytest.mark.parametrize("check", cases(encoder_checks, ENCODERS, **OPTIONS))
def test_encoders(check):
    check()


@pytest.mark.parametrize("check", cases(adapter_checks, ADAPTERS))
def test_adapters(check):
    check()


@pytest.mark.parametrize("check", cases(objective_checks, OBJECTIVES))
def test_objectives(check):
    check()

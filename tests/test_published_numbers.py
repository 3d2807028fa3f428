"""The presets state the numbers of the published checkpoints and of the first SpeechLMM, but for what is listed here.

`data/published_numbers.json` holds those numbers under their original names, and AutoAVSR's tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.testing.presets import installed_presets, preset_files

PUBLISHED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "published_numbers.json").read_text(encoding="utf-8")
)
COMPONENTS = [
    (part, name) for part in ("audio_encoder", "video_encoder", "text_decoder") for name in sorted(PUBLISHED[part])
]

DIFFERENCES: dict[tuple[str, str, str], tuple[Any, str]] = {
    ("text_decoder", "llama_3_8b_base", "eos_token_id"): (
        None,
        "that model has no token that ends a turn; the first SpeechLMM gave it those of the chat model",
    ),
    ("audio_adapter", "cif", "quantity_loss_weight"): (
        0.05,
        "clipped gradients would leave little of the other losses",
    ),
}
"""By part, preset and number: what we state instead (None for nothing), and why."""

BESIDE = {("mistral", "sliding_window"): None}
"""What presets state beside the numbers that are written down: v0.3 has no window, unlike transformers' default."""

ELSEWHERE = {
    "audio_encoder": {"demo", "hf_audio", "hubert_base", "wavlm", "wavlm_base", "whisper_unrestricted"},
    "video_encoder": set[str](),
    "text_decoder": {"demo", "gemma3_1b", "gemma3_270m", "smollm3_3b"}
    | {f"qwen3_{size}" for size in ("0_6b", "1_7b", "4b", "8b", "14b", "32b")},
}
"""Presets whose numbers were not the first SpeechLMM's; they cite their source, and parameters are counted by the
packages' own tests. `whisper_unrestricted` has those of `whisper`."""

OURS = {
    "activation": "hidden_act",
    "attention_dropout": "attention_probs_dropout_prob",
    "cross_attention_every": "cross_attention_every_n_layers",
    "dropout": "hidden_dropout_prob",
    "kernel_size": "conv_kernel_size",
    "merge": "compression_strategy",
    "num_layers": "num_hidden_layers",
    "num_residual_layers": "hidden_layers",
    "residual": "residual_type",
}
"""Fields of our adapters by another name than the first SpeechLMM's."""

AUTO_AVSR = {
    "attention_dropout": "transformer_attn_dropout_rate",
    "conv_depthwise_kernel_size": "cnn_module_kernel",
    "hidden_dropout": "dropout_rate",
    "hidden_size": "adim",
    "intermediate_size": "eunits",
    "num_attention_heads": "aheads",
    "num_hidden_layers": "elayers",
}


def preset(part: str, name: str) -> dict[str, Any]:
    return installed_presets(part, name)[name]


def adapter_numbers(stage: dict[str, Any]) -> dict[str, Any]:
    """An adapter's fields by the first SpeechLMM's names."""
    if stage["type"] == "mlp":
        # Ours counts the linear layers in and out, of which the first SpeechLMM's were one each.
        stage = {**stage, "hidden_layers": stage["num_layers"] - 2}
    return {OURS.get(key, key): value for key, value in stage.items()}


@pytest.mark.parametrize(("part", "name"), COMPONENTS)
def test_encoders_and_decoders_state_the_numbers_of_their_checkpoints(part, name):
    given = preset(part, name)
    published = dict(PUBLISHED[part][name])
    assert given["pretrained"] == published.pop("_name_or_path")
    names = AUTO_AVSR if name == "auto_avsr" else {}
    stated = {names.get(key, key): value for key, value in given["model"].items() if key != "frontend_hidden_sizes"}
    for key, value in published.items():
        wanted, _ = DIFFERENCES.get((part, name, key), (value, ""))
        if wanted is None:
            assert key not in stated
        else:
            assert stated[key] == wanted, key
    beside = {key: value for key, value in stated.items() if key not in published}
    assert beside == {key: value for (owner, key), value in BESIDE.items() if owner == name}


@pytest.mark.parametrize("part", ELSEWHERE)
def test_every_preset_is_compared_or_known_to_have_another_source(part):
    published = {name for name in preset_files()[part] if not name.startswith("tiny_")}
    assert published == set(PUBLISHED[part]) | ELSEWHERE[part]
    if part == "audio_encoder":
        assert preset(part, "whisper_unrestricted")["model"] == preset(part, "whisper")["model"]


@pytest.mark.parametrize("part", ["audio_adapter", "video_adapter"])
@pytest.mark.parametrize("name", sorted(PUBLISHED["audio_adapter"]))
def test_adapters_state_the_numbers_of_the_first(part, name):
    given = preset(part, name)
    # Of the combinations, the numbers that are their own: those of the modality adapter behind the length adapter.
    stated = adapter_numbers(given["stages"][-1] if given["type"] == "stack" else given)
    for key, value in PUBLISHED["audio_adapter"][name].items():
        wanted, _ = DIFFERENCES.get(("audio_adapter", name, key), (value, ""))
        if key == "conv_stride":  # ours has no other
            assert wanted == 1
            assert key not in stated
        else:
            assert stated[key] == wanted, key


@pytest.mark.parametrize("length", ["", "_cif", "_conv", "_ctc"])
def test_combinations_have_the_stages_of_their_presets(length):
    """Each was the named length adapter, then the adapter of its family."""
    for family, last in (("cformer", "transformer"), ("cmlp", "mlp")):
        first, second = preset("audio_adapter", f"{family}{length}")["stages"]
        assert first == preset("audio_adapter", length.removeprefix("_") or "conv")
        assert second == preset("audio_adapter", last)


def test_differences_are_differences():
    for (part, name, key), (ours, reason) in DIFFERENCES.items():
        assert PUBLISHED[part][name][key] != ours
        assert reason


def test_auto_avsr_has_the_tensors_of_the_published_file():
    wanted: dict[str, list[int]] = {}
    for name, shape in PUBLISHED["auto_avsr_tensors"].items():
        layers = range(12) if "{0..11}" in name else range(1)
        wanted |= {name.replace("{0..11}", str(layer)): shape for layer in layers}
    with torch.device("meta"):
        encoder = encoders.validate(preset("video_encoder", "auto_avsr")).build(BuildContext())
    own: Any = encoder
    assert {f"encoder.{name}": list(value.shape) for name, value in own.model.state_dict().items()} == wanted

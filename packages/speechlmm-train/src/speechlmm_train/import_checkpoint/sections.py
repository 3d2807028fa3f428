"""The configuration of a checkpoint of the first SpeechLMM, as sections of `model:` here. Imports no torch.

What changes what is computed and leaves no trace in the weights (residuals, activations, windows) comes from there, so
that weights never run in another network than the one that they were trained in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from speechlmm_core.errors import CheckpointError
from speechlmm_train.import_checkpoint.rules import STAGES, mlp_layers

Section = dict[str, Any]

ENCODERS = {
    "seamless_m4t_v2": "seamless",
    "seamless_m4t_v2_speech_encoder": "seamless",
    "hubert": "hubert",
    "wav2vec2-bert": "w2v_bert_2",
    "whisper": "whisper",
    "whisper-unrestricted": "whisper_unrestricted",
}
"""Our `type` by the first one's `model_type`."""

TEMPLATES = {
    "llama_3_1": "llama_3",
    "llama_3_1_base": "plain",
    "mistral_instruct": "mistral",
    "v1": "vicuna",
    "vicuna_v1": "vicuna",
}
"""Our chat template by the first one's `conversation_version`."""

INPUTS = ("audio", "video")


class NoCounterpartError(CheckpointError):
    """A component cannot be had here."""


def read_first_config(folder: Path) -> Section:
    """The `config.json` of a checkpoint of the first SpeechLMM.

    Raises:
        CheckpointError: There is none, or it is of something else.
    """
    file = folder / "config.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(
            f"cannot read {str(file)!r} ({exc}); expected a checkpoint of the first SpeechLMM: config.json beside "
            "model.safetensors or folders of LoRA adapters"
        ) from exc
    if not isinstance(data, dict):
        raise CheckpointError(f"{str(file)!r} holds a {type(data).__name__}; expected a configuration")
    if data.get("model_type") == "speechlmm" and "model" in data:
        raise CheckpointError(
            f"{str(folder)!r} is a checkpoint of this SpeechLMM already; use it as training.pretrained_checkpoint"
        )
    if not isinstance(data.get("text_decoder"), dict):
        got = data.get("model_type")
        raise CheckpointError(
            f"{str(file)!r} is not of the first SpeechLMM: got model_type {got!r} and no section `text_decoder`"
        )
    return cast("Section", data)


def components_of(first: Mapping[str, Any]) -> dict[str, Section]:
    """The sections of the components."""
    suffixes = ("_encoder", "_adapter", "_decoder", "_head")
    return {key: value for key, value in first.items() if isinstance(value, dict) and key.endswith(suffixes)}


def model_section(component: str, section: Mapping[str, Any], first: Mapping[str, Any]) -> Section:
    """A component's section of `model:`.

    Raises:
        NoCounterpartError: There is no component here that computes the same.
    """
    if component == "text_decoder":
        return _text_decoder(section)
    if component in {f"{name}_encoder" for name in INPUTS}:
        return _encoder(component, section, first)
    if component in {f"{name}_adapter" for name in INPUTS}:
        return _adapter(section)
    raise NoCounterpartError("speech output is not built yet")


def _text_decoder(section: Mapping[str, Any]) -> Section:
    name = _base(section)
    version = section.get("conversation_version")
    template = TEMPLATES.get(str(version))
    if template is None:
        raise NoCounterpartError(f"its conversation_version {version!r} is not known (known: {', '.join(TEMPLATES)})")
    return {"type": "causal_lm", "pretrained": name, "chat_template": template}


def _encoder(component: str, section: Mapping[str, Any], first: Mapping[str, Any]) -> Section:
    # AutoAVSR's configuration has no model type of its own.
    video = component == "video_encoder"
    kind = "auto_avsr" if video else ENCODERS.get(str(section.get("model_type")))
    if kind is None:
        raise NoCounterpartError(f"there is no encoder for its model_type {section.get('model_type')!r}")
    found: Section = {"type": kind, "pretrained": _base(section)}
    if not video and first.get("chunk_size_in_seconds") is not None:
        found["chunk_seconds"] = first["chunk_size_in_seconds"]
        found["chunk_overlap_seconds"] = first.get("chunk_overlap_in_seconds") or 0.0
    return found


def _base(section: Mapping[str, Any]) -> str:
    name = section.get("_name_or_path")
    if not isinstance(name, str) or not name:
        raise NoCounterpartError("config.json names no base checkpoint for it (`_name_or_path`)")
    return name


def _adapter(section: Mapping[str, Any]) -> Section:
    kind = str(section.get("model_type"))
    make = ADAPTER_SECTIONS.get(kind)
    if make is None:
        why = WITHOUT.get(kind, "it is not known")
        raise NoCounterpartError(f"its type {kind!r} has no counterpart: {why}")
    return make(section)


def _mlp(section: Mapping[str, Any]) -> Section:
    hidden, width, out = section.get("hidden_size", 4096), section.get("input_dim"), section.get("output_dim")
    if hidden == out and not section.get("force_output_projection", True):
        raise NoCounterpartError("it ends in an activation, without an output projection")
    residual = section.get("residual_type", "interpolation")
    if residual == "linear" and width == out:
        residual = "interpolation"  # between equal widths: the frames themselves, as there
    return {
        "type": "mlp",
        "stack": 1,
        "num_layers": mlp_layers(section),
        "hidden_size": hidden,
        "activation": "relu",
        "residual": residual,
        "layer_norm": False,
        "hidden_layer_norm": True,
        "output_layer_norm": True,
    }


def _conv(section: Mapping[str, Any]) -> Section:
    return {
        "type": "conv",
        "kernel_sizes": [3, 3],
        "strides": [2, 2],
        "padding": "same",
        "hidden_size": section.get("hidden_size") or section.get("input_dim"),
        "num_residual_layers": section.get("hidden_layers", 0),
        "residual_kernel_size": 3,
        "activation": "relu",
        "layer_norm": True,
    }


def _qformer(section: Mapping[str, Any]) -> Section:
    if section.get("hop_size"):
        raise NoCounterpartError("its windows see frames before them and none after (hop_size)")
    if section.get("output_dim") == section.get("hidden_size", 768):
        raise NoCounterpartError("it has no output projection")
    if not section.get("add_cross_attention", True):
        raise NoCounterpartError("its queries do not read the frames (add_cross_attention: false)")
    if section.get("compress_factor") is None:
        raise NoCounterpartError("its window is not written down in frames (compress_factor)")
    return {
        "type": "qformer",
        "window_seconds": None,
        "window_frames": section["compress_factor"],
        "num_queries": section.get("num_queries", 1),
        "hidden_size": section.get("hidden_size", 768),
        "num_layers": section.get("num_hidden_layers", 4),
        "num_attention_heads": section.get("num_attention_heads", 12),
        "intermediate_size": section.get("intermediate_size", 3072),
        "activation": section.get("hidden_act", "gelu"),
        "layer_norm_eps": section.get("layer_norm_eps", 1e-12),
        "cross_attention_every": section.get("cross_attention_every_n_layers", 1),
    }


def _two_stage(section: Mapping[str, Any]) -> Section:
    parts = [cast("Section", section[name]) for name in STAGES if section.get(name)]
    between = [(one.get("output_dim"), other.get("input_dim")) for one, other in pairwise(parts)]
    widths = {width for pair in between for width in pair}
    if len(widths) != 1:
        raise NoCounterpartError(f"the widths between its stages differ ({sorted(map(str, widths))})")
    return {"type": "stack", "stages": [_adapter(part) for part in parts], "hidden_size": widths.pop()}


ADAPTER_SECTIONS: dict[str, Callable[[Mapping[str, Any]], Section]] = {
    "mlp": _mlp,
    "conv": _conv,
    "qformer": _qformer,
    "cmlp": _two_stage,
}
"""How adapters are configured here, by the first one's `model_type`."""

WITHOUT = {
    "transformer": "its layers have their norms behind them and know no positions",
    "cformer": "its transformer layers have their norms behind them and know no positions",
    "cif": "a layer norm follows its projection there, and none here",
    "ctc": "a layer norm follows its projection there, and none here",
}
"""Why the others have none."""

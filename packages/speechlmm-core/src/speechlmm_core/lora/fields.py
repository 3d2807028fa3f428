# pyright: strict
"""Which fields of PEFT's `LoraConfig` an adapter takes, by PEFT's source, so that checking imports nothing heavy."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from speechlmm_core.registry import nearest

_BASE = "it changes the weights underneath, which checkpoints refer to"
_WHOLE = "leave what is to be trained as a whole out of freeze_modules, and outside of target_module"
_DATA = "it has to see data before training starts"
_ELSEWHERE = "it needs code in the training loop that is not part of this version"
REFUSED: dict[str, str] = {
    "peft_type": "adapters are low-rank ones",
    "auto_mapping": "PEFT fills it in",
    "peft_version": "PEFT fills it in",
    "base_model_name_or_path": "the model names its base checkpoints",
    "revision": "the model names its base checkpoints",
    "inference_mode": "freeze_modules and trainable_modules say what is trained",
    "modules_to_save": _WHOLE,
    "trainable_token_indices": _WHOLE,
    "layer_replication": "it changes the number of layers, which model.text_decoder says",
    "runtime_config": "it is not saved with an adapter",
    "ensure_weight_tying": "tied tables take no adapter",
    "target_parameters": "adapters are put on modules; name them by target_modules",
    "megatron_config": "models are not built with Megatron",
    "megatron_core": "models are not built with Megatron",
    "loftq_config": _BASE,
    "kasa_config": _BASE,
    "corda_config": _DATA,
    "eva_config": _DATA,
    "lora_ga_config": _DATA,
    "alora_invocation_tokens": _ELSEWHERE,
    "arrow_config": _ELSEWHERE,
    "monteclora_config": _ELSEWHERE,
    "velora_config": _ELSEWHERE,
    "use_bdlora": _ELSEWHERE,
    "use_qalora": "it is for GPTQ weights, which this version does not load",
    "qalora_group_size": "it is for GPTQ weights, which this version does not load",
}
"""Fields that cannot be set, and why."""

OFTEN_MEANT = {"rank": "r", "lora_r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
"""Names that others use."""

INITIALISATIONS = (True, False, "gaussian", "orthogonal")
"""Values of `init_lora_weights` that leave the weights underneath as they are and need no data."""


@cache
def peft_fields() -> frozenset[str]:
    """Fields of the installed PEFT's `LoraConfig`; empty where PEFT is not installed."""
    spec = find_spec("peft")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        return frozenset()
    names: set[str] = set()
    for file, classes in (("config.py", {"PeftConfigMixin", "PeftConfig"}), ("tuners/lora/config.py", {"LoraConfig"})):
        tree = ast.parse((Path(folders[0]) / file).read_text(encoding="utf-8"))
        names |= {
            field.target.id
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name in classes
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
    return frozenset(names)


def field_faults(extras: Mapping[str, Any], own: list[str]) -> list[str]:
    """What is wrong with the further fields of an adapter: unknown names, and those that cannot be set.

    Args:
        extras: The fields.
        own: Fields that an adapter has itself.
    """
    faults: list[str] = []
    known = peft_fields()
    for key, value in extras.items():
        if key in REFUSED:
            faults.append(f"{key!r} cannot be set: {REFUSED[key]}")
        elif known and key not in known:
            meant = OFTEN_MEANT.get(key, key)
            faults.append(f"unknown key {key!r}{nearest(meant, [*own, *sorted(known - REFUSED.keys())])}")
        elif key == "init_lora_weights" and not any(value is one or value == one for one in INITIALISATIONS):
            shown = ", ".join("true" if one is True else "false" if one is False else one for one in INITIALISATIONS)
            faults.append(f"init_lora_weights: got {value!r}, expected one of {shown} ({_BASE}, or {_DATA})")
    return faults

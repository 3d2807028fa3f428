"""Merges adapters into the weights that they were put on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechlmm_core.errors import CheckpointError
from speechlmm_core.lora.plain import adapted_layers

if TYPE_CHECKING:
    from speechlmm_core.model.speechlmm import SpeechLMM


def merge(model: SpeechLMM) -> None:
    """Adds every adapter to the weights beneath it; the model is a plain one afterwards.

    Args:
        model: The model, whose weights are not quantised.

    Raises:
        CheckpointError: A weight is quantised, or not finite once it is merged.
    """
    merged: set[str] = set()
    for name, module in list(adapted_layers(model)):
        layer: Any = module
        base = layer.get_base_layer()
        if not base.weight.is_floating_point():
            raise CheckpointError(
                f"the weights of {name} are quantised, so that adapters cannot be merged into them; load the model "
                "without load_in_4bit or load_in_8bit"
            )
        try:
            layer.merge(safe_merge=True)
        except (ValueError, RuntimeError) as exc:
            raise CheckpointError(f"cannot merge the adapters of {name}: {exc}") from exc
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
        merged |= {f"{name}.{key}" for key, _ in base.named_parameters()}
    for module in model.modules():
        if hasattr(module, "peft_config"):
            delattr(module, "peft_config")
    model.ever_trainable |= merged  # they are the base checkpoint's no longer
    model.lora_adapters = ()

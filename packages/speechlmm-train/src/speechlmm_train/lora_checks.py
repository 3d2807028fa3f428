"""What is wrong with a run's adapters and quantised weights, as far as the configuration tells. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speechlmm_core.config import ModelConfig
from speechlmm_core.registry import nearest
from speechlmm_train.training_config import TrainingConfig

SPREAD = ("zero3", "zero3_offload", "fsdp2")
"""Ways to run several processes that spread weights over them, which quantised ones are not made for."""


def adapter_faults(training: TrainingConfig, parts: Sequence[str]) -> Iterator[str]:
    """Faults of `training.lora_adapters`.

    Args:
        training: The section.
        parts: Names of the model's parts.
    """
    first: dict[str, str] = {}
    for adapter in training.lora_adapters:
        part = adapter.target_module.split(".")[0]
        if part not in parts:
            hint = nearest(part, list(parts))
            yield f"training.lora_adapters: the model has no part {part!r}{hint} (parts: {', '.join(parts)})"
        if adapter.name in first:
            yield (
                f"training.lora_adapters: two adapters are called {adapter.name!r}, one on {first[adapter.name]!r} "
                f"and one on {adapter.target_module!r}; give each a name of its own"
            )
        first.setdefault(adapter.name, adapter.target_module)


def quantisation_faults(training: TrainingConfig, model: ModelConfig) -> Iterator[str]:
    """Faults of `training.load_in_4bit` and `load_in_8bit`.

    Quantised weights are not saved, so that checkpoints have to refer to the base checkpoint that they come from.
    """
    if training.load_in_4bit and training.load_in_8bit:
        yield "training: give either load_in_4bit or load_in_8bit, not both"
    if not (training.load_in_4bit or training.load_in_8bit):
        return
    name = "load_in_4bit" if training.load_in_4bit else "load_in_8bit"
    if training.save != "trainable":
        yield (
            f"training.{name}: quantised weights cannot be saved; set training.save=trainable, so that checkpoints "
            "refer to the language model's base checkpoint"
        )
    if getattr(model.text_decoder, "pretrained", None) is None:
        yield (
            f"training.{name}: the language model would have random weights, which could not be saved; set "
            "model.text_decoder.pretrained"
        )
    if training.parallel in SPREAD:
        yield (
            f"training.{name}: quantised weights cannot be spread over processes; got parallel {training.parallel!r}, "
            "expected ddp or zero0 to zero2"
        )

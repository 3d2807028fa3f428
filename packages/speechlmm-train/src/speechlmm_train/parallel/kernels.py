"""Liger's kernels (Hsu et al., 2024, arXiv:2410.10989) for the text decoder's norms, rotations and feed-forwards."""

from __future__ import annotations

import importlib

from speechlmm_core.errors import ConfigError
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.training_config import TrainingConfig


def use_kernels(model: SpeechLMM, training: TrainingConfig) -> None:
    """Puts the kernels into a model where `training.use_liger_kernel` asks for them.

    The loss stays ours, which makes no full logits either.

    Raises:
        ConfigError: Liger has none for the language model's family.
    """
    if not training.extras.get("use_liger_kernel"):
        return
    decoder = model.text_decoder.model
    known = importlib.import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    if decoder.config.model_type not in known:
        raise ConfigError(
            f"training.use_liger_kernel: Liger has no kernels for the text decoder's type "
            f"{decoder.config.model_type!r} (it has: {', '.join(sorted(known))}); leave it out"
        )
    from transformers.integrations.liger import apply_liger_kernel

    given = dict(training.extras.get("liger_kernel_config") or {})
    apply_liger_kernel(decoder, {**given, "fused_linear_cross_entropy": False, "cross_entropy": False})

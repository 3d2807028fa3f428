"""What the speed of a stage is compared with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.config import RunConfig
from speechlmm_train.parallel.arguments import use_bf16
from speechlmm_train.speed.flops import count_flops
from speechlmm_train.speed.peak import TERA, peak_flops
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.meter import Utilisation

logger = logging.getLogger(__name__)


def utilisation_of(
    config: RunConfig,
    stage: ResolvedStage,
    processor: SpeechLMMProcessor,
    *,
    adapters: Sequence[LoraAdapterConfig],
    on_cpu: bool,
) -> Utilisation | None:
    """The FLOPs that a stage's samples need and what the device can do; None where one of them is not known.

    Args:
        config: The run.
        stage: The stage.
        processor: Lays batches out.
        adapters: All that the model has.
        on_cpu: Whether the stage is trained on the CPU.
    """
    peak = _peak(stage, on_cpu=on_cpu)
    if peak is None:
        return None
    try:
        return Utilisation(count_flops(config, stage, processor, adapters=adapters), peak)
    except Exception as exc:  # a component that cannot be run without content: no figure, rather than a wrong one
        logger.warning("train/mfu is left out, as FLOPs cannot be counted: %s", " ".join(str(exc).split())[:300])
        return None


def _peak(stage: ResolvedStage, *, on_cpu: bool) -> float | None:
    training = stage.training
    if training.peak_tflops is not None:
        return training.peak_tflops * TERA
    if on_cpu or not torch.cuda.is_available():
        return None
    half = use_bf16(training.bf16) or bool(training.extras.get("fp16"))
    return peak_flops(torch.cuda.get_device_name(), half=half, tf32=bool(torch.backends.cuda.matmul.allow_tf32))

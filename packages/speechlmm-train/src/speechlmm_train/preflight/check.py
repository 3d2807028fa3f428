"""What `run` checks before it trains: in half a minute what would otherwise come up after hours."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from speechlmm_core.checkpoint.fill import full_shape
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.config import RunConfig
from speechlmm_train.parallel.gather import is_partitioned
from speechlmm_train.parallel_names import mode_of, stage_of
from speechlmm_train.preflight.deadline import Deadline
from speechlmm_train.preflight.disk import check_disk
from speechlmm_train.preflight.examples import check_examples
from speechlmm_train.preflight.files import check_files
from speechlmm_train.preflight.restore import untouched
from speechlmm_train.preflight.tryout import device_of, try_out
from speechlmm_train.trainer.stage_data import StageData

logger = logging.getLogger(__name__)

SECONDS = 30.0
"""Time for all of it; what is under way then is finished."""
FILES_S, EXAMPLES_S = 5.0, 5.0
_UNTRIED = (
    "no micro-batch was tried out, as weights are spread over processes: too little memory, or a loss that is not "
    "finite, comes up in the first steps; `speechlmm-train plan --gpu-memory` predicts the memory"
)


def check_run(
    config: RunConfig, stages: Sequence[StageData], model: SpeechLMM, *, folder: Path, resume: bool, rank: int = 0
) -> list[str]:
    """Checks a run on this process: disk, files, examples, and the largest micro-batches on the model itself.

    Nothing is written, and the model, its buffers and all random numbers are afterwards what they were.

    Args:
        config: The run.
        stages: Its stages with their data.
        model: The model, which has been through `check_stage` for each of them.
        folder: The output folder.
        resume: Whether the run goes on.
        rank: This process; the first looks at disk and files.

    Returns:
        Warnings.

    Raises:
        ConfigError: The run would fail; says why and what to change.
        DataError: Its data would.
    """
    started = time.perf_counter()
    deadline = Deadline(SECONDS)
    warnings: list[str] = []
    if rank == 0:
        check_disk(folder, model, stages, resume=resume)
        warnings += check_files(stages, deadline.part(FILES_S))
        rows = full_shape(model.text_decoder.embedding_weight)[0]
        share = EXAMPLES_S / len(stages)
        for stage in stages:
            warnings += check_examples(stage, rows, deadline.part(share))
    if _spread(model) or _too_big_alone(config, stages):
        warnings += [_UNTRIED] if rank == 0 else []
    else:
        device = device_of(config.training)
        nn.Module.to(model, device)
        with untouched(model):
            for stage in stages:
                warnings += try_out(model, stage, device, deadline)
    logger.info("checked before training in %.1f s", time.perf_counter() - started)
    for warning in warnings:
        logger.warning("%s", warning)
    return warnings


def _spread(model: SpeechLMM) -> bool:
    return any(is_partitioned(parameter) for parameter in model.parameters())


def _too_big_alone(config: RunConfig, stages: Sequence[StageData]) -> bool:
    """Whether a process alone may lack the room for what several share."""
    parallel, world_size = config.training.parallel, stages[0].world_size
    shared = mode_of(parallel, world_size) == "fsdp2" or stage_of(parallel) == 3
    return shared and world_size > 1 and device_of(config.training).type != "cpu"

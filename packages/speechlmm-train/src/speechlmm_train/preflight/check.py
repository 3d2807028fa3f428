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
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.parallel_names import mode_of, stage_of
from speechlmm_train.preflight.deadline import Deadline
from speechlmm_train.preflight.disk import check_disk
from speechlmm_train.preflight.examples import check_examples
from speechlmm_train.preflight.files import check_files
from speechlmm_train.preflight.restore import untouched
from speechlmm_train.preflight.together import Together
from speechlmm_train.preflight.tryout import device_of, try_out
from speechlmm_train.trainer.stage_data import StageData

logger = logging.getLogger(__name__)

SECONDS = 30.0
"""Time for all of it; what is under way then is finished."""
FILES_S, EXAMPLES_S = 1.0, 5.0
"""The first is what the start of a run takes longer however many examples there are."""


def check_run(
    config: RunConfig,
    stages: Sequence[StageData],
    model: SpeechLMM,
    *,
    folder: Path,
    resume: bool,
    ranks: Ranks | None = None,
    whole: frozenset[str] = frozenset(),
    base: Path | None = None,
) -> list[str]:
    """Checks a run: disk, files, examples, and the largest micro-batches on the model itself.

    Nothing is written, and the model, its buffers and all random numbers are afterwards what they were.

    Args:
        config: The run.
        stages: Its stages with their data.
        model: The model, which has been through `check_stage` for each of them.
        folder: The output folder.
        resume: Whether the run goes on.
        ranks: The processes, each of which has to call it; the first looks at disk and files.
        whole: Components that no stage trains.
        base: Folder where relative paths start.

    Returns:
        Warnings.

    Raises:
        ConfigError: The run would fail; says why and what to change.
        DataError: Its data would.
        OutOfStepError: This process failed where the others may not have.
    """
    ranks = ranks or Ranks()
    started = time.perf_counter()
    deadline = Deadline(SECONDS)
    warnings = ranks.together(
        lambda: _data_warnings(stages, model, deadline, folder=folder, resume=resume) if ranks.is_main else []
    )
    parallel = config.training.parallel
    if _spread(model) or _too_big_alone(config, stages):
        mode = mode_of(parallel, ranks.world_size)
        warnings += Together(config, stages, model, ranks, mode, whole, base).try_out(deadline)
    else:
        warnings += ranks.together(lambda: _try_alone(config, stages, model, deadline, base))
    logger.info("checked before training in %.1f s", time.perf_counter() - started)
    for warning in warnings:
        logger.warning("%s", warning)
    return warnings


def _data_warnings(
    stages: Sequence[StageData], model: SpeechLMM, deadline: Deadline, *, folder: Path, resume: bool
) -> list[str]:
    check_disk(folder, model, stages, resume=resume)
    warnings = check_files(stages, deadline.part(FILES_S))
    rows = full_shape(model.text_decoder.embedding_weight)[0]
    share = EXAMPLES_S / len(stages)
    for stage in stages:
        warnings += check_examples(stage, rows, deadline.part(share))
    return warnings


def _try_alone(
    config: RunConfig, stages: Sequence[StageData], model: SpeechLMM, deadline: Deadline, base: Path | None
) -> list[str]:
    device = device_of(config.training)
    nn.Module.to(model, device)
    with untouched(model):
        return [warning for stage in stages for warning in try_out(model, stage, device, deadline, base=base)]


def _spread(model: SpeechLMM) -> bool:
    return any(is_partitioned(parameter) for parameter in model.parameters())


def _too_big_alone(config: RunConfig, stages: Sequence[StageData]) -> bool:
    """Whether a process alone may lack the room for what several share."""
    parallel, world_size = config.training.parallel, stages[0].world_size
    shared = mode_of(parallel, world_size) == "fsdp2" or stage_of(parallel) == 3
    return shared and world_size > 1 and device_of(config.training).type != "cpu"

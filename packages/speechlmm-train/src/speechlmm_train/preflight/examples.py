"""Takes a few examples as training will, and looks at what comes out: supervision, vocabulary, targets."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from speechlmm_core.data.examples import as_examples
from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError, SpeechLMMError
from speechlmm_train.batching.epoch import MicroBatch
from speechlmm_train.preflight.deadline import Deadline
from speechlmm_train.preflight.files import spread
from speechlmm_train.preflight.weaknesses import Weaknesses
from speechlmm_train.trainer.stage_data import StageData

logger = logging.getLogger(__name__)

MOST = 128
"""Examples that are taken of a stage."""


def check_examples(stage: StageData, num_embeddings: int | None, deadline: Deadline) -> list[str]:
    """Loads examples from all over a stage's data, one by one.

    Args:
        stage: The stage.
        num_embeddings: Rows of the text decoder's embedding table; None where they are not known.
        deadline: When to stop.

    Returns:
        Warnings: faults that few examples have.

    Raises:
        DataError: Examples cannot be used, or too many have nothing to learn from.
    """
    loader, examples = stage.batches(0, rank=0), as_examples(stage.examples)
    faults, weaknesses = Faults(), Weaknesses()
    count = 0
    for number in _chosen(stage):
        if count and not deadline.left:
            break
        count += 1
        index = int(stage.indices[number])
        try:
            batch = loader.load(MicroBatch(0, [number], [0]))
        except SpeechLMMError as exc:
            faults.extend(exc if isinstance(exc, DataError) else DataError(str(exc)))
            continue
        place = examples.place(index)
        for fault in _faults(batch, num_embeddings):
            faults.add(place, fault, order=index)
        for kind in _weaknesses(stage, batch):
            weaknesses.add(kind, place)
    faults.raise_if_any()
    return weaknesses.judge(count, f"stage {stage.settings.name!r}")


def _chosen(stage: StageData) -> list[int]:
    """Numbers of examples: the shortest, the longest, and some from all over."""
    lengths = stage.plan.positions
    ends = [int(np.argmin(lengths)), int(np.argmax(lengths))]
    rest = (number for number, _ in zip(spread(len(lengths)), range(MOST), strict=False))
    return list(dict.fromkeys([*ends, *rest]))


def _faults(batch: dict[str, Any], num_embeddings: int | None) -> list[str]:
    top = int(batch["input_ids"].max())
    if num_embeddings is None or top < num_embeddings:
        return []
    return [
        f"token id {top} has no row in the text decoder's embedding table, which has {num_embeddings}; give the "
        "tokenizer and the weights of one model"
    ]


def _weaknesses(stage: StageData, batch: dict[str, Any]) -> list[str]:
    tokenizer = stage.processor.tokenizer
    found: list[str] = []
    ids: list[int] = batch["supervised"]["ids"].tolist()
    unknown: Any = tokenizer.tokenizer.unk_token_id
    text = [token for token in ids if token not in tokenizer.stop_token_ids]
    if not ids:
        found.append("have nothing to learn from: no token is supervised; see their answers and the chat_template")
    elif (
        unknown is not None
        and text
        and unknown not in tokenizer.stop_token_ids
        and all(token == unknown for token in text)
    ):
        found.append("have answers of unknown tokens alone; choose a tokenizer that knows their script")
    counts = batch["num_items"]
    found += [
        f"have a transcript that objective {name!r} needs more frames for than their medium has; raise the frame rate "
        "(a smaller stack or stride), shorten the targets, or leave them out"
        for name in stage.processor.config.all_objectives
        if counts.get(f"{name}_infeasible")
    ]
    return found

"""Which share of what is computed is padding, by the plan of a stage: what its training will log, before it begins.

Shapes: B media of a micro-batch, R rows of an encoder.
"""

from __future__ import annotations

import numpy as np

from speechlmm_core.data.examples import as_examples
from speechlmm_core.data.index.views import unchecked
from speechlmm_core.data.longest import media_chats
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_train.preflight.files import spread
from speechlmm_train.preflight.worst import sizes
from speechlmm_train.trainer.stage_data import StageData
from speechlmm_train.trainer.tally import computed_frames

MOST = 4096
"""Examples whose media are looked at, where an encoder's rows have a fixed size."""


def padding_share(stage: StageData) -> tuple[float, float]:
    """Which share of the first epoch's positions, and of its encoder frames, is padding."""
    plan = stage.plan
    table = plan.epoch(0)
    if not len(table):
        return 0.0, 0.0
    held, held_frames = (int(one.sum()) for one in sizes(plan, table))
    real, real_frames = (int(lengths[table.order].sum()) for lengths in (plan.positions, plan.frames))
    if any(towers.encoder.fixed_frames for towers in stage.processor.inputs.values()):
        held_frames, real_frames = _of_rows(stage)
    return _share(held, real), _share(held_frames, real_frames)


def _share(held: int, real: int) -> float:
    return 1 - real / held if held else 0.0


def _of_rows(stage: StageData) -> tuple[int, int]:
    """Frames that are computed and those that are real, of micro-batches from all over the first epoch."""
    table, inputs = stage.plan.epoch(0), stage.processor.inputs
    held = real = looked = 0
    with unchecked(stage.examples):
        for place in spread(len(table)):
            if looked >= MOST:
                break
            members = table.batch(place)
            looked += len(members)
            samples: dict[str, list[int]] = {name: [] for name in inputs}
            for member in members:
                for name, count in _media(stage, member):
                    samples[name].append(count)
            for name, counts in samples.items():
                if counts:
                    computed, own = _frames(inputs[name].encoder, counts)
                    held, real = held + computed, real + own
    return held, real


def _media(stage: StageData, number: int) -> list[tuple[str, int]]:
    """Inputs and samples of an example's media; where there are several, they are taken to be equally long."""
    example = as_examples(stage.examples).example(int(stage.indices[number]))
    inputs = stage.processor.inputs
    names = [item["type"] for message in media_chats(example)[0] for item in message.media if item["type"] in inputs]
    seconds = float(stage.mixture.seconds[number]) / max(len(names), 1)
    return [(name, round(seconds * inputs[name].encoder.sampling_rate)) for name in names]


def _frames(encoder: EncoderConfig, samples: list[int]) -> tuple[int, int]:
    """Frames that an encoder computes for media of so many samples, and those that are real."""
    lengths = np.array([int(encoder.output_lengths(count)) for count in samples])  # (B,)
    cut = encoder.chunker
    chunks = [[count] if cut is None else [one.end - one.start for one in cut.split(count)] for count in samples]
    rows = np.array([size for medium in chunks for size in medium])  # (R,)
    return computed_frames(encoder, lengths, rows, cut=len(rows) > len(lengths)), int(lengths.sum())

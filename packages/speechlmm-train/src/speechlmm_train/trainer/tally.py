"""Sums between two log lines: what each rank has computed, added up over all of them once a line.

Shapes: S samples, T tasks, B media, R rows of an encoder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechlmm_core.features import Loss
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.batching.loader import ORIGIN

ITEMS = "items_by_sample"


class Work:
    """How much was computed; read off micro-batches on the host, before they go to a device.

    Args:
        processor: Knows the inputs and their frame rates.
    """

    def __init__(self, processor: SpeechLMMProcessor) -> None:
        self._inputs = processor.inputs
        own = [f"{name}_{what}" for name in self._inputs for what in ("media", "frames", "frame_squares")]
        common = ("examples", "positions", "held_positions", "position_squares", "supervised", "frames", "held_frames")
        self.sums: dict[str, float] = dict.fromkeys((*common, "audio_seconds", *own), 0.0)

    def add(self, batch: Mapping[str, Any]) -> None:
        """Takes a micro-batch; spacers, which are there for other ranks' sake, count as padding."""
        mask = batch.get("attention_mask")
        lengths = np.asarray(batch["segments"]["lengths"]) if mask is None else mask.sum(1).numpy()  # (S,)
        real = len(batch[ORIGIN]["examples"]) if ORIGIN in batch else len(lengths)
        lengths = lengths[:real]
        self._sum(
            examples=len(lengths),
            positions=lengths.sum(),
            held_positions=batch["input_ids"].numel(),
            position_squares=np.square(lengths, dtype=np.float64).sum(),
            supervised=batch["num_items"]["supervised_tokens"],
        )
        for name, media in batch["media"].items():
            self._add_media(name, media, (batch["samples"]["media"][name] < real).numpy())

    def _add_media(self, name: str, media: Mapping[str, Any], real: NDArray[np.bool_]) -> None:
        encoder = self._inputs[name].encoder
        held_frames = media["encoder_lengths"].numpy()  # (B,)
        rows = media["inputs"]["lengths"].numpy()  # those of chunks, where media are cut
        frames = held_frames[real]
        total = int(frames.sum())
        held = computed_frames(encoder, held_frames, rows, cut="merge_index" in media["inputs"])
        self._sum(frames=total, held_frames=held, audio_seconds=total / float(encoder.frame_rate))
        self._sum(
            **{
                f"{name}_media": len(frames),
                f"{name}_frames": total,
                f"{name}_frame_squares": np.square(frames, dtype=np.float64).sum(),
            }
        )

    def _sum(self, **values: Any) -> None:
        for name, value in values.items():
            self.sums[name] += float(value)


def computed_frames(
    encoder: EncoderConfig, lengths: NDArray[np.integer[Any]], rows: NDArray[np.integer[Any]], *, cut: bool
) -> int:
    """Frames that an encoder computes for the media of a micro-batch, padding included.

    Args:
        encoder: The encoder.
        lengths: (B,) frames of each medium.
        rows: (R,) sizes of the encoder's rows, in any unit: those of chunks, where media are cut.
        cut: Whether any medium is.
    """
    if encoder.fixed_frames is not None:
        return len(rows) * encoder.fixed_frames
    if cut:
        return round(int(lengths.sum()) * len(rows) * int(rows.max(initial=0)) / max(int(rows.sum()), 1))
    return len(lengths) * int(lengths.max(initial=0))


class Losses:
    """Sums of losses, on the device where they are computed; nothing is read back before a log line.

    Args:
        objectives: All of a stage's, the same on every rank.
        tasks: All of its tasks, likewise.
    """

    def __init__(self, objectives: Sequence[str], tasks: Sequence[str]) -> None:
        self.objectives, self.tasks = list(objectives), list(tasks)
        self._means: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts = {name: np.zeros(len(self.tasks)) for name in self.objectives}
        self._unknown = dict.fromkeys(self.objectives, 0.0)
        self._units: dict[str, str] = {}
        self._steps_with: Counter[str] = Counter()

    def begin_step(self, counts: Mapping[str, int]) -> None:
        """Takes how often each unit comes in a step, over all ranks and micro-batches."""
        self._steps_with.update(unit for unit, count in counts.items() if count)

    def add(self, name: str, loss: Loss, mean: Tensor, batch: Mapping[str, Any]) -> None:
        """Takes an objective's loss of a micro-batch.

        Args:
            name: The objective.
            loss: Its sum, and each sample's share.
            mean: The sum's part of the step's mean.
            batch: The micro-batch; what the loader says of its samples may be missing.
        """
        mean = mean.detach()
        self._units[name] = loss.unit
        self._means[name] = self._means[name] + mean if name in self._means else mean
        origin, items = batch.get(ORIGIN), batch.get(ITEMS)
        if origin is None or items is None or loss.unit not in items or not self.tasks:
            self._unknown[name] += 1
            return
        if loss.by_sample is None:  # where there was nothing to learn from, nothing has to be told apart
            self._unknown[name] += bool(items[loss.unit].any())
            return
        numbers, counts = origin["tasks"], items[loss.unit]
        if name not in self._sums:
            self._sums[name] = torch.zeros(len(self.tasks), dtype=_wide(mean), device=mean.device)
        self._sums[name].index_add_(0, numbers, loss.by_sample.to(self._sums[name].dtype))  # (T,)
        self._counts[name] += np.bincount(origin["host_tasks"], counts, len(self.tasks))  # (T,)

    def tensors(self, device: torch.device) -> list[Tensor]:
        """All sums in a fixed order; `figures` takes them apart."""
        nothing = torch.zeros(len(self.tasks), device=device)
        means = [self._means.get(name, torch.zeros((), device=device)).reshape(1) for name in self.objectives]
        sums = [self._sums.get(name, nothing) for name in self.objectives]
        # Every rank counts the same steps, but only one that has met an objective knows its unit.
        met = [float(name in self._units) for name in self.objectives]
        steps = [float(self._steps_with[self._units[name]] if name in self._units else 0) for name in self.objectives]
        host = np.concatenate([*self._counts.values(), list(self._unknown.values()), met, steps])
        return [*means, *sums, torch.as_tensor(host, device=device)]

    def figures(self, values: Sequence[float], steps: int) -> dict[str, float]:
        """Means from the sums of all ranks.

        Args:
            values: What `tensors` came to.
            steps: Steps that they are of.

        Returns:
            Each objective's mean over the steps that have something for it to learn from, by its name; and
            `<task>/<objective>`, over all units of the task. An objective of which not every loss could be told apart
            has none of the latter.
        """
        found: dict[str, float] = {}
        count, tasks = len(self.objectives), len(self.tasks)
        means, rest = values[:count], list(values[count:])
        sums, rest = rest[: count * tasks], rest[count * tasks :]
        counts, rest = rest[: count * tasks], rest[count * tasks :]
        unknown, met, steps_with = (rest[at * count : (at + 1) * count] for at in range(3))
        for place, name in enumerate(self.objectives):
            own = steps_with[place] / max(met[place], 1)
            if own or means[place]:
                found[name] = means[place] / (own or steps)
            for number, task in enumerate(self.tasks):
                at = place * tasks + number
                if task and counts[at] and not unknown[place]:
                    found[f"{task}/{name}"] = sums[at] / counts[at]
        return found


def read(tensors: Sequence[Tensor], device: torch.device) -> list[float]:
    """Reads flat tensors from the device, all at once."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    return torch.cat([tensor.to(device, wide) for tensor in tensors]).tolist()


def _wide(like: Tensor) -> torch.dtype:
    return torch.float32 if like.device.type == "mps" else torch.float64

"""The micro-batches that all processes try out together, and how far they have come with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback

from speechlmm_core.errors import SpeechLMMError
from speechlmm_train.batching.epoch import MicroBatch
from speechlmm_train.preflight.tryout import unloadable
from speechlmm_train.preflight.worst import worst_batches
from speechlmm_train.trainer.stage_data import StageData


class Tries:
    """The largest micro-batches of a stage, and the first of them once more, beside the optimiser's states.

    Every process runs the same, so that each has the largest.
    """

    def __init__(self, stage: StageData, rank: int) -> None:
        found = worst_batches(stage.plan)
        self.stage = stage
        self.order: list[MicroBatch] = [*found, found[0]]
        self.loader = stage.batches(0, rank=rank)
        self.micro_batch = found[0]
        self.batch: dict[str, Any] | None = None
        """What was loaded last; None before the first."""
        self.stepping = False
        """Whether the optimiser is at it."""
        self.inputs: set[str] = set()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for micro_batch in self.order:
            batch = self._loaded(micro_batch)
            self.micro_batch, self.batch = micro_batch, batch
            self.inputs |= batch["media"].keys()
            yield batch

    def _loaded(self, micro_batch: MicroBatch) -> dict[str, Any]:
        try:
            return self.loader.load(micro_batch)
        except SpeechLMMError:
            raise
        except Exception as exc:
            raise unloadable(self.stage, micro_batch, exc) from exc


class Stepping(TrainerCallback):
    """Tells when the optimiser is at it.

    Args:
        tries: Hears of it.
    """

    def __init__(self, tries: Tries) -> None:
        self.tries = tries

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """It begins."""
        self.tries.stepping = True

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """It is done."""
        self.tries.stepping = False

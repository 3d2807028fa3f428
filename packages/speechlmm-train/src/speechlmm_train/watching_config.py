# pyright: strict
"""What a training watches itself for. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from speechlmm_train.data_config import Section


class Watching(Section):
    """When a training that goes wrong stops by itself, and what its speed is compared with."""

    max_loss: Annotated[float, Field(gt=0)] | None = None
    """Loss of any objective, a step's mean, above which training stops at once; null for no such limit."""
    stop_on_explosion: Annotated[float, Field(gt=1)] | None = 5.0
    """Training stops where an objective's loss is above so many times its running median, three steps in a row; null to
    go on. Losses up to 10, or up to twice those of the first 20 steps, are never taken for an explosion. A loss or
    gradient that is not a finite number always stops it."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """TFLOP/s that one device can do at most, for `train/mfu`; by default those of known GPUs."""

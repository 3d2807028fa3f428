# pyright: strict
"""How large micro-batches are, and what is checked of them before a training starts. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_train.data_config import Positive, Section


class Sizes(Section):
    """How large a micro-batch is."""

    token_budget: Positive | Literal["auto"] | None = None
    """Positions of the text decoder in a micro-batch, padding included; `auto` for as many as the memory holds, found
    by measuring when the training starts."""
    frame_budget: Positive | None = None
    """Encoder output frames in a micro-batch, padding included."""
    per_device_train_batch_size: Positive | None = None
    """Examples in a micro-batch, in place of the budgets."""

    @model_validator(mode="after")
    def _one_way_to_size(self) -> Sizes:
        if self.per_device_train_batch_size and (self.token_budget or self.frame_budget):
            raise PydanticCustomError(
                "batch_size", "give either per_device_train_batch_size or token_budget/frame_budget, not both", {}
            )
        if self.token_budget == "auto" and self.frame_budget:
            raise PydanticCustomError(
                "auto_budget", "with token_budget=auto the frame budget follows from it; leave frame_budget out", {}
            )
        return self


class Checks(Section):
    """What is checked before a training starts."""

    preflight: bool = True
    """Whether files, vocabulary, targets and disk are checked, and the longest examples go through the model, before
    the first step."""
    memory_limit_gib: Annotated[float, Field(gt=0)] | None = None
    """GiB that a process may take, for `token_budget: auto`; by default what its GPU has."""

# pyright: strict
"""Which optimisers' states can be part of checkpoints that any way to spread a training reads. Imports no torch."""

from __future__ import annotations

from speechlmm_core.errors import ConfigError
from speechlmm_train.parallel_names import Mode

_UNSAVED = ("galore", "apollo", "lomo", "adalomo")
"""Keep objects beside tensors, or tensors of their own outside the state."""
_OTHER_SHAPES = ("adafactor", "8bit", "4bit", "paged", "ademamix", "grokadamw")
"""Keep tensors of other shapes than the parameters', or quantised ones."""


def check_optimizer(optim: str, mode: Mode, *, saves: bool) -> None:
    """Checks that an optimiser's state can be saved and taken up again.

    Args:
        optim: The name in `TrainingArguments`.
        mode: How the model is spread.
        saves: Whether checkpoints are written.

    Raises:
        ConfigError: It cannot.
    """
    if not saves:
        return
    advice = "choose another, such as adamw_torch, or write no checkpoints (training.save_steps: null)"
    if any(part in optim for part in _UNSAVED):
        raise ConfigError(
            f"training.optim {optim!r} keeps what cannot be saved, so that no run could go on from its checkpoints; "
            f"{advice}"
        )
    if mode in ("zero", "fsdp2") and any(part in optim for part in _OTHER_SHAPES):
        raise ConfigError(
            f"training.optim {optim!r} keeps states of other shapes than the parameters', which cannot be saved whole "
            f"where they are spread over processes; use it with ddp, or {advice}"
        )

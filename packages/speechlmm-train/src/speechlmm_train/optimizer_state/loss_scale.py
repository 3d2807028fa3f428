"""The loss scale of fp16 in checkpoints: torch's and DeepSpeed's, each of which takes up what the other has written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechlmm_train.optimizer_state.zero import find_zero

_SCALE, _STEPS = "scale", "_growth_tracker"
"""As torch's `GradScaler` has them: the scale, and the steps since it changed."""


class ZeroScale:
    """DeepSpeed's loss scale, with what torch's has.

    Args:
        scaler: DeepSpeed's.
    """

    KEYS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

    def __init__(self, scaler: Any) -> None:
        self._scaler = scaler

    def state_dict(self) -> dict[str, float]:
        """Its numbers."""
        return {key: getattr(self._scaler, key) for key in self.KEYS if hasattr(self._scaler, key)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes over its numbers, or torch's: the scale, and when it grows next."""
        if _SCALE in state:
            # DeepSpeed counts from the last overflow on, of which the first comes before step 0.
            state = {"cur_scale": state[_SCALE], "last_overflow_iter": -1, "cur_iter": state[_STEPS]}
        for key in self.state_dict().keys() & state.keys():
            setattr(self._scaler, key, state[key])


def loss_scale_of(wrapped: Any) -> ZeroScale | None:
    """The loss scale of DeepSpeed's optimiser; None where the loss is not scaled."""
    zero = find_zero(wrapped)
    scaler = getattr(zero, "loss_scaler", None)
    return ZeroScale(scaler) if hasattr(scaler, "cur_scale") and getattr(zero, "dynamic_loss_scale", False) else None


def take_up_scale(scaler: Any, state: Mapping[str, float]) -> None:
    """Has a loss scale go on from a checkpoint's, whichever wrote it.

    Args:
        scaler: DeepSpeed's, or torch's `GradScaler`.
        state: What the checkpoint says of it.
    """
    if not isinstance(scaler, ZeroScale) and _SCALE not in state:
        own = scaler.state_dict()
        if not own:  # it is not used
            return
        steps = int(state["cur_iter"] - state["last_overflow_iter"] - 1)
        # It grows when the steps are as many as the interval, and never where they are more.
        state = {**own, _SCALE: state["cur_scale"], _STEPS: max(steps, 0) % own["growth_interval"]}
    scaler.load_state_dict(state)

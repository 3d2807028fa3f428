"""Looks at every step of a training before the optimiser does: the norms of its gradient, and whether it went wrong."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from speechlmm_train.trainer.divergence import Fault, Watch
from speechlmm_train.trainer.grad_norms import part_norms
from speechlmm_train.trainer.meter import Meter
from speechlmm_train.trainer.output_folder import OutputFolder


class WatchedTrainer(Trainer):
    """A trainer that ends where a step went wrong.

    The losses and the gradient's norm are read from the device once a step, between the backward pass and the
    optimiser. DeepSpeed's optimiser runs within the backward pass: there, losses are looked at before that, and the
    norm when the step is done.
    """

    meter: Meter
    watch: Watch
    folder: OutputFolder
    stage: Any
    """A `StageContext`."""

    @property
    def total_step(self) -> int:
        """Steps done in all stages."""
        return self.stage.first_total_step + self.state.global_step

    def look_at_losses(self) -> None:
        """With DeepSpeed, looks at the losses of a step before the backward pass of its last micro-batch.

        Raises:
            DivergedError: They went wrong.
        """
        if self.is_deepspeed_enabled and self.accelerator.sync_gradients:
            self._act(self.watch.fault(None), None)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self._measure_parts()
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:  # nothing was clipped
            self._measure_parts()
        found: Tensor | float | None = super()._get_grad_norm(model, grad_norm=grad_norm)
        known = None if self.args.fp16 else found  # there, such a step is left out and the next is scaled less
        fault = self.watch.gradient_fault(known) if self.is_deepspeed_enabled else self.watch.fault(known)
        self._act(fault, found)
        return found

    def _act(self, fault: Fault | None, grad_norm: Tensor | float | None) -> None:
        if fault is None:
            return
        assert self.model is not None
        about = {
            "step": self.total_step + 1,
            "stage": self.stage.name,
            "learning_rate": self._get_learning_rate(),
            "grad_norm": None if grad_norm is None else float(grad_norm),
            "grad_norms": {part: float(norm) for part, norm in self._norms().items()},
        }
        self.watch.stop(fault, folder=self.folder.path, about=about)

    def _measure_parts(self) -> None:
        """Measures the parts' gradients of a step that will be logged, before they are clipped."""
        if self.is_deepspeed_enabled:  # its optimiser has had them by now
            return
        step = self.state.global_step + 1
        first = step == 1 and self.args.logging_first_step
        if first or step >= self.state.max_steps or step % max(int(self.state.logging_steps), 1) == 0:
            self.meter.grad_norms = self._norms()

    def _norms(self) -> dict[str, Tensor]:
        assert self.model is not None
        norms = part_norms(self.model)
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None or not norms else float(scaler.get_scale())
        return norms if scale == 1 else {part: norm / scale for part, norm in norms.items()}

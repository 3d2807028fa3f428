"""Looks at every step of a training before the optimiser does: the norms of its gradient, and whether it went wrong."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from transformers import Trainer

from speechlmm_train.trainer.divergence import Fault, Watch
from speechlmm_train.trainer.grad_norms import part_norms, total_norm
from speechlmm_train.trainer.meter import Meter
from speechlmm_train.trainer.output_folder import OutputFolder


class WatchedTrainer(Trainer):
    """A trainer that ends where a step went wrong.

    The losses and the gradient's norm are read from the device once a step, between the backward pass and the
    optimiser, and before anything is clipped: a part whose gradient is no number would make all of it none. DeepSpeed's
    optimiser runs within the backward pass: there, losses are looked at before that, and the norm when the step is
    done.
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
        if self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        norm = self._looked_at(model)
        clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if not self.is_deepspeed_enabled:
            return (
                self._looked_at(model) if grad_norm is None else grad_norm
            )  # nothing was clipped, or it was looked at
        found: Tensor | float | None = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._act(self.watch.gradient_fault(self._judged(found)), found)
        return found

    def _looked_at(self, model: nn.Module) -> Tensor:
        """The norm of the whole gradient, of a step that did not go wrong.

        Raises:
            DivergedError: It did.
        """
        self.accelerator.unscale_gradients()  # of fp16's loss scale
        self._measure_parts()
        norm = total_norm(model)
        self._act(self.watch.fault(self._judged(norm)), norm)
        return norm

    def _judged(self, norm: Tensor | float | None) -> Tensor | float | None:
        """What a norm is judged by: with fp16, a step that overflows is left out, and the next is scaled less."""
        return None if self.args.fp16 else norm

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
        """Measures the parts' gradients of a step that will be logged."""
        step = self.state.global_step + 1
        first = step == 1 and self.args.logging_first_step
        if first or step >= self.state.max_steps or step % max(int(self.state.logging_steps), 1) == 0:
            self.meter.grad_norms = self._norms()

    def _norms(self) -> dict[str, Tensor]:
        assert self.model is not None
        return part_norms(self.model)

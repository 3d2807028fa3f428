"""A trainer whose model is spread over processes in the way that its stage says: whole copies, ZeRO or FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from speechlmm_core.checkpoint.fill import is_spread
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.parallel.touch import still
from speechlmm_train.parallel.wrap import gather_at_start, hidden, leave_whole, shard, to_device
from speechlmm_train.trainer.stage_context import StageContext
from speechlmm_train.trainer.watched import WatchedTrainer


class SpreadTrainer(WatchedTrainer):
    """A trainer that spreads its model.

    FSDP2 spreads it before transformers sees it. DeepSpeed spreads it when the training is prepared, where what is to
    stay whole (`StageContext.whole`) is hidden from it until then.

    Args:
        model: The model, frozen as the stage wants it.
        args: Its arguments.
        stage: The stage.
        callbacks: Further callbacks.
    """

    def __init__(
        self,
        *,
        model: SpeechLMM,
        args: TrainingArguments,
        stage: StageContext,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if stage.mode != "none":
            still(model, stage.inputs)
        if stage.mode == "fsdp2":
            shard(model, whole=stage.whole, device=args.device, bf16=args.bf16)
        super().__init__(model=model, args=args, callbacks=callbacks)
        if stage.mode == "fsdp2":
            self.is_distributed_loading_by_transformers = True  # so that it is not spread a second time
        self.stage: StageContext = stage
        self._norm: Tensor | None = None
        self._hidden = ExitStack()

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        with self._hidden:  # whatever fails
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        assert isinstance(self.model, SpeechLMM)
        if self.stage.mode == "zero":
            to_device(self.model, whole=self.stage.whole, device=self.args.device)
            gather_at_start(self.model)
            leave_whole(self.model_wrapped, self.model, self.stage.whole)
            self._clip_before_step()
            if self.halved:
                self.model.forward = torch.autocast(self.args.device.type, torch.float16)(self.model.forward)
        return prepared

    @property
    def halved(self) -> bool:
        """Whether DeepSpeed has put the weights that it spreads into fp16, beside others in fp32."""
        return self.stage.mode == "zero" and self.args.fp16

    def _clip_before_step(self) -> None:
        """With ZeRO's stage 0, clips gradients when they are summed up: there, DeepSpeed does not tell their norm."""
        plain = getattr(self.model_wrapped, "optimizer", None)
        if not isinstance(plain, torch.optim.Optimizer):
            return

        def clip(*_: Any) -> None:
            limit = self.stage.max_grad_norm or float("inf")
            parameters = [one for group in plain.param_groups for one in group["params"]]
            self._norm = torch.nn.utils.clip_grad_norm_(parameters, limit)

        plain.register_step_pre_hook(clip)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(model, grad_norm=grad_norm if self._norm is None else self._norm)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Gradients are spread at every micro-batch: whole ones would need the memory that FSDP is there to save."""
        yield

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if self.stage.mode == "zero":  # until the scheduler is made, which comes next
            assert isinstance(self.model, SpeechLMM)
            self._hidden.enter_context(hidden(self.model, self.stage.whole))
        return super()._wrap_model(model, training, dataloader)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not any(is_spread(parameter) for parameter in model.parameters()):  # FSDP has put it there
            super()._move_model_to_device(model, device)

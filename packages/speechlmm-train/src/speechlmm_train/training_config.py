# pyright: strict
"""The `training:` section of a run. Imports no torch.

What is not listed here but is a field of transformers' `TrainingArguments` may stand there, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from speechlmm_core.faults import checked, fault
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.registry import nearest
from speechlmm_train.data_config import Positive, Rate
from speechlmm_train.parallel_names import Parallel, stage_of
from speechlmm_train.restarts_config import Restarts
from speechlmm_train.sizes_config import Checks, Sizes
from speechlmm_train.training_arguments import DECIDED_ELSEWHERE, training_argument_names, type_fault
from speechlmm_train.watching_config import Watching

Groups = dict[str, Rate]
"""Learning rates by module name or glob; 0 leaves a part as it is."""


class TrainingConfig(Sizes, Restarts, Checks, Watching):
    """How the model is trained."""

    model_config = ConfigDict(extra="allow")

    output_dir: Annotated[str, Field(min_length=1)]
    """Folder that everything is written to."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, dropout, order and prompts."""
    max_steps: Positive | None = None
    """Optimiser steps."""
    num_epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data, in place of `max_steps`."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    lr_scheduler_type: str = "cosine"
    """Shape of the learning rate over the steps."""
    warmup_steps: Rate = 0
    """Steps until the peak; below 1, a fraction of all steps."""
    weight_decay: Rate = 0.0
    """Weight decay, on matrices only."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of AdamW's second moment."""
    max_grad_norm: Rate = 1.0
    """Gradients are clipped to this norm; 0 for no clipping."""
    micro_batches_per_step: Positive = 1
    """Micro-batches in the global batch of a step, over all processes."""
    freeze_modules: list[str] = Field(default_factory=list[str])
    """Parts of the model that are not trained: module names (`audio_encoder`) or globs (`*_encoder`)."""
    lr_groups: Groups = Field(default_factory=dict[str, float])
    """Learning rates of parts of the model, by module name or glob; of several that match, the longest counts."""
    packed: bool = True
    """Whether the examples of a micro-batch share one row; otherwise they are padded."""
    bf16: bool | Literal["auto", "gpu"] = "auto"
    """Mixed precision; `auto` is on where a GPU supports it, and on a CPU with AMX where the language model is at least
    512 wide (narrower ones lose by it); `gpu` on a GPU alone."""
    gradient_checkpointing: bool = False
    """Trades computation for memory."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Data worker processes."""
    save: Literal["full", "trainable"] = "full"
    """Whether checkpoints hold every weight, or those that were trained and references to the others."""
    save_steps: Positive | None = 500
    """Steps between checkpoints; null for none before the end."""
    save_total_limit: Positive | None = 3
    """Checkpoints that are kept."""
    resume_changed: bool = False
    """Whether `--resume` may go on with other data, budgets or mixing than the run was begun with."""
    logging_steps: Positive = 10
    """Steps between two log lines."""
    eval_steps: Positive | None = None
    """Steps between two evaluations by generation; null for none."""
    eval_samples: Positive = 32
    """Examples of each task that such an evaluation generates from, spread over the datasets; always the same ones."""
    eval_max_new_tokens: Positive = 128
    """Tokens of an answer at most, in such an evaluation."""
    metric_for_best_model: str | None = None
    """Figure of the evaluations that decides which checkpoint is the best (`eval/asr_wer`); it is never removed."""
    greater_is_better: bool | None = None
    """Whether the best is the highest; by default what the metric says of itself."""
    load_best_model_at_end: bool = False
    """Whether `model/`, and what a later stage starts from, is the best checkpoint instead of the last."""
    early_stopping_patience: Positive | None = None
    """Evaluations in a row without an improvement after which a stage ends; null to go on to its last step."""
    early_stopping_threshold: Rate = 0.0
    """By how much the figure has to get better to count as an improvement for early stopping."""
    guard_tolerance: Rate = 0.1
    """By which share a figure of the guard set may worsen, against its first evaluation, without a warning."""
    pretrained_checkpoint: str | None = None
    """Path of a trained model whose weights training starts from: a fine-tuning."""
    new_components: list[str] = Field(default_factory=list[str])
    """Parts that `pretrained_checkpoint` may lack: module names or globs. They start from their base checkpoints or at
    random; without being named here that is an error."""
    lora_adapters: list[LoraAdapterConfig] = Field(default_factory=list[LoraAdapterConfig])
    """Low-rank adapters. What they are put on is frozen but for them, and the rest is trained as without them."""
    load_in_4bit: bool = False
    """Quantises the language model's frozen linear layers to 4 bits (Dettmers et al., 2023, arXiv 2305.14314)."""
    load_in_8bit: bool = False
    """Quantises them to 8 bits."""
    parallel: Parallel = "auto"
    """How processes share the training: `ddp`, DeepSpeed's `zero0` to `zero3` (`zero2_offload`, `zero3_offload` keep
    states in the host's memory), `fsdp2`; `auto` is `ddp` where there are several."""
    num_processes: Positive | Literal["auto"] = "auto"
    """Processes on each node; `auto` for one on each GPU, and one where there is none."""
    ddp_timeout: Positive = 1800
    """Seconds that processes wait for each other before the run is given up: the longest that one may be busy alone,
    opening data or writing a checkpoint."""
    deepspeed_config: str | None = None
    """A DeepSpeed configuration (JSON) that is laid over the one that `parallel` stands for."""
    report_to: list[Literal["tensorboard", "wandb"]] = Field(default_factory=lambda: ["tensorboard"])
    """Where figures go, beside `metrics.jsonl`."""
    run_name: str | None = None
    """What the run is called, and its folder without an `output_dir`; by default after kind, modules and setting."""
    wandb_project: str = "speechlmm"
    """Project at Weights & Biases, and the folder of the runs below `$CHECKPOINTS_HOME`."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if value in (None, "none"):
            return []
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _possible(self) -> TrainingConfig:
        if faults := list(self._contradictions()):
            raise PydanticCustomError("training_argument", "{faults}", {"faults": "\n".join(faults)})
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _known_extras(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Beside the fields, and not after them, so that what is wrong is told at once.
        faults = list(cls._extra_faults(cast("dict[Any, Any]", data))) if isinstance(data, dict) else []
        return checked(cls.__name__, handler, data, faults)

    @classmethod
    def _extra_faults(cls, given: dict[Any, Any]) -> Iterator[InitErrorDetails]:
        """What is wrong with the keys that are not ours."""
        known = training_argument_names() - DECIDED_ELSEWHERE.keys()
        for key, value in given.items():
            if not isinstance(key, str) or key in cls.model_fields:  # pydantic refuses the others
                continue
            if key in DECIDED_ELSEWHERE:
                yield fault(f"{key!r} cannot be set: {DECIDED_ELSEWHERE[key]}", value, key)
            elif key not in known:
                yield fault(f"unknown key {key!r}{nearest(key, [*cls.model_fields, *sorted(known)])}", value, key)
            elif (told := type_fault(key, value)) is not None:
                yield fault(told, value, key)

    def _contradictions(self) -> Iterator[str]:
        """Settings that cannot be together, each beginning with the key to change."""
        if self.max_steps and self.num_epochs:
            yield "max_steps: give either max_steps or num_epochs, not both"
        if self.metric_for_best_model is not None and not self.eval_steps:
            yield "eval_steps: metric_for_best_model needs evaluations: set eval_steps"
        for name in ("early_stopping_patience", "load_best_model_at_end"):
            if getattr(self, name) and self.metric_for_best_model is None:
                yield f"metric_for_best_model: {name} needs metric_for_best_model, such as eval/asr_wer"
        if self.new_components and self.pretrained_checkpoint is None:
            yield f"new_components: got {self.new_components!r}; without a pretrained_checkpoint everything is new"
        if self.deepspeed_config is not None and stage_of(self.parallel) is None:
            yield (
                f"deepspeed_config: got {self.deepspeed_config!r} with parallel {self.parallel!r}; set parallel to its "
                "stage (zero0 to zero3)"
            )
        processes = self.num_processes
        if isinstance(processes, int) and self.micro_batches_per_step % processes:
            more = -(-self.micro_batches_per_step // processes) * processes
            yield (
                f"micro_batches_per_step: got {self.micro_batches_per_step}; expected a multiple of the {processes} "
                f"processes of num_processes, which share a step's: set it to {more}, or take fewer processes"
            )
        if self.bf16 is True and self.extras.get("fp16"):
            yield "fp16: got true beside bf16=true; training is in one of them"
        if self.restarts and self.extras.get("lr_scheduler_kwargs"):
            yield "lr_scheduler_kwargs: lr_min and restarts are all that the scheduler takes beside them; leave it out"

    @property
    def extras(self) -> dict[str, Any]:
        """Further fields of `TrainingArguments`."""
        return dict(self.__pydantic_extra__ or {})

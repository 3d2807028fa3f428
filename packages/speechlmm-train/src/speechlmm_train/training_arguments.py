"""Names of transformers' `TrainingArguments`, read from its source so that checking a key imports nothing heavy."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_LOADER = "the batch plan decides what a batch holds; use token_budget, frame_budget or per_device_train_batch_size"
_STEP = "use micro_batches_per_step"
_OURS = "SpeechLMM writes its own checkpoints and logs"
_EVALUATION = "use eval_steps and eval_samples"
_WORKERS = "the loader is ours; use num_workers"
DECIDED_ELSEWHERE: dict[str, str] = {
    "gradient_accumulation_steps": _STEP,
    "num_train_epochs": "use num_epochs",
    "auto_find_batch_size": _LOADER,
    "train_sampling_strategy": _LOADER,
    "length_column_name": _LOADER,
    "data_seed": "use seed",
    "ignore_data_skip": "resuming starts the batch plan at the right step",
    "dataloader_num_workers": "use num_workers",
    "dataloader_drop_last": _LOADER,
    "remove_unused_columns": _LOADER,
    "label_names": _LOADER,
    "label_smoothing_factor": "losses are the model's objectives",
    "save_strategy": "use save_steps",
    "save_only_model": _OURS,
    "logging_strategy": "use logging_steps",
    "eval_strategy": _EVALUATION,
    "eval_on_start": _EVALUATION,
    "push_to_hub": _OURS,
    "resume_from_checkpoint": "use --resume",
    "activation_checkpointing": "use gradient_checkpointing",
    "dataloader_prefetch_factor": _WORKERS,
    "dataloader_pin_memory": _WORKERS,
    "dataloader_persistent_workers": _WORKERS,
    "dataloader_in_order": _WORKERS,
    "dataloader_multiprocessing_context": _WORKERS,
    "per_device_eval_batch_size": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "eval_delay": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "prediction_loss_only": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "bf16_full_eval": _EVALUATION,
    "fp16_full_eval": _EVALUATION,
    "project": "figures go where report_to says",
    "disable_tqdm": "use --no-progress",
    "restore_callback_states_from_checkpoint": _OURS,
    "save_on_each_node": _OURS,
    "enable_jit_checkpoint": _OURS,
    **{f"hub_{name}": _OURS for name in ("always_push", "model_id", "private_repo", "revision", "strategy", "token")},
    **{f"trackio_{name}": _OURS for name in ("bucket_id", "space_id", "static_space_id")},
    "include_num_input_tokens_seen": "tokens per second are always among the figures",
    "local_rank": "the launcher sets it",
    "do_train": "it always trains",
    "do_eval": _EVALUATION,
    "do_predict": "use `speechlmm-train evaluate`",
    "average_tokens_across_devices": "every loss is divided by its own global count",
    "deepspeed": "launching with DeepSpeed is not part of this version",
    "fsdp": "launching with FSDP is not part of this version",
}


@cache
def training_argument_names() -> frozenset[str]:
    """Fields of `TrainingArguments` in the installed transformers."""
    spec = find_spec("transformers")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        return frozenset()
    tree = ast.parse((Path(folders[0]) / "training_args.py").read_text(encoding="utf-8"))
    return frozenset(
        field.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )

"""Names and types of transformers' `TrainingArguments`, read from its source so that checks import nothing heavy."""

from __future__ import annotations

import ast
import functools
import operator
import types
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

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
    "deepspeed": "use parallel (zero0 to zero3_offload) and deepspeed_config",
    "fsdp": "use parallel: fsdp2",
    "fsdp_config": "use parallel: fsdp2",
    "ddp_find_unused_parameters": "the trainer finds them by itself",
}


@cache
def training_argument_types() -> dict[str, Any]:
    """Types of the fields of `TrainingArguments` in the installed transformers; Any where they are not simple."""
    spec = find_spec("transformers")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        return {}
    tree = ast.parse((Path(folders[0]) / "training_args.py").read_text(encoding="utf-8"))
    return {
        field.target.id: _type(field.annotation) or Any
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def training_argument_names() -> frozenset[str]:
    """Fields of `TrainingArguments` in the installed transformers."""
    return frozenset(training_argument_types())


def type_fault(key: str, value: Any) -> str | None:
    """What is wrong with the type of a value; None where nothing is, or where it shows only when the job starts."""
    kind = training_argument_types().get(key, Any)
    try:
        TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        return f"got {value!r}; expected {_name(kind)}"
    return None


_SIMPLE: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "dict": dict, "list": list}


def _type(node: ast.expr) -> Any:
    """The type that an annotation stands for; None where it is not one that a configuration can hold."""
    if isinstance(node, ast.Name):
        return _SIMPLE.get(node.id)
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = [side for side in (_type(node.left), _type(node.right)) if side is not None]
        return functools.reduce(operator.or_, sides) if sides else None
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id == "Literal" and isinstance(node.slice, ast.Constant):
            return Literal[node.slice.value]
        # What is in a list or a mapping shows when the job starts.
        return {"list": list, "dict": dict}.get(node.value.id)
    return None


def _name(kind: Any) -> str:
    options = get_args(kind) if get_origin(kind) is types.UnionType else (kind,)
    return " or ".join("null" if one is type(None) else getattr(one, "__name__", str(one)) for one in options)

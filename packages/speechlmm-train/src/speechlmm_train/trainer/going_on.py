# pyright: strict
"""Whether a run can go on from its last checkpoint, as far as the configuration alone says. Imports no torch.

`run --resume` checks it before anything is written, and `--dry-run` without doing anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_train.batching.sequence import changes
from speechlmm_train.optimizer_state.kinds import DEFAULT, check_kind, check_spread, class_of, is_known, read_state
from speechlmm_train.parallel_names import mode_of
from speechlmm_train.stage_config import ResolvedStage
from speechlmm_train.trainer.best import RunState
from speechlmm_train.trainer.checkpoints import Checkpoint, Progress
from speechlmm_train.trainer.output_folder import OutputFolder
from speechlmm_train.training_config import TrainingConfig

SEQUENCE = "sequence.json"
"""What decided a checkpoint's batches, and where the next one lies."""


def check_going_on(
    folder: OutputFolder, checkpoint: Checkpoint | None, stages: Sequence[ResolvedStage], steps: Sequence[int | None]
) -> None:
    """Checks that a run can go on from where it stands.

    Args:
        folder: Its folder.
        checkpoint: The last checkpoint; None if there is none.
        stages: The stages.
        steps: Steps of each; None where that is not known before the data are opened.

    Raises:
        ConfigError: Stages that are over had other lengths, more has been trained than is asked for, other parts of the
            model were, or a finished run left no checkpoint to go on from.
        CheckpointError: The optimiser is another one.
    """
    _check_progress(folder, checkpoint.progress if checkpoint else None, steps)
    begun = (folder.config() or {}) if checkpoint is not None else {}
    if begun:
        _check_adapters(folder, begun, stages[0].training)
    if checkpoint is not None and not _is_over(checkpoint, steps):
        if begun:
            _check_frozen(folder, begun, checkpoint.progress.stage, stages)
        _check_optimizer(checkpoint, stages[checkpoint.progress.stage])


def check_batch_settings(checkpoint: Checkpoint, stages: Sequence[ResolvedStage], steps: Sequence[int | None]) -> None:
    """Checks that what the configuration says of a stage's batches is what they were made by.

    Whether the data are the same is seen when they are opened.

    Raises:
        ConfigError: They would be others, and that is not allowed; names what differs.
        CheckpointError: The checkpoint does not say.
    """
    stage = stages[checkpoint.progress.stage]
    if stage.training.resume_changed or _is_over(checkpoint, steps):
        return
    before, _ = read_sequence(checkpoint)
    if changed := changes(before, _batch_settings(stage)):
        refuse_batches(checkpoint, changed)


def read_sequence(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decided a checkpoint's batches, and where the next one lies.

    Raises:
        CheckpointError: The checkpoint does not say.
    """
    file = checkpoint.path / SEQUENCE
    try:
        content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return dict(content["decided_by"]), dict(content["position"])
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise CheckpointError(f"{str(file)!r} cannot be read: {exc}; start anew with --overwrite") from exc


def refuse_batches(checkpoint: Checkpoint, changed: Sequence[str]) -> None:
    """Refuses to go on with other batches.

    Raises:
        ConfigError: Always; names what differs.
    """
    raise ConfigError(
        f"--resume: the batches of stage {checkpoint.progress.stage_name!r} would not be those that the run was "
        f"begun with ({'; '.join(changed)}); go on with what it had, or set training.resume_changed=true to go on from "
        f"step {checkpoint.progress.step} of the new sequence"
    )


def _batch_settings(stage: ResolvedStage) -> dict[str, Any]:
    """As `sequence_of` has them, without what follows from the data."""
    training = stage.training
    found: dict[str, Any] = {
        "mixing": stage.data.mixing,
        "batch_size": training.per_device_train_batch_size,
        "packed": training.packed,
        "batch_window": stage.data.batch_window,
        "micro_batches_per_step": training.micro_batches_per_step,
    }
    if training.token_budget != "auto":  # what was found for the run so far goes on
        found["token_budget"] = training.token_budget
    if training.frame_budget is not None:  # otherwise it follows from the lengths
        found["frame_budget"] = training.frame_budget
    return found


def _check_progress(folder: OutputFolder, at: Progress | None, steps: Sequence[int | None]) -> None:
    if at is not None:
        if at.stage >= len(steps):
            raise ConfigError(
                f"--resume: the run in {str(folder.path)!r} stands in stage {at.stage_name!r}, which is not asked for; "
                "go on with all its stages, or choose another training.output_dir"
            )
        over, asked = [count or 0 for count in steps[: at.stage]], steps[at.stage]  # with several, all are known
        if sum(over) != at.total_step - at.step:
            raise ConfigError(
                f"--resume: the stages before {at.stage_name!r} took {at.total_step - at.step} steps in the run in "
                f"{str(folder.path)!r}, and are {sum(over)} now; only steps to come can be changed"
            )
        if asked is not None and at.step > asked:
            raise ConfigError(
                f"--resume: stage {at.stage_name!r} has done {at.step} steps, and {asked} are "
                "asked for; ask for more, or start anew with --overwrite"
            )
    elif folder.report() is not None:
        raise ConfigError(
            f"--resume: the run in {str(folder.path)!r} ended after another number of steps and left no checkpoint "
            "to go on from; start anew with --overwrite, or from its model with training.pretrained_checkpoint"
        )


def _check_adapters(folder: OutputFolder, begun: Mapping[str, Any], asked: TrainingConfig) -> None:
    training = cast("Mapping[str, Any]", begun.get("training") or {})
    ours = [adapter.model_dump() for adapter in asked.lora_adapters]
    theirs = [_adapter(one) for one in cast("Sequence[Any]", training.get("lora_adapters") or [])]
    if sorted(ours, key=str) != sorted(theirs, key=str):
        names = [", ".join(str(one.get("name")) for one in found) or "(none)" for found in (theirs, ours)]
        said = f"{names[0]}, asked for {names[1]}" if names[0] != names[1] else f"{names[0]} with other fields"
        _refuse(folder, f"training.lora_adapters {said}")
    for key in ("load_in_4bit", "load_in_8bit"):
        if bool(training.get(key)) != getattr(asked, key):
            _refuse(folder, f"training.{key}={str(bool(training.get(key))).lower()}")


def _adapter(given: Any) -> dict[str, Any]:
    try:
        return LoraAdapterConfig.model_validate(given).model_dump()
    except ValidationError:  # of another version
        return dict(given)


def _check_frozen(folder: OutputFolder, begun: Mapping[str, Any], index: int, stages: Sequence[ResolvedStage]) -> None:
    """What the stage under way trains is what its optimiser has states for; of stages to come, that may change."""
    training = cast("Mapping[str, Any]", begun.get("training") or {})
    rows = cast("Sequence[Mapping[str, Any]]", begun.get("stages") or [])
    own: Mapping[str, Any] = rows[index] if index < len(rows) else {}
    stage = stages[index]
    frozen = own.get("freeze_modules")
    before = _named(own.get("trainable_modules"), training.get("freeze_modules") if frozen is None else frozen)
    if (after := _named(stage.trainable_modules, stage.training.freeze_modules)) != before:
        (key, modules), (other, others) = before, after
        said = f"{key} [{', '.join(modules)}], asked for {other} [{', '.join(others)}]"
        _refuse(folder, f"{said} in stage {stage.name!r}")


def _named(trainable: Sequence[str] | None, frozen: Sequence[str] | None) -> tuple[str, list[str]]:
    if trainable is not None:
        return "trainable_modules", sorted(trainable)
    return "freeze_modules", sorted(frozen or [])


def _refuse(folder: OutputFolder, begun_with: str) -> None:
    raise ConfigError(
        f"--resume: the run in {str(folder.path)!r} was begun with {begun_with}; go on with what it had, or start from "
        "its weights with training.pretrained_checkpoint and another training.output_dir"
    )


def _is_over(checkpoint: Checkpoint, steps: Sequence[int | None]) -> bool:
    """Whether the stage of a checkpoint has nothing left to do."""
    asked = steps[checkpoint.progress.stage]
    return asked is not None and checkpoint.progress.step >= asked


def _check_optimizer(checkpoint: Checkpoint, stage: ResolvedStage) -> None:
    training = stage.training
    optim = str(training.extras.get("optim") or DEFAULT)
    held, kind = str(read_state(checkpoint.path).get("optimizer")), class_of(optim)
    try:
        if kind is not None and is_known(held):  # DeepSpeed's own for the host takes another's place
            check_kind(checkpoint.path, held, kind)
        check_spread(checkpoint.path, optim, mode_of(training.parallel, 1))
    except CheckpointError:
        # Of a stage that has ended early, nothing is needed any more.
        if not RunState.read(checkpoint.path).ends(stage.name, training.early_stopping_patience):
            raise

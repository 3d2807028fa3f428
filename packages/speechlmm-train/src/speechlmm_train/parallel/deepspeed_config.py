# pyright: strict
"""DeepSpeed's configuration: what `parallel` stands for, with a user's JSON laid over it. Imports no torch.

ZeRO: Rajbhandari et al., 2020, arXiv:1910.02054; offloading: Ren et al., 2021, arXiv:2101.06840.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from speechlmm_core.errors import ConfigError, MissingDependencyError
from speechlmm_core.registry import nearest
from speechlmm_train.parallel.deepspeed_faults import contradictions
from speechlmm_train.parallel_names import stage_of

if TYPE_CHECKING:
    from speechlmm_train.training_config import TrainingConfig

PRESETS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
"""Names that may stand in the place of a file, as in the first SpeechLMM."""
_OURS = ("optimizer", "scheduler")


def require_deepspeed() -> None:
    """Checks that DeepSpeed is installed.

    Raises:
        MissingDependencyError: It is not.
    """
    if find_spec("deepspeed") is None:
        raise MissingDependencyError(
            "training.parallel: zero0 to zero3 need DeepSpeed, which is not installed: "
            "pip install 'speechlmm-train[deepspeed]'; or choose 'ddp' or 'fsdp2'"
        )


def preset(parallel: str) -> dict[str, Any]:
    """The configuration that a name stands for; `auto` is what the training's settings say."""
    stage = stage_of(parallel)
    assert stage is not None
    zero: dict[str, Any] = {"stage": stage}
    if stage >= 1:
        zero |= {"contiguous_gradients": True, "overlap_comm": False, "reduce_bucket_size": 2**28}
    if stage == 3:
        zero |= {
            # Prefetching follows the modules of the step before, in which a rank may have had other media.
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 10_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
        }
    if parallel.endswith("_offload"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
        # torch's AdamW runs wherever the states are; DeepSpeed's own for the host has to be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
    }


def deepspeed_config(
    training: TrainingConfig, *, world_size: int, bf16: bool, base: Path | None = None
) -> dict[str, Any]:
    """The configuration of a training.

    Args:
        training: Its settings, of which `parallel` is a ZeRO stage.
        world_size: Number of processes.
        bf16: Whether it trains in bf16.
        base: Folder where a relative path of `deepspeed_config` starts.

    Raises:
        ConfigError: The user's file is missing or is no JSON, or it contradicts the settings; a line for each fault.
        MissingDependencyError: DeepSpeed is not installed.
    """
    require_deepspeed()
    name = training.deepspeed_config
    if name is None:
        return _of_trainer(preset(training.parallel))
    given = given_config(name, base)
    faults = list(contradictions(given, training, world_size=world_size, bf16=bf16))
    if faults:
        raise ConfigError("\n".join(f"training.deepspeed_config {name!r}: {fault}" for fault in faults))
    return _of_trainer(_over(preset(training.parallel), given))


def given_config(name: str, base: Path | None) -> dict[str, Any]:
    """What a user gives as `deepspeed_config`: a preset's name, or a JSON file.

    Raises:
        ConfigError: The file is missing or is no JSON.
    """
    return preset(name) if name in PRESETS else _read(name, base)


def zero_section(training: TrainingConfig, *, base: Path | None = None) -> dict[str, Any]:
    """What a training says of ZeRO, the user's JSON included, whether or not DeepSpeed is installed.

    Args:
        training: Its settings, of which `parallel` is a ZeRO stage.
        base: Folder where a relative path of `deepspeed_config` starts.

    Raises:
        ConfigError: The user's file is missing or is no JSON.
    """
    name, own = training.deepspeed_config, preset(training.parallel)
    given = {} if name is None else given_config(name, base)
    return _over(own, given)["zero_optimization"]


def _of_trainer(config: dict[str, Any]) -> dict[str, Any]:
    """Without what the trainer does itself, from the training's settings, which say the same."""
    clipping = {"gradient_clipping": "auto"} if config["zero_optimization"]["stage"] == 0 else {}
    return {key: value for key, value in config.items() if key not in _OURS} | clipping


def _read(name: str, base: Path | None) -> dict[str, Any]:
    path = Path(base or Path.cwd(), Path(name).expanduser())
    place = f"training.deepspeed_config {name!r}"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(
            f"{place} is no file that can be read ({exc.strerror}){nearest(name, list(PRESETS))}; expected a JSON "
            f"file, or one of {', '.join(PRESETS)}"
        ) from exc
    except ValueError as exc:
        raise ConfigError(f"{place} is no JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise ConfigError(f"{place}: expected an object, got {type(content).__name__}")
    return cast("dict[str, Any]", content)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            merged[key] = _over(cast("Mapping[str, Any]", old), cast("Mapping[str, Any]", value))
        else:
            merged[key] = value
    return merged

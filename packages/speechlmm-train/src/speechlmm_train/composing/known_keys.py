"""Which keys a run's configuration has, by its typed form."""

from __future__ import annotations

from typing import Any

from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import nearest
from speechlmm_train.config import RunConfig
from speechlmm_train.config_errors import owner_of
from speechlmm_train.slurm_config import ALIASES, SlurmLauncherConfig
from speechlmm_train.training_arguments import DECIDED_ELSEWHERE, training_argument_names
from speechlmm_train.training_config import TrainingConfig

_LAUNCHER = ["hydra", "launcher"]


def of_launcher(key: str) -> bool:
    """Whether a key is the launcher's."""
    return key.split(".")[:2] == _LAUNCHER


def check_key(plain: dict[str, Any], key: str, place: str) -> None:
    """Refuses a key that no run has; one whose owner cannot be told (yet) passes.

    Raises:
        ConfigError: The key is unknown.
    """
    parts = key.split(".")
    if parts[:2] == _LAUNCHER:
        known = [*SlurmLauncherConfig.model_fields, *ALIASES]
        if len(parts) > len(_LAUNCHER) and parts[2] not in known:
            raise ConfigError(f"{place}: {key}: unknown key {parts[2]!r}{nearest(parts[2], known)}")
        return
    for at, part in enumerate(parts):
        owner = owner_of(RunConfig, plain, parts[:at])
        if owner is None:
            return
        known = {*owner.model_fields}
        if owner is TrainingConfig:
            known |= training_argument_names() - DECIDED_ELSEWHERE.keys()
        elif owner.model_config.get("extra") == "allow":
            known |= {part}
        if part not in known:
            raise ConfigError(f"{place}: {key}: unknown key {part!r}{nearest(part, sorted(known))}")


def default_of(plain: dict[str, Any], key: str) -> Any:
    """What a key stands at where the configuration does not set it; None where it has no default."""
    *path, last = key.split(".")
    owner = owner_of(RunConfig, plain, path)
    field = owner.model_fields.get(last) if owner is not None else None
    return None if field is None or field.is_required() else field.get_default(call_default_factory=True)

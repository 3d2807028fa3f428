"""A configuration as Hydra composes it, with adjustments applied; neither named nor validated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from hydra import compose
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import nearest
from speechlmm_train.composing.adjustments import adjust
from speechlmm_train.composing.alternatives import prefer_given
from speechlmm_train.composing.changes import Change
from speechlmm_train.composing.overrides import names_of_adjustments, ready
from speechlmm_train.composing.tree import ADJUSTMENTS, LAUNCHER, Tree
from speechlmm_train.config import RunConfig
from speechlmm_train.config_errors import explain

PRETRAIN, FINETUNE = "pretrain", "finetune"
CHECKPOINT = "training.pretrained_checkpoint"
LOCAL = "basic"
"""Hydra's own launcher, which is there where none is chosen."""


@dataclass(frozen=True)
class Draft:
    """What was composed."""

    plain: dict[str, Any]
    missing: list[str]
    """Keys whose value is `???`."""
    choices: dict[str, str]
    launcher: dict[str, Any] | None
    changes: list[Change]
    """What adjustments changed, and what of the files had to give way to the command line."""
    finetune: bool
    """Whether it starts from a trained model."""


def compose_draft(tree: Tree, config_name: str, overrides: Sequence[str], model: Mapping[str, Any] | None) -> Draft:
    """Composes, and applies adjustments.

    Args:
        tree: What is composed from.
        config_name: Name of the top-level configuration.
        overrides: Overrides in Hydra's grammar.
        model: A model that stands in place of what `model` says, which may then be left open.

    Raises:
        ConfigError: An override, a configuration file or an adjustment is wrong.
    """
    given = ready(list(overrides), tree)
    try:
        config = compose(config_name, given.texts, return_hydra_config=True)
        finetune = config_name == FINETUNE or _names_checkpoint(config)
        if finetune and config_name == PRETRAIN:
            config = compose(FINETUNE, given.texts, return_hydra_config=True)
        chosen = OmegaConf.to_container(config.hydra.runtime.choices)
        assert isinstance(chosen, dict)
        choices = {
            str(group): name
            for group, name in chosen.items()
            if isinstance(name, str) and (group == LAUNCHER or not str(group).startswith("hydra/"))
        }
        if (choices.get(LAUNCHER) or LOCAL) == LOCAL:
            choices.pop(LAUNCHER, None)
            _refuse_launcher_keys(list(config.hydra.launcher or {}))
        OmegaConf.set_struct(config, False)
        config["hydra"] = {"launcher": config.hydra.launcher if LAUNCHER in choices else {}}
        own = config.pop(ADJUSTMENTS, None)
        names = given.adjustments
        if names is None:
            names = names_of_adjustments(ADJUSTMENTS, OmegaConf.to_container(own) if OmegaConf.is_config(own) else own)
        changes = [*prefer_given(config, given.given), *adjust(config, names, choices, tree)]
        missing = sorted(OmegaConf.missing_keys(config))
        plain = OmegaConf.to_container(config, resolve=True)
    except MissingConfigException as exc:
        raise ConfigError(_unknown_option(exc, config_name, tree)) from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"not YAML: {' '.join(str(exc).split())}") from exc
    except (HydraException, OmegaConfBaseException) as exc:
        raise ConfigError(_in_hydras_words(exc)) from exc
    assert isinstance(plain, dict)
    named = {str(key): value for key, value in plain.items()}
    training = named.get("training")
    if config_name == FINETUNE and isinstance(training, dict) and training.get("pretrained_checkpoint") is None:
        missing = sorted({*missing, CHECKPOINT})  # `???` does not show through a null
    launcher = named.pop("hydra")["launcher"]
    if model is not None:
        named["model"] = dict(model)
        missing = [key for key in missing if not key.startswith("model.")]
    return Draft(named, missing, choices, launcher if LAUNCHER in choices else None, changes, finetune)


def _names_checkpoint(config: DictConfig) -> bool:
    """Whether a checkpoint is named, or has yet to be: a configuration of the user's may be built on `finetune`."""
    parent, _, name = CHECKPOINT.partition(".")
    section = OmegaConf.select(config, parent)
    return isinstance(section, DictConfig) and (OmegaConf.is_missing(section, name) or bool(section.get(name)))


def _refuse_launcher_keys(keys: Sequence[object]) -> None:
    for key in keys:
        if key != "_target_":
            raise ConfigError(f"hydra.launcher.{key}: there is no launcher to set it for; choose one: {LAUNCHER}=slurm")


def refuse_missing(draft: Draft) -> None:
    """Refuses a configuration with values that are missing, and says what else is wrong with it.

    Raises:
        ConfigError: There are some.
    """
    missing = draft.missing
    if missing and not _names_data(draft.plain):
        missing = sorted([*missing, "data.train"])
    if missing:
        raise ConfigError("\n".join([*(_missing(key) for key in missing), *_other_faults(draft.plain)]))


def _names_data(plain: dict[str, Any]) -> bool:
    """Whether anything to train on is named, by the run or a stage."""
    sections = [plain, *(one for one in plain.get("stages") or () if isinstance(one, dict))]
    named = [data for section in sections if isinstance(data := section.get("data"), dict)]
    return any(data.get("train") or data.get("data_config_path") for data in named)


def _other_faults(plain: dict[str, Any]) -> list[str]:
    """What is wrong beside the values that are missing, so that the user sees it all at once."""
    try:
        RunConfig.model_validate(plain)
    except ValidationError as exc:
        return explain(exc, RunConfig, plain, without="???")
    return []


def _missing(key: str) -> str:
    group, _, part = key.partition(".")
    if group == "model" and "." not in part:
        return f"{key}: missing; choose a preset with {key.replace('.', '/')}=<name> or set it in YAML"
    if group == "model":
        owner = part.partition(".")[0]
        return f"{key}: missing; the preset of model/{owner} leaves it open, give it as {key}=<value>"
    return f"{key}: missing; give it as {key}=<value>"


def _in_hydras_words(exc: Exception) -> str:
    """What Hydra says, with the reason behind it."""
    said = " ".join(str(exc).split())
    merging = re.search(r"Error merging override \+*(stages\.\d+)", said)
    if merging:
        return (
            f"{merging[1]}: the configuration has no such stage; write stages out as "
            "stages=[{name: text, max_steps: 100}, ...], or choose a configuration that has some"
        )
    reason = " ".join(str(exc.__cause__).split()) if exc.__cause__ else ""
    return f"{said}: {reason}" if reason and reason not in said else said


def _unknown_option(exc: MissingConfigException, config_name: str, tree: Tree) -> str:
    wanted = exc.missing_cfg_file
    if wanted == config_name or wanted is None:
        names = [name for name in tree.options("") if name not in ("base", "installed_groups")]
        return f"unknown --config-name {config_name!r}{nearest(config_name, names)} (available: {', '.join(names)})"
    options = list(exc.options or [])
    name = str(wanted).rpartition("/")[2]
    listed = f" (available: {', '.join(options)})" if options else ""
    return f"unknown configuration {str(wanted)!r}{nearest(name, options)}{listed}"

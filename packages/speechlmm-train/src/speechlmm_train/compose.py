"""Composes a configuration with Hydra's override grammar and validates it. Imports no torch.

In order: the configuration that `--config-name` names, presets, the training setting, values of the command line,
adjustments; then the name of the run and its folder. A key that no YAML file names needs no ``+``: the typed
configuration decides which keys exist.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from speechlmm_core.data.spec.find import find_spec
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.registry import nearest
from speechlmm_core.wiring import refuse_speech_output, wire
from speechlmm_train.composing.adjustments import adjust
from speechlmm_train.composing.changes import ABSENT, Change
from speechlmm_train.composing.names import RunName, numbered, output_dir, run_name, sibling
from speechlmm_train.composing.overrides import names_of_adjustments, ready
from speechlmm_train.composing.tree import ADJUSTMENTS, LAUNCHER, Tree, hydra_tree
from speechlmm_train.config import RunConfig
from speechlmm_train.config_errors import explain

PRETRAIN, FINETUNE = "pretrain", "finetune"
LOCAL = "basic"
"""Hydra's own launcher, which is there where none is chosen."""


@dataclass(frozen=True)
class Composed:
    """A composed configuration, plain and typed."""

    plain: dict[str, Any]
    config: RunConfig
    choices: dict[str, str] = field(default_factory=dict[str, str])
    """The preset that was chosen in each group (`model/audio_encoder`, `training_setting`, `hydra/launcher`)."""
    launcher: dict[str, Any] | None = None
    """What `hydra/launcher` chose, as `hydra.launcher` was composed; None to run on this machine."""
    name: str = ""
    """What the run is called."""
    changes: tuple[Change, ...] = ()
    """What adjustments changed, and what was filled in without being asked for."""


@dataclass(frozen=True)
class Sweep:
    """The place of a run in a sweep."""

    number: int
    varied: Sequence[str]
    """The overrides that are not the same for all runs."""


@dataclass(frozen=True)
class _Draft:
    plain: dict[str, Any]
    missing: list[str]
    choices: dict[str, str]
    launcher: dict[str, Any] | None
    changes: list[Change]
    finetune: bool


def compose_plain(
    config_name: str,
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Composes without validating; the run's folder is left as it is given.

    Args:
        config_name: Name of the top-level configuration.
        overrides: Overrides in Hydra's grammar.
        config_dir: The user's folder of configurations, searched first.
        model: A model that stands in place of what `model` says, which may then be left open.

    Raises:
        ConfigError: An override or a configuration file is wrong, or a value is missing.
    """
    with hydra_tree(config_dir) as tree:
        draft = _draft(tree, config_name, overrides, model)
    _refuse_missing(draft)
    return draft.plain


def compose_config(
    config_name: str,
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    imports: Sequence[Path] = (),
    model: Mapping[str, Any] | None = None,
) -> Composed:
    """Composes and validates a run's configuration.

    Args:
        config_name: Name of the top-level configuration (`pretrain`, `finetune`, or one of the user's). `pretrain` with
            a `training.pretrained_checkpoint` is `finetune`.
        overrides: Overrides in Hydra's grammar.
        config_dir: The user's folder of configurations, searched first.
        imports: Python files that register the user's own components.
        model: A model that stands in place of the configuration's.

    Raises:
        ConfigError: Everything that is wrong, a line each.
    """
    for path in imports:
        import_file(path)
    with hydra_tree(config_dir) as tree:
        return compose_in(tree, config_name, overrides, config_dir=config_dir, model=model)


def compose_in(
    tree: Tree,
    config_name: str,
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    model: Mapping[str, Any] | None = None,
    sweep: Sweep | None = None,
) -> Composed:
    """`compose_config` within a tree that several runs are composed from; in a sweep, with names of their own.

    Raises:
        ConfigError: Everything that is wrong, a line each.
    """
    draft = _draft(tree, config_name, overrides, model)
    name = _name(draft, sweep)
    _refuse_missing(draft)
    if config_dir is not None:
        _find_specs(draft.plain, config_dir)
    return Composed(draft.plain, validate(draft.plain), draft.choices, draft.launcher, str(name), tuple(draft.changes))


def import_file(path: Path) -> None:
    """Runs a user's Python file, which registers its own components.

    Raises:
        ConfigError: The file is missing or fails.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"speechlmm_user_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"--import {str(path)!r}: expected a Python file")
    # Annotations that are strings are looked up in the module by its name, so it has to be known by that.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        del sys.modules[name]
        raise ConfigError(f"--import {str(path)!r} failed: {type(exc).__name__}: {exc}") from exc


def validate(plain: dict[str, Any]) -> RunConfig:
    """Types a plain configuration, and checks that the components fit together.

    Raises:
        ConfigError: Everything that is wrong, a line each.
    """
    try:
        config = RunConfig.model_validate(plain)
    except ValidationError as exc:
        raise ConfigError("\n".join(explain(exc, RunConfig, plain))) from exc
    refuse_speech_output(config.model)
    wire(config.model)
    return config


def to_yaml(plain: dict[str, Any]) -> str:
    """A plain configuration as YAML."""
    return OmegaConf.to_yaml(DictConfig(plain))


def _draft(tree: Tree, config_name: str, overrides: Sequence[str], model: Mapping[str, Any] | None) -> _Draft:
    """Composes, and applies adjustments."""
    given = ready(list(overrides), tree)
    try:
        config = compose(config_name, given.texts, return_hydra_config=True)
        finetune = bool(OmegaConf.select(config, "training.pretrained_checkpoint", throw_on_missing=False))
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
        OmegaConf.set_struct(config, False)
        config["hydra"] = {"launcher": config.hydra.launcher if LAUNCHER in choices else {}}
        own = config.pop(ADJUSTMENTS, None)
        names = given.adjustments
        if names is None:
            names = names_of_adjustments(ADJUSTMENTS, OmegaConf.to_container(own) if OmegaConf.is_config(own) else own)
        changes = adjust(config, names, choices, tree)
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
    launcher = named.pop("hydra")["launcher"]
    if model is not None:
        named["model"] = dict(model)
        missing = [key for key in missing if not key.startswith("model.")]
    return _Draft(
        named, missing, choices, launcher if LAUNCHER in choices else None, changes, finetune or config_name == FINETUNE
    )


def _name(draft: _Draft, sweep: Sweep | None) -> RunName:
    """Names the run, and fills in its folder and, in a sweep, the pre-training that it goes on with."""
    training = draft.plain.get("training")
    name = run_name(
        draft.plain,
        draft.choices,
        finetune=draft.finetune,
        varied=sweep.varied if sweep else (),
        number=sweep.number if sweep else 0,
    )
    if not isinstance(training, dict):
        return name
    folder, project = training.get("output_dir"), training.get("wandb_project")
    if folder is None:
        training["output_dir"] = output_dir(name, project if isinstance(project, str) else None)
    elif isinstance(folder, str) and sweep is not None and sweep.varied and "training.output_dir" not in draft.missing:
        training["output_dir"] = numbered(folder, sweep.number)
    key = "training.pretrained_checkpoint"
    if sweep is not None and key in draft.missing and isinstance(training["output_dir"], str):
        training["pretrained_checkpoint"] = sibling(training["output_dir"], name)
        draft.missing.remove(key)
        found = training["pretrained_checkpoint"]
        draft.changes.append(Change(key, ABSENT, found, "the pre-training beside the run"))
    return name


def _refuse_missing(draft: _Draft) -> None:
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


def _find_specs(plain: dict[str, Any], config_dir: Path) -> None:
    """Spells out specifications that lie in the user's folder and not below the working one."""
    for section in (plain, *(one for one in plain.get("stages") or () if isinstance(one, dict))):
        data = section.get("data")
        if isinstance(data, dict) and isinstance(name := data.get("data_config_path"), str):
            with suppress(DataError):  # what is nowhere is reported when the data are opened
                path = find_spec(name, Path.cwd(), config_dir)
                if path.is_relative_to(config_dir):
                    data["data_config_path"] = str(path.absolute())


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
    if launching := re.search(r"Error merging override \+*(hydra\.launcher\.\w+)", said):
        return f"{launching[1]}: there is no launcher to set it for; choose one with {LAUNCHER}=slurm"
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

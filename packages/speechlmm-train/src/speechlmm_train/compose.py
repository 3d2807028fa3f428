"""Composes a configuration with Hydra's override grammar and validates it. Imports no torch.

In order: the configuration that `--config-name` names, presets, the training setting, values of the command line,
adjustments; then the name of the run and its folder. A key that no YAML file names needs no ``+``: the typed
configuration decides which keys exist.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from speechlmm_core.data.spec.find import find_spec
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.wiring import refuse_speech_output, wire
from speechlmm_train.composing.changes import ABSENT, Change
from speechlmm_train.composing.draft import CHECKPOINT, Draft, compose_draft, refuse_missing
from speechlmm_train.composing.names import RunName, numbered, output_dir, run_name
from speechlmm_train.composing.sibling import sibling
from speechlmm_train.composing.tasks import uncovered_tasks
from speechlmm_train.composing.trace import traced
from speechlmm_train.composing.tree import Tree, hydra_tree
from speechlmm_train.config import RunConfig
from speechlmm_train.config_errors import explain


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
        draft = compose_draft(tree, config_name, overrides, model)
    refuse_missing(draft)
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
    draft = compose_draft(tree, config_name, overrides, model)
    name = _name(draft, sweep)
    refuse_missing(draft)
    if config_dir is not None:
        _find_specs(draft.plain, config_dir)
    try:
        config = validate(draft.plain)
    except ConfigError as exc:
        raise ConfigError("\n".join(_blamed(line, draft.changes) for line in str(exc).splitlines())) from exc
    if faults := uncovered_tasks(config, config_dir):
        raise ConfigError("\n".join(faults))
    return Composed(draft.plain, config, draft.choices, draft.launcher, str(name), tuple(draft.changes))


def trace(
    config_name: str, overrides: Sequence[str], *, config_dir: Path | None = None, imports: Sequence[Path] = ()
) -> list[Change]:
    """What each override and each adjustment changed, in the order in which they are composed.

    Args:
        config_name: Name of the top-level configuration.
        overrides: Overrides in Hydra's grammar, which together can be composed.
        config_dir: The user's folder of configurations, searched first.
        imports: Python files that register the user's own components.
    """
    for path in imports:
        import_file(path)
    with hydra_tree(config_dir) as tree:
        return traced(tree, config_name, overrides)


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


def _name(draft: Draft, sweep: Sweep | None) -> RunName:
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
    if sweep is not None and CHECKPOINT in draft.missing and isinstance(training["output_dir"], str):
        number = sweep.number if sweep.varied else None
        training["pretrained_checkpoint"] = sibling(
            training["output_dir"], name, choices=draft.choices, plain=draft.plain, number=number
        )
        draft.missing.remove(CHECKPOINT)
        found = training["pretrained_checkpoint"]
        draft.changes.append(Change(CHECKPOINT, ABSENT, found, "the pre-training beside the run"))
    return name


def _blamed(line: str, changes: Sequence[Change]) -> str:
    """A fault with the adjustment that caused it, if one set the value."""
    for change in changes:
        parent, _, last = change.key.rpartition(".")
        if line.startswith(f"{change.key}:") or (line.startswith(f"{parent}:") and repr(last) in line):
            return f"{line} (set by {change.source})"
    return line


def _find_specs(plain: dict[str, Any], config_dir: Path) -> None:
    """Spells out specifications that lie in the user's folder and not below the working one."""
    for section in (plain, *(one for one in plain.get("stages") or () if isinstance(one, dict))):
        data = section.get("data")
        if isinstance(data, dict) and isinstance(name := data.get("data_config_path"), str):
            with suppress(DataError):  # what is nowhere is reported when the data are opened
                path = find_spec(name, Path.cwd(), config_dir)
                if path.is_relative_to(config_dir):
                    data["data_config_path"] = str(path.absolute())

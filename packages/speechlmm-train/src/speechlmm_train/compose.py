"""Composes a configuration with Hydra's override grammar and validates it. Imports no torch.

Every `speechlmm.presets` entry point is on Hydra's search path, and every group found below ``model/`` there (or in
the user's own folder) has a place in the defaults list, so that ``model/<input>_encoder=<preset>`` needs no ``+``.
A key that no YAML file names needs none either: the typed configuration decides which keys exist.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from speechlmm_core.data.spec.find import find_spec
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.registry import describe, nearest
from speechlmm_core.wiring import refuse_speech_output, wire
from speechlmm_train.config import RunConfig
from speechlmm_train.config_errors import explain

logger = logging.getLogger(__name__)
CONF = "speechlmm_train.conf"
SECTIONS: dict[str, tuple[type, str]] = {
    "model": (dict, "model/<part>=<preset> or model.<key>=<value>"),
    "data": (dict, "data.<key>=<value>"),
    "training": (dict, "training.<key>=<value>"),
    "stages": (list, "stages=[{name: <name>, max_steps: <number>}, ...]"),
}
"""What a run's configuration consists of: the sections' types, and how they are set."""


@dataclass(frozen=True)
class Composed:
    """A composed configuration, plain and typed."""

    plain: dict[str, Any]
    config: RunConfig


def preset_packages() -> dict[str, str]:
    """Module names of the installed preset packages by distribution; one that is not there is left out."""
    found: dict[str, str] = {}
    for entry in sorted(entry_points(group="speechlmm.presets"), key=lambda entry: entry.name):
        try:
            there = importlib.util.find_spec(entry.value) is not None
        except Exception:
            there = False
        if there:
            found[entry.name] = entry.value
        else:
            logger.warning("presets %r of %s cannot be imported and are left out", entry.value, describe(entry))
    return found


class _Presets(SearchPathPlugin):
    """Puts the user's folder and the installed presets on the search path."""

    config_dir: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.config_dir is not None:
            search_path.prepend("user", f"file://{self.config_dir}")
        for name, module in preset_packages().items():
            search_path.append(name, f"pkg://{module}")


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


@contextmanager
def _hydra(config_dir: Path | None) -> Iterator[None]:
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir {str(config_dir)!r} is not a folder")
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    _Presets.config_dir = config_dir.resolve() if config_dir else None
    Plugins.instance().register(_Presets)
    with initialize_config_module(CONF, job_name="speechlmm-train", version_base="1.3"):
        groups = [f"model/{name}" for name in _groups("model")]
        defaults = [{f"optional {group}": None} for group in groups]
        ConfigStore.instance().store(name="installed_groups", node={"defaults": defaults}, provider="speechlmm-train")
        yield


def _groups(parent: str) -> list[str]:
    return sorted(set(GlobalHydra.instance().config_loader().list_groups(parent)))


def _options(group: str) -> list[str]:
    return sorted(set(GlobalHydra.instance().config_loader().get_group_options(group)))


def compose_plain(
    config_name: str,
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Composes without validating.

    Args:
        config_name: Name of the top-level configuration.
        overrides: Overrides in Hydra's grammar.
        config_dir: The user's folder of configurations, searched first.
        model: A model that stands in place of what `model` says, which may then be left open.

    Raises:
        ConfigError: An override or a configuration file is wrong, or a value is missing.
    """
    with _hydra(config_dir):
        ready = [_checked(text) for text in overrides]
        try:
            composed = compose(config_name, [override for override in ready if override])
            missing = sorted(OmegaConf.missing_keys(composed))
            plain = OmegaConf.to_container(composed, resolve=True)
        except MissingConfigException as exc:
            raise ConfigError(_unknown_option(exc, config_name)) from exc
        except yaml.YAMLError as exc:
            raise ConfigError(f"not YAML: {' '.join(str(exc).split())}") from exc
        except (HydraException, OmegaConfBaseException) as exc:
            raise ConfigError(_in_hydras_words(exc)) from exc
    assert isinstance(plain, dict)
    named = {str(key): value for key, value in plain.items()}
    if model is not None:
        named["model"] = dict(model)
        missing = [key for key in missing if not key.startswith("model.")]
    if missing and not _names_data(named):
        missing = sorted([*missing, "data.train"])
    if missing:
        raise ConfigError("\n".join([*(_missing(key) for key in missing), *_other_faults(named)]))
    return named


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
        config_name: Name of the top-level configuration (`pretrain`, `finetune`, or one of the user's).
        overrides: Overrides in Hydra's grammar.
        config_dir: The user's folder of configurations, searched first.
        imports: Python files that register the user's own components.
        model: A model that stands in place of the configuration's.

    Raises:
        ConfigError: Everything that is wrong, a line each.
    """
    for path in imports:
        import_file(path)
    plain = compose_plain(config_name, overrides, config_dir=config_dir, model=model)
    if config_dir is not None:
        _find_specs(plain, config_dir)
    return Composed(plain, validate(plain))


def _find_specs(plain: dict[str, Any], config_dir: Path) -> None:
    """Spells out specifications that lie in the user's folder and not below the working one."""
    for section in (plain, *(one for one in plain.get("stages") or () if isinstance(one, dict))):
        data = section.get("data")
        if isinstance(data, dict) and isinstance(name := data.get("data_config_path"), str):
            with suppress(DataError):  # what is nowhere is reported when the data are opened
                path = find_spec(name, Path.cwd(), config_dir)
                if path.is_relative_to(config_dir):
                    data["data_config_path"] = str(path.absolute())


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


def _checked(text: str) -> str:
    """Checks one override and lets its key be new where no file names it."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as exc:
        raise ConfigError(f"{text!r} is not an override; expected key=value, +key=value or ~key") from exc
    if override.is_sweep_override():
        raise ConfigError(f"{text!r} gives several values to one key; write a list as key=[a,b]")
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise ConfigError(f"{text!r}: this version runs in one process and takes no `hydra` settings")
    if not key:
        raise ConfigError(f"{text!r} is not an override; expected key=value, +key=value or ~key")
    if key in SECTIONS and not (override.is_delete() or isinstance(override.value(), SECTIONS[key][0])):
        raise ConfigError(f"{text!r}: `{key}` is a section; expected {SECTIONS[key][1]}")
    if key in SECTIONS:
        return f"++{text}" if text[0] not in "+~" else text
    if _is_group(key):
        _check_option(override, key)
        return text
    if "/" in key:
        groups = [f"model/{name}" for name in _groups("model")]
        raise ConfigError(f"unknown group {key!r}{nearest(key, groups)} (available: {', '.join(groups)})")
    return f"++{text}" if override.type is not None and text[0] not in "+~" else text


def _is_group(key: str) -> bool:
    parent, _, name = key.rpartition("/")
    return name in _groups(parent)


def _check_option(override: Override, group: str) -> None:
    value = override.value()
    for name in value if isinstance(value, list) else [value]:
        options = _options(group)
        if isinstance(name, str) and not override.is_delete() and name not in options:
            raise ConfigError(
                f"unknown preset {group}={name}{nearest(name, options)} (available: {', '.join(options)})"
            )


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


def _unknown_option(exc: MissingConfigException, config_name: str) -> str:
    wanted = exc.missing_cfg_file
    if wanted == config_name or wanted is None:
        names = [name for name in _options("") if name not in ("base", "installed_groups") and name[0] != "_"]
        return f"unknown --config-name {config_name!r}{nearest(config_name, names)} (available: {', '.join(names)})"
    options = list(exc.options or [])
    name = str(wanted).rpartition("/")[2]
    listed = f" (available: {', '.join(options)})" if options else ""
    return f"unknown configuration {str(wanted)!r}{nearest(name, options)}{listed}"

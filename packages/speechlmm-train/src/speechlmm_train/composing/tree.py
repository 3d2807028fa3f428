"""The Hydra tree: which folders it has, and which groups and presets lie in them.

Every `speechlmm.presets` entry point is on Hydra's search path, and every group found below ``model/`` there (or in
the user's own folder) has a place in the defaults list, so that ``model/<input>_encoder=<preset>`` needs no ``+``.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hydra import initialize_config_module
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin

from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import describe
from speechlmm_train.composing.times import keep_times

logger = logging.getLogger(__name__)
CONF = "speechlmm_train.conf"
ADJUSTMENTS, LAUNCHER, SETTING = "adjustments", "hydra/launcher", "training_setting"


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


class _Remembering(ConfigRepository):
    """Hydra's repository, which reads each file, and looks into each folder, once for all that is composed."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        super().initialize_sources(config_search_path)
        self._files: dict[str, ConfigResult | None] = {}
        self._sources: dict[tuple[str, Any], Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Remembering:
        """Itself: Hydra copies its repository for each composition, which would forget everything."""
        return self

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._files:
            result = super().load_config(config_path)
            if result is not None:
                keep_times(result, config_path)
                if result.header["package"] is None:
                    result.header["package"] = _package(config_path)
            self._files[config_path] = result
        return copy.deepcopy(self._files[config_path])

    def _find_object_source(self, config_path: str, object_type: ObjectType | None) -> Any:
        key = (config_path, object_type)
        if key not in self._sources:
            self._sources[key] = super()._find_object_source(config_path, object_type)
        return self._sources[key]


def _package(path: str) -> str | None:
    """What a file is about where it does not say so: the whole run for a setting, its part for a preset of a model."""
    parts = path.split("/")
    if parts[0] == SETTING:
        return "_global_"
    of_part = parts[0] == "model" and len(parts) >= len(("model", "part", "preset"))
    return ".".join(parts[:2]) if of_part else None


class Tree:
    """What can be composed from."""

    def __init__(self, repository: ConfigRepository) -> None:
        self._repository = repository
        self._found: dict[tuple[str, ObjectType], list[str]] = {}

    def _list(self, parent: str, kind: ObjectType) -> list[str]:
        key = (parent, kind)
        if key not in self._found:
            self._found[key] = sorted(set(self._repository.get_group_options(parent, kind)))
        return self._found[key]

    def groups(self, parent: str) -> list[str]:
        """Names of the groups directly below a group."""
        return self._list(parent, ObjectType.GROUP)

    def is_group(self, name: str) -> bool:
        """Whether there is such a group."""
        parent, _, last = name.rpartition("/")
        return last in self.groups(parent)

    def options(self, group: str) -> list[str]:
        """What can be chosen in a group, presets in subfolders as ``folder/preset``; not what only others include."""
        nested = [f"{sub}/{name}" for sub in self.groups(group) for name in self.options(f"{group}/{sub}")]
        own = [name for name in self._list(group, ObjectType.CONFIG) if not name.startswith("_")]
        return [*own, *(nested if group else [])]

    def read(self, path: str) -> Any:
        """The content of a file of the tree, by its path without ending."""
        result = self._repository.load_config(path)
        return None if result is None else result.config


@contextmanager
def hydra_tree(config_dir: Path | None) -> Iterator[Tree]:
    """Sets Hydra up to compose from the tree.

    Raises:
        ConfigError: The user's folder is none.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir {str(config_dir)!r} is not a folder")
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    _Presets.config_dir = config_dir.resolve() if config_dir else None
    Plugins.instance().register(_Presets)
    with initialize_config_module(CONF, job_name="speechlmm-train", version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
        loader.repository = _Remembering(loader.config_search_path)
        tree = Tree(loader.repository)
        defaults = [{f"optional model/{name}": None} for name in tree.groups("model")]
        ConfigStore.instance().store(name="installed_groups", node={"defaults": defaults}, provider="speechlmm-train")
        yield tree

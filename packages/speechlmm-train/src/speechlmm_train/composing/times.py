"""Times such as `12:00:00` in YAML files, which YAML 1.1 reads as a number to the base of 60.

SLURM means hours by it, and a launcher's `time` would become 43200 minutes. No value here is meant so, so that the text
is what is kept.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra.plugins.config_source import ConfigResult

_TIME = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def keep_times(result: ConfigResult, config_path: str) -> None:
    """Puts the text of such values into a file that was read.

    Args:
        result: What the file holds, which is changed.
        config_path: Its path below its source, without ending.
    """
    text = _text(result.path, f"{config_path.removesuffix('.yaml')}.yaml")
    if _TIME.search(text):
        _restore(yaml.compose(text, Loader=yaml.SafeLoader), result.config)


def _text(source: str, name: str) -> str:
    scheme, _, root = source.partition("://")
    if scheme == "file":
        return Path(root, name).read_text(encoding="utf-8")
    return resources.files(root).joinpath(name).read_text(encoding="utf-8") if scheme == "pkg" else ""


def _restore(node: yaml.Node | None, config: Any) -> None:
    """Walks through a file's nodes, and through what was read from them at the same time."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(key.value, value) for key, value in node.value if key.value in config]
    elif isinstance(node, yaml.SequenceNode):
        pairs = list(enumerate(node.value))
    else:
        return
    for key, value in pairs:
        if isinstance(value, yaml.ScalarNode):
            if value.tag in _NUMBERS and _TIME.fullmatch(value.value):
                config[key] = value.value
        else:
            _restore(value, config[key])

"""The pre-training that a fine-tuning of a sweep goes on with where none is named: that of the folder beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import nearest
from speechlmm_train.composing.names import RunName
from speechlmm_train.composing.tree import SETTING

_RECORDS = "multirun/*/sweep.json"
_KEY = "training.pretrained_checkpoint"


def sibling(
    folder: str, name: RunName, *, choices: Mapping[str, str], plain: Mapping[str, Any], number: int | None = None
) -> str:
    """The trained model beside a run, of the same setting.

    A folder that was named after its presets tells its setting. One that the user named does not: the records of sweeps
    that lie beside it do, and the configuration in it says what it was trained on.

    Args:
        folder: The run's output folder.
        name: What the run is called.
        choices: The presets that it was composed from.
        plain: Its configuration.
        number: Its number in the sweep, if that stands behind the folder's name.

    Raises:
        ConfigError: There is none, those that are there are of other settings, or it is the run's own folder.
    """
    path = Path(folder).expanduser()
    if path.name == name.folder and not name.own:
        suffixes = dict.fromkeys((name.suffix, ""))
        tried = [path.with_name(f"speechlmm-pretrain-{name.rest}{suffix}") for suffix in suffixes]
        unlike: dict[Path, str] = {}
    else:
        last = path.name.removeprefix("lora-").replace("finetune", "pretrain", 1)
        if last == path.name:
            raise ConfigError(
                f"{_KEY}: missing; in a sweep it is the folder beside {folder!r} with 'pretrain' for 'finetune' in its "
                f"name, and that name has no 'finetune'; give {_KEY}=<path>"
            )
        common = last if number is None else last.removesuffix(f"-{number}")
        runs = list(_recorded(path.parent))
        alike = [run.folder for run in runs if run.shared(choices) and run.differs(choices) is None]
        others = {one for one in alike if re.fullmatch(rf"{re.escape(common)}-\d+", one.name)}
        tried = [path.with_name(last), path.with_name(common), *(others if len(others) == 1 else ())]
        found = {one: _unlike(one, runs, choices, plain) for one in tried}
        unlike = {one: why for one, why in found.items() if why is not None}
    for one in tried:
        if _is_trained(one) and one not in unlike:
            if one.resolve() == path.resolve():
                raise ConfigError(
                    f"{_KEY}: missing, and what lies beside the run is its own output folder, {str(one)!r}; give "
                    f"{_KEY}=<path>, or another training.output_dir"
                )
            return str(one)
    for one in tried:
        if _is_trained(one):
            raise ConfigError(
                f"{_KEY}: missing, and {str(one)!r} is not of this setting: {unlike[one]}; give {_KEY}=<path>"
            )
    beside = sorted(one.name for one in path.parent.iterdir() if one.is_dir()) if path.parent.is_dir() else []
    raise ConfigError(
        f"{_KEY}: missing, and there is no trained model in {str(tried[0])!r}"
        f"{nearest(tried[0].name, [one for one in beside if one != path.name])}; train that first, or give "
        f"{_KEY}=<path>"
    )


def _is_trained(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "model" / "config.json").is_file()


@dataclass(frozen=True)
class _Recorded:
    """A run of an earlier sweep."""

    folder: Path
    presets: Mapping[str, str]
    """What its command chose, by group."""

    def shared(self, choices: Mapping[str, str]) -> list[str]:
        """The groups that can be compared, if the setting is among them."""
        groups = [group for group in self.presets if group in choices]
        return groups if SETTING in groups else []

    def differs(self, choices: Mapping[str, str]) -> str | None:
        """The first preset that is another, and in words what it is here."""
        for group, chosen in self.presets.items():
            if group in choices and choices[group] != chosen:
                return f"it was trained with {group}={chosen}, and this run has {group}={choices[group]}"
        return None


def _unlike(
    folder: Path, runs: Sequence[_Recorded], choices: Mapping[str, str], plain: Mapping[str, Any]
) -> str | None:
    """How a pre-training is known to be of another setting; None where it is not."""
    for run in runs:
        if run.folder == folder.absolute() and run.shared(choices):
            return run.differs(choices)
    before, now = (_specification(one) for one in (_composed(folder), plain))
    if before and now and before != now:
        return f"it was trained on {before!r}, and this run names {now!r} (data.data_config_path)"
    return None


def _recorded(parent: Path) -> Iterator[_Recorded]:
    """The runs of sweeps whose records lie in a folder, those of the last sweep first."""
    for file in sorted(parent.absolute().glob(_RECORDS), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            runs = [(run["output_dir"], list(run["overrides"])) for run in json.loads(file.read_text())["runs"]]
        except (OSError, ValueError, TypeError, KeyError):  # no record
            continue
        for folder, overrides in runs:
            if folder is None:  # it could not be composed
                continue
            pairs = [text.lstrip("+").partition("=")[::2] for text in overrides]
            yield _Recorded(
                Path(folder), {key: value for key, value in pairs if key == SETTING or key.startswith("model/")}
            )


def _composed(folder: Path) -> Any:
    try:
        return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _specification(plain: Any) -> Any:
    """What a run's data are named by."""
    data = plain.get("data") if isinstance(plain, Mapping) else None
    return data.get("data_config_path") if isinstance(data, Mapping) else None

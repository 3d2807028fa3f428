"""Values that stand in for one another: what the command line asks for takes the place of what files ask for."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from speechlmm_train.composing.changes import ABSENT, Change
from speechlmm_train.composing.tree import LAUNCHER
from speechlmm_train.slurm_config import ALIASES

_OF_LAUNCHER = LAUNCHER.replace("/", ".")
_SPELLINGS = [(f"{_OF_LAUNCHER}.{alias}", f"{_OF_LAUNCHER}.{name}") for alias, name in ALIASES.items()]
_EITHER_OR = (
    (("training.per_device_train_batch_size",), ("training.token_budget", "training.frame_budget")),
    (("training.max_steps",), ("training.num_epochs",)),
    (("data.train",), ("data.data_config_path",)),
    (("data.data_config_path",), ("data.train", "data.eval", "data.guard")),
    *(((alias,), (name,)) for alias, name in _SPELLINGS),
)
"""Keys, and those that they exclude; each pair is read in both directions but for data, where only `train` counts."""


def prefer_given(config: DictConfig, given: Mapping[str, str]) -> list[Change]:
    """Removes what files say where the command line says its alternative; where it says both, both stay.

    Args:
        config: The composed configuration, which is changed.
        given: The keys that the command line gives a value, with its words.

    Returns:
        What was removed.
    """
    changes: list[Change] = []
    for left, right in _EITHER_OR:
        for ours, others in ((left, right),) if left[0].startswith("data.") else ((left, right), (right, left)):
            source = next((given[key] for key in ours if key in given), None)
            if source is None or any(key in given for key in others):
                continue
            changes += [change for key in others for change in _removed(config, key, source)]
    return changes


def one_spelling(config: DictConfig, key: str, source: str) -> list[Change]:
    """Removes what stands under another name of a key that has been given a value.

    Args:
        config: The composed configuration, which is changed.
        key: The key.
        source: What gave it the value.

    Returns:
        What was removed.
    """
    others = [other for pair in _SPELLINGS if key in pair for other in pair if other != key]
    return [change for other in others for change in _removed(config, other, source)]


def _removed(config: DictConfig, key: str, source: str) -> list[Change]:
    before = OmegaConf.select(config, key)
    if not before:
        return []
    parent, _, name = key.rpartition(".")
    del OmegaConf.select(config, parent)[name]
    plain = OmegaConf.to_container(before) if OmegaConf.is_config(before) else before
    return [Change(key, plain, ABSENT, source)]

"""Values that stand in for one another: what the command line asks for takes the place of what files ask for."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from speechlmm_train.composing.changes import ABSENT, Change

_EITHER_OR = (
    (("training.per_device_train_batch_size",), ("training.token_budget", "training.frame_budget")),
    (("training.max_steps",), ("training.num_epochs",)),
    (("data.train",), ("data.data_config_path",)),
    (("data.data_config_path",), ("data.train", "data.eval", "data.guard")),
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
        for ours, others in ((left, right), (right, left)) if left[0].startswith("training.") else ((left, right),):
            source = next((given[key] for key in ours if key in given), None)
            if source is None or any(key in given for key in others):
                continue
            for key in others:
                section, _, name = key.partition(".")
                before = OmegaConf.select(config, key)
                if before:
                    del config[section][name]
                    plain = OmegaConf.to_container(before) if OmegaConf.is_config(before) else before
                    changes.append(Change(key, plain, ABSENT, source))
    return changes

"""Writes a budget that was found into a run and its configuration, and reads it there."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from speechlmm_train.config import RunConfig
from speechlmm_train.trainer.output_folder import CONFIG

AUTO = "auto"


def recorded(folder: Path) -> dict[str, int]:
    """The budgets that a run was begun with, by stage."""
    file = folder / CONFIG
    if not file.is_file():
        return {}
    plain = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    common = (plain.get("training") or {}).get("token_budget")
    stages = plain.get("stages") or [{"name": "train"}]
    budgets = {stage["name"]: stage.get("token_budget") or common for stage in stages}
    return {name: budget for name, budget in budgets.items() if isinstance(budget, int)}


def with_budgets(
    config: RunConfig, written: Mapping[str, Any], found: Mapping[str, int]
) -> tuple[RunConfig, dict[str, Any]]:
    """A run, and its composed configuration, with the budgets that were found."""
    plain = deepcopy(dict(written))
    update: dict[str, Any] = {}
    if config.training.token_budget == AUTO:
        update["training"] = config.training.model_copy(update={"token_budget": min(found.values())})
        plain["training"] = {**plain["training"], "token_budget": min(found.values())}
    stages = [
        stage.model_copy(update={"token_budget": found[stage.name]}) if stage.name in found else stage
        for stage in config.stages
    ]
    if stages:
        update["stages"] = stages
        plain["stages"] = [
            {**one, "token_budget": found[one["name"]]} if one["name"] in found else one for one in plain["stages"]
        ]
    return config.model_copy(update=update), plain

"""What each override changed: found by composing with one more of them at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speechlmm_core.errors import ConfigError
from speechlmm_train.composing.changes import Change, differences
from speechlmm_train.composing.draft import compose_draft
from speechlmm_train.composing.overrides import parse
from speechlmm_train.composing.tree import ADJUSTMENTS, Tree

NO_ADJUSTMENTS = f"{ADJUSTMENTS}=[]"


def traced(tree: Tree, config_name: str, overrides: Sequence[str]) -> list[Change]:
    """What each override and each adjustment changed.

    Presets and settings come first, and then values, as Hydra composes them. Where some of the overrides cannot be
    composed without those that follow, the latter are named for what all of them changed.

    Args:
        tree: What is composed from.
        config_name: Name of the top-level configuration.
        overrides: Overrides in Hydra's grammar, which together can be composed.
    """
    keyed = [(text, parse(text).key_or_group) for text in overrides]
    own = [text for text, key in keyed if key == ADJUSTMENTS]
    groups = [text for text, key in keyed if key != ADJUSTMENTS and tree.is_group(key)]
    values = [text for text, key in keyed if key != ADJUSTMENTS and not tree.is_group(key)]
    ordered = [*groups, *values]
    changes: list[Change] = []
    before = _composed(tree, config_name, [])
    for number, text in enumerate(ordered, 1):
        after = _composed(tree, config_name, ordered[:number])
        if after is not None:
            changes += differences(before or {}, after, text)
            before = after
    last = compose_draft(tree, config_name, [*ordered, *own], None).changes
    return [*changes, *(change for change in last if change.source not in ordered)]


def _composed(tree: Tree, config_name: str, overrides: Sequence[str]) -> dict[str, Any] | None:
    try:
        draft = compose_draft(tree, config_name, [*overrides, NO_ADJUSTMENTS], None)
    except ConfigError:
        return None
    return {**draft.plain, **({"hydra": {"launcher": draft.launcher}} if draft.launcher is not None else {})}

"""Adjustments: rules that change a composed configuration where a condition holds.

A file ``adjustments/<name>.yaml`` of a preset package, or of the user's folder::

    rules:
      - when: {model/audio_encoder: [hubert, hubert_base], training.parallel: zero3*}
        set: {training.parallel: zero2}

`when` names presets (keys with ``/``, and ``training_setting``) and values; all of them have to hold. A list stands for
any of its items, ``*`` in a text for anything, null for nothing, and ``{not: …}`` for the opposite; without `when` a
rule always applies. `set` gives values, which replace what is there. Rules apply in order, each to what the one before
it left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import nearest
from speechlmm_train.composing.alternatives import one_spelling
from speechlmm_train.composing.changes import ABSENT, Change
from speechlmm_train.composing.known_keys import check_key, default_of, of_launcher
from speechlmm_train.composing.tree import ADJUSTMENTS, LAUNCHER, SETTING, Tree

_RULE = ["when", "set"]


def adjust(config: DictConfig, names: Sequence[str], choices: Mapping[str, str], tree: Tree) -> list[Change]:
    """Applies adjustments to a composed configuration, in order.

    Args:
        config: The configuration, which is changed.
        names: The adjustments.
        choices: The presets that it was composed from, by group.
        tree: Where adjustments are found.

    Returns:
        What they changed.

    Raises:
        ConfigError: There is no such adjustment, or what is wrong with it.
    """
    changes: list[Change] = []
    plain: Any = OmegaConf.to_container(config, resolve=True) if names else {}
    for name in names:
        for number, rule in enumerate(_rules(name, tree)):
            one = _Rule(name, f"adjustment {name!r}, rule {number + 1}", plain, choices, tree)
            when, values = one.parts(rule)
            held = [one.holds(key, wanted) for key, wanted in when.items()]  # each, so that a wrong key always shows
            if all(held):
                changes.extend(change for key, value in values.items() for change in one.apply(config, key, value))
                plain = OmegaConf.to_container(config, resolve=True)
    return changes


def _rules(name: str, tree: Tree) -> Sequence[Any]:
    options = tree.options(ADJUSTMENTS)
    if name not in options:
        raise ConfigError(
            f"unknown adjustment {name!r}{nearest(name, options)} (available: {', '.join(options) or 'none'})"
        )
    content = OmegaConf.to_container(tree.read(f"{ADJUSTMENTS}/{name}"), resolve=False)
    if not isinstance(content, dict) or set(content) != {"rules"} or not isinstance(content["rules"], list):
        raise ConfigError(f"adjustment {name!r}: expected `rules:`, a list of `when: {{…}}` and `set: {{…}}`")
    return content["rules"]


@dataclass(frozen=True)
class _Rule:
    """A rule, and the configuration that it meets."""

    adjustment: str
    place: str
    plain: dict[str, Any]
    choices: Mapping[str, str]
    tree: Tree

    def parts(self, rule: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Its conditions, and the values that it sets."""
        if not isinstance(rule, dict) or not rule.get("set"):
            raise ConfigError(f"{self.place}: expected `when: {{…}}` and `set: {{…}}`, got {rule!r}")
        for key in rule:
            if key not in _RULE:
                known = ", ".join(_RULE)
                raise ConfigError(f"{self.place}: unknown key {key!r}{nearest(str(key), _RULE)} (known: {known})")
        when, values = rule.get("when") or {}, rule["set"]
        for name, part in (("when", when), ("set", values)):
            if not isinstance(part, dict):
                raise ConfigError(
                    f"{self.place}: `{name}`: expected a mapping with keys like training.parallel, got {part!r}"
                )
        for key in values:  # also where the rule does not apply
            if "/" in key or key == SETTING:
                raise ConfigError(
                    f"{self.place}: {key!r} is a group, and adjustments set values (`training.parallel`); choose "
                    "presets on the command line or in a training setting"
                )
            check_key(self.plain, key, self.place)
        return when, values

    def holds(self, key: str, wanted: Any) -> bool:
        """Whether a condition holds."""
        if "/" in key or key == SETTING:
            if not self.tree.is_group(key):
                groups = [SETTING, *(f"model/{name}" for name in self.tree.groups("model"))]
                listed = ", ".join(groups)
                raise ConfigError(f"{self.place}: unknown group {key!r}{nearest(key, groups)} (available: {listed})")
            return _fits(self.choices.get(key), wanted)
        value = _value(self.plain, key)
        if value is ABSENT:
            check_key(self.plain, key, self.place)
            value = default_of(self.plain, key)
        return _fits(value, wanted)

    def apply(self, config: DictConfig, key: str, value: Any) -> list[Change]:
        """Sets a value; none of a launcher where there is no launcher."""
        if of_launcher(key) and LAUNCHER not in self.choices:
            return []
        before = _value(self.plain, key)
        try:
            OmegaConf.update(config, key, value, merge=False, force_add=True)
            after = OmegaConf.select(config, key)
        except OmegaConfBaseException as exc:
            raise ConfigError(f"{self.place}: {key}: {' '.join(str(exc).split())}") from exc
        after = OmegaConf.to_container(after, resolve=True) if OmegaConf.is_config(after) else after
        same = before == after and type(before) is type(after)
        source = f"adjustment {self.adjustment}"
        return [*([] if same else [Change(key, before, after, source)]), *one_spelling(config, key, source)]


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict) and set(wanted) == {"not"}:
        return not _fits(value, wanted["not"])
    if isinstance(wanted, list):
        return any(_fits(value, one) for one in wanted)
    if isinstance(wanted, str) and isinstance(value, str):
        return fnmatchcase(value, wanted)
    numbers = isinstance(value, int | float) and isinstance(wanted, int | float)
    return value == wanted and (type(value) is type(wanted) or (numbers and not isinstance(value, bool)))


def _value(plain: Mapping[str, Any], key: str) -> Any:
    value: Any = plain
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value

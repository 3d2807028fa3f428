"""Whether a folder's run is the one that is asked for: what of its configuration differs, and what that means.

Weights and figures are results. What only says how fast they come, where they are written and how often, may change
freely, and more steps add to what is there. With anything else changed, they would be another run's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from speechlmm_train.composing.changes import ABSENT, Change, in_yaml
from speechlmm_train.composing.known_keys import default_of

_FREE = {
    "data": {"index_dir"},
    "training": {
        *("output_dir", "run_name", "wandb_project", "report_to", "resume_changed"),
        *("num_workers", "num_processes", "parallel", "ddp_timeout", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "torch_empty_cache_steps"),
        *("save_steps", "save_total_limit", "logging_steps", "logging_first_step", "logging_nan_inf_filter"),
        *("log_level", "log_level_replica", "log_on_each_node", "skip_memory_metrics"),
        *("preflight", "memory_limit_gib", "max_loss", "stop_on_explosion", "peak_tflops"),
    },
}
"""Keys that say nothing of the results."""
_BESIDE_BATCHES = ("index_dir", "eval", "guard")
_LENGTHS = ("max_steps", "num_epochs")
_SOURCE = "asked for"
_SHOWN = 4


def changes_of(begun: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Change]:
    """The values that differ; one that is left out stands at its default.

    Args:
        begun: The composed configuration that a run was begun with.
        asked: The one that is asked for.
    """
    found = (_with_defaults(change, begun, asked) for change in _differences(begun, asked, ""))
    return [change for change in found if change.before != change.after and not _was_found(change, asked)]


def decisive(changes: Sequence[Change]) -> list[Change]:
    """Those with which it is another run."""
    return [change for change in changes if not (_is_free(change) or adds_work(change))]


def adds_work(change: Change) -> bool:
    """Whether a change only asks for more of the same."""
    numbers = all(isinstance(value, int | float) for value in (change.before, change.after))
    return of_length(change) and numbers and change.after > change.before


def of_length(change: Change) -> bool:
    """Whether a change asks for another number of steps or epochs."""
    return change.key.rpartition(".")[2] in _LENGTHS


def of_batches(changes: Sequence[Change]) -> list[str]:
    """The keys that differ by which the batches might be others; whether they are is seen when data are opened."""
    return [one.key for one in changes if (name := _of_data(one.key)) is not None and name not in _BESIDE_BATCHES]


def _of_data(key: str) -> str | None:
    """The name of a field of `data`, the run's or a stage's; None of another one."""
    parts = key.split(".")
    parts = parts[2:] if parts[0] == "stages" else parts
    return parts[1] if parts[0:1] == ["data"] and len(parts) > 1 else None


def in_words(changes: Sequence[Change]) -> str:
    """What a run was begun with, and what is asked for."""
    told = [f"{one.key} {_shown(one.before)}, asked for {_shown(one.after)}" for one in changes[:_SHOWN]]
    more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return f"begun with {'; with '.join(told)}{more}"


def _shown(value: Any) -> str:
    text = in_yaml(value)
    most = 60
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _differences(begun: Mapping[str, Any], asked: Mapping[str, Any], prefix: str) -> Iterator[Change]:
    for name in dict.fromkeys([*begun, *asked]):
        before, after = begun.get(name, ABSENT), asked.get(name, ABSENT)
        key = f"{prefix}{name}"
        if key == "stages" and before and after and _names(before) == _names(after):
            for old, new in zip(before, after, strict=True):
                yield from _differences(old, new, f"{key}.{old['name']}.")
        elif isinstance(before, Mapping) or isinstance(after, Mapping):
            sides = [{} if side in (ABSENT, None) else side for side in (before, after)]
            if all(isinstance(side, Mapping) for side in sides):
                yield from _differences(sides[0], sides[1], f"{key}.")
            else:
                yield Change(key, before, after, _SOURCE)
        elif before != after:
            yield Change(key, before, after, _SOURCE)


def _names(stages: Any) -> list[Any] | None:
    if not (isinstance(stages, list) and all(isinstance(stage, Mapping) for stage in stages)):
        return None
    return [stage.get("name") for stage in stages]


def _with_defaults(change: Change, begun: Mapping[str, Any], asked: Mapping[str, Any]) -> Change:
    """What stands where a key is left out; a stage leaves it to `training`, which differs by itself if it does."""
    if change.key.startswith("stages."):
        return change
    before, after = (
        default if value is ABSENT and (default := default_of(dict(plain), change.key)) is not None else value
        for value, plain in ((change.before, begun), (change.after, asked))
    )
    if (before in (ABSENT, None)) and (after in (ABSENT, None)):
        before = after
    return replace(change, before=before, after=after)


def _was_found(change: Change, asked: Mapping[str, Any]) -> bool:
    """Whether it is a budget that was found when the run was begun, and that one is to be found for again."""
    if change.key.rpartition(".")[2] != "token_budget" or not isinstance(change.before, int):
        return False
    common = (asked.get("training") or {}).get("token_budget")
    return (common if change.after in (ABSENT, None) else change.after) == "auto"


def _is_free(change: Change) -> bool:
    section, _, name = change.key.partition(".")
    return name.partition(".")[0] in _FREE.get(section, ())

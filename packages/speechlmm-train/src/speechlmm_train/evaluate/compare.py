"""Compares two sets of predictions of the same examples: paired significance, and what changed. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.interfaces.metric import Scale
from speechlmm_train.evaluate.align import align, as_text
from speechlmm_train.evaluate.bootstrap import DRAWS, Paired, paired
from speechlmm_train.evaluate.markdown import difference, number, table
from speechlmm_train.evaluate.metric_choice import MetricChoice
from speechlmm_train.evaluate.prediction import Prediction
from speechlmm_train.evaluate.score import Scored, raise_if_invalid, statistics
from speechlmm_train.evaluate.worst import example_values

NAMED = 5
"""Differences that a message names."""


@dataclass(frozen=True)
class Change:
    """An example that two systems answered differently."""

    key: str
    dataset: str
    reference: str
    a: str
    b: str
    """The answers."""
    metric: str
    value_a: float
    value_b: float
    gain: float
    """How much better B is by the metric; negative where it is worse."""
    aligned_a: str
    aligned_b: str
    """The answers beside the reference, word by word: `[-left out-]`, `{+added+}`."""


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison."""

    examples: int
    metrics: dict[str, dict[str, Paired]]
    """By dataset (`all` for all together), then by metric."""
    signatures: dict[str, str]
    higher_is_better: dict[str, bool]
    scales: dict[str, Scale]
    """How tables show each metric."""
    changes: list[Change]
    """Those that got worse first, then those that got better; the largest changes first."""
    same: int
    """Examples whose score is the same, whatever the text."""
    left_out: int = 0
    """Examples that only one of both has."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **{name: getattr(self, name) for name in ("examples", "left_out", "same", "signatures")},
            "higher_is_better": self.higher_is_better,
            "scales": self.scales,
            "metrics": {
                dataset: {name: {**asdict(one), "difference": one.difference} for name, one in found.items()}
                for dataset, found in self.metrics.items()
            },
            "changes": [asdict(change) for change in self.changes],
        }


def compare(
    a: Sequence[Prediction],
    b: Sequence[Prediction],
    choice: MetricChoice,
    *,
    common: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compares two systems.

    Args:
        a: Predictions of the one.
        b: Those of the other.
        choice: Metrics, where not those of the tasks.
        common: Whether examples that only one of both has are left out; otherwise they are an error.
        draws: Resamplings.
        seed: Decides them.

    Raises:
        ConfigError: The predictions are of different examples, or a metric is not installed.
        DataError: A metric has no number for some predictions.
    """
    left, right, left_out = _matched(a, b, common=common)
    scored_a, scored_b = statistics(left, choice), statistics(right, choice)
    raise_if_invalid(scored_a)
    raise_if_invalid(scored_b)
    if not scored_a:
        raise DataError("no example has an answer to compare with")
    datasets = list(dict.fromkeys(one.dataset for one in left))
    found: dict[str, dict[str, Paired]] = {}
    for dataset in ["all", *datasets] if len(datasets) > 1 else datasets:
        for name, one in scored_a.items():
            rows = [at for at, row in enumerate(one.rows.tolist()) if dataset == "all" or left[row].dataset == dataset]
            if rows:
                tables = (one.table[rows], scored_b[name].table[rows])
                found.setdefault(dataset, {})[name] = paired(one.metric, *tables, draws=draws, seed=seed)
    changes, same = _changes(left, right, choice, scored_a, scored_b)
    return Comparison(
        len(left),
        found,
        {name: one.metric.signature_for([left[row].answer for row in one.rows]) for name, one in scored_a.items()},
        {name: one.metric.higher_is_better for name, one in scored_a.items()},
        {name: one.metric.scale for name, one in scored_a.items()},
        changes,
        same,
        left_out,
    )


def to_json(found: Comparison) -> str:
    """The comparison as JSON."""
    return json.dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(found: Comparison, name_a: str, name_b: str, *, examples: int = 20) -> str:
    """The comparison as a page."""
    lines = ["# Comparison", "", f"- A: {name_a}", f"- B: {name_b}", "", *summary(found), ""]
    for heading, changes in (
        ("Worse in B", [one for one in found.changes if one.gain < 0]),
        ("Better in B", [one for one in found.changes if one.gain > 0]),
    ):
        lines += [f"## {heading}: {len(changes)}", ""]
        for one in changes[:examples]:
            values = " → ".join(number(found.scales[one.metric], value) for value in (one.value_a, one.value_b))
            lines += [f"### `{one.key}` ({one.metric} {values})", ""]
            lines += ["```text", f"reference  {_line(one.reference)}", f"A          {one.aligned_a}"]
            lines += [f"B          {one.aligned_b}", "```", ""]
        if len(changes) > examples:
            lines += [f"… and {len(changes) - examples} more.", ""]
    lines += [f"- {name}: `{signature}`" for name, signature in found.signatures.items()]
    return "\n".join(lines) + "\n"


def summary(found: Comparison) -> list[str]:
    """The table of the metrics, and how many examples changed."""
    rows = [
        [
            dataset,
            name,
            *(number(found.scales[name], value) for value in (one.a, one.b)),
            difference(found.scales[name], one.difference),
            " to ".join(difference(found.scales[name], end).removesuffix(" points") for end in (one.low, one.high)),
            f"{one.p_bootstrap:.4f}",
            f"{one.p_randomisation:.4f}",
            _verdict(one, higher=found.higher_is_better[name]),
        ]
        for dataset, metrics in found.metrics.items()
        for name, one in metrics.items()
    ]
    head = ["dataset", "metric", "A", "B", "B - A", "95 % interval", "p (bootstrap)", "p (randomisation)", "B is"]
    worse = sum(change.gain < 0 for change in found.changes)
    better = len(found.changes) - worse
    tail = f"{found.examples} examples: {better} better, {worse} worse, {found.same} as good."
    if found.left_out:
        tail += f" {found.left_out} that only one of both has are left out."
    return [*table(head, rows), "", tail]


def _matched(
    a: Sequence[Prediction], b: Sequence[Prediction], *, common: bool
) -> tuple[list[Prediction], list[Prediction], int]:
    """The predictions of the same examples, in A's order."""
    left, right = {one.key: one for one in a}, {one.key: one for one in b}
    only_a, only_b = [key for key in left if key not in right], [key for key in right if key not in left]
    if (only_a or only_b) and not common:
        lines = [
            f"{len(keys)} {'example is' if len(keys) == 1 else 'examples are'} in {name} only: {_some(keys)}"
            for name, keys in (("A", only_a), ("B", only_b))
            if keys
        ]
        raise ConfigError("\n".join([*lines, "compare what both have with --common"]))
    shared = [key for key in left if key in right]
    if not shared:
        raise ConfigError("A and B have no example in common")
    other = [key for key in shared if left[key].references != right[key].references]
    if other:
        raise ConfigError(
            f"{len(other)} {'example has' if len(other) == 1 else 'examples have'} other references in B than in A: "
            f"{_some(other)}; evaluate both on the same data"
        )
    tasks = [key for key in shared if left[key].task != right[key].task]
    if tasks:
        raise ConfigError(f"{len(tasks)} examples are of another task in B than in A: {_some(tasks)}")
    # Metrics are those of A's rows: versions may differ in what a task is scored with.
    pairs = [(left[key], right[key].model_copy(update={"metrics": left[key].metrics})) for key in shared]
    return [one for one, _ in pairs], [two for _, two in pairs], len(only_a) + len(only_b)


def _changes(
    a: Sequence[Prediction],
    b: Sequence[Prediction],
    choice: MetricChoice,
    scored_a: dict[str, Scored],
    scored_b: dict[str, Scored],
) -> tuple[list[Change], int]:
    values_a, values_b = example_values(scored_a, a), example_values(scored_b, b)
    changes: list[Change] = []
    same = 0
    for one, two in zip(a, b, strict=True):
        name = next((name for name in choice.names(one) if one.key in values_a.get(name, ())), None)
        if name is None:
            continue
        before, after = values_a[name][one.key], values_b[name][one.key]
        if before == after:
            same += 1
            continue
        gain = after - before if scored_a[name].metric.higher_is_better else before - after
        aligned = [as_text(align(one.reference, answer.text or "")) for answer in (one, two)]
        texts = one.reference, one.text or "", two.text or ""
        changes.append(Change(one.key, one.dataset, *texts, name, before, after, gain, *aligned))
    # By metric, for a point of BLEU and one of a rate are not the same.
    order = {name: at for at, name in enumerate(scored_a)}
    return sorted(changes, key=lambda c: (c.gain > 0, order[c.metric], -abs(c.gain))), same


def _verdict(one: Paired, *, higher: bool) -> str:
    if max(one.p_bootstrap, one.p_randomisation) >= 0.05:
        return "no different"
    return "better" if (one.difference > 0) == higher else "worse"


def _some(keys: Sequence[str]) -> str:
    return ", ".join(_quoted(keys)) + (f", … ({len(keys) - NAMED} more)" if len(keys) > NAMED else "")


def _quoted(keys: Sequence[str]) -> Iterator[str]:
    return (repr(key) for key in keys[:NAMED])


def _line(text: str) -> str:
    return " ".join(text.split())

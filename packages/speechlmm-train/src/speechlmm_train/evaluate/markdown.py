"""Reports as Markdown tables. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from speechlmm_core.interfaces.metric import Scale


def to_markdown(report: Mapping[str, Any], title: str) -> str:
    """The report as a page: a table of the metrics, one of the speed, and the signatures."""
    parts = [[f"# {_cell(title)}"], metric_lines(report), _speed(report), signature_lines(report)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def metric_lines(report: Mapping[str, Any]) -> list[str]:
    """A row for each dataset, task and metric, with the interval."""
    rows = [
        [dataset, task, name, shown(entry), spread(entry), str(entry["answers"]), _count(own, "failed")]
        for dataset, task, own in _groups(report)
        for name, entry in own["metrics"].items()
    ]
    if not rows:
        return ["Nothing was scored: no example has an answer to compare with."]
    return table(["dataset", "task", "metric", "value", "95 % interval", "answers", "failed"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns line up."""
    cells = [[_cell(text) for text in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[at]) for row in cells)) for at in range(len(head))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def shown(entry: Mapping[str, Any]) -> str:
    """A value as tables show it: rates in per cent."""
    return "no number" if entry["value"] is None else number(entry["scale"], entry["value"])


def spread(entry: Mapping[str, Any]) -> str:
    """The interval as tables show it."""
    low, high = entry["low"], entry["high"]
    return "" if low is None else f"{number(entry['scale'], low)} to {number(entry['scale'], high)}"


def number(scale: Scale, value: float) -> str:
    """A metric's value; fractions in per cent."""
    if scale == "fraction":
        return f"{100 * value:.2f} %"
    return f"{value:.2f}" if scale == "hundred" else f"{value:.4f}"


def difference(scale: Scale, value: float) -> str:
    """A difference of two values; that of two fractions is in points, for per cent of what would be open."""
    if scale == "number":
        return f"{value:+.4f}"
    return f"{100 * value:+.2f} points" if scale == "fraction" else f"{value:+.2f}"


_SPEEDS = ("inverse_real_time_factor", "tokens_per_second")


def _speed(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            dataset,
            *(_count(own, name) for name in ("examples", "failed", "cut", "without_reference")),
            *(f"{own[name]:.1f}" for name in ("media_seconds", "seconds")),
            *("" if own[name] is None else f"{own[name]:.1f}" for name in _SPEEDS),
        ]
        for dataset, own in [*report["datasets"].items(), ("all", report)]
    ]
    head = ["dataset", "examples", "failed", "cut", "without reference", "media (s)", "took (s)"]
    return table([*head, "times real time", "tokens/s"], rows if len(rows) > 2 else rows[:1])


def signature_lines(report: Mapping[str, Any]) -> list[str]:
    """What each metric was computed with."""
    found = dict.fromkeys(
        (name, entry["signature"]) for _, _, own in _groups(report) for name, entry in own["metrics"].items()
    )
    return [f"- {name}: `{signature}`" for name, signature in found]


def _groups(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for dataset, own in report["datasets"].items():
        for task, part in own["tasks"].items():
            yield dataset, task, part
    for task, part in report["tasks"].items():
        if sum(task in own["tasks"] for own in report["datasets"].values()) > 1:
            yield "all", task, part


def _count(own: Mapping[str, Any], name: str) -> str:
    return str(own[name])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

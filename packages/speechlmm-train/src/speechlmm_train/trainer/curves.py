"""A picture of a whole training from its `metrics.jsonl`: losses, gradients, speed, evaluations. Imports no torch."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_train.trainer.callbacks import is_loss
from speechlmm_train.trainer.output_folder import CURVES, METRICS
from speechlmm_train.trainer.summary import scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Series = dict[str, list[tuple[float, float]]]

COLUMNS = 2
NORM = "train/grad_norm"
LARGE = 2.0
"""Scores above this are drawn apart from the others."""
NARROW = 15
"""Ratio of values below which a logarithmic axis needs numbers between its powers of ten."""
NAMED = 14
"""Lines that a panel's legend names."""
SHARES = {
    "train/mfu": "MFU",
    "train/data_wait": "waiting for data",
    "train/frame_padding": "padding of frames",
    "train/position_padding": "padding of positions",
}
SPEEDS = {"train/tokens_per_second": "positions / s", "train/frames_per_second": "encoder frames / s"}


@dataclass(frozen=True)
class Panel:
    """One of the picture's plots."""

    title: str
    labels: Callable[[Sequence[str]], dict[str, str]]
    """Of the names of all figures, those that are shown here, with the labels of their lines."""
    unit: str = ""
    log: bool = False


def save_curves(folder: Path) -> None:
    """Draws the run in an output folder, from its first step on; nothing where no figures were logged.

    What goes wrong with the picture is a warning: it must not hide how the training ended.
    """
    try:
        rows = _rows(folder / METRICS)
        if rows:
            _draw(rows, folder / CURVES, title=folder.name)
    except Exception as exc:
        logger.warning("cannot draw %s: %s", folder / CURVES, " ".join(str(exc).split()))


def _rows(file: Path) -> list[Row]:
    rows: list[Row] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # cut off by a kill
            continue
        if isinstance(row, dict) and "step" in row and "warning" not in row:
            rows.append(row)
    return rows


def _objectives(names: Sequence[str]) -> dict[str, str]:
    return {name: name.removeprefix("train/") for name in names if is_loss(name)}


def _tasks(names: Sequence[str]) -> dict[str, str]:
    parts = {name: name.split("/") for name in names}
    ours = {name: own for name, own in parts.items() if len(own) == 3 and own[0] == "train" and own[1] != "grad_norm"}
    return {name: f"{task}: {objective}" for name, (_, task, objective) in ours.items()}


def _norms(names: Sequence[str]) -> dict[str, str]:
    return {name: name[len(NORM) + 1 :] or "whole" for name in names if name == NORM or name.startswith(f"{NORM}/")}


def _among(known: Mapping[str, str]) -> Callable[[Sequence[str]], dict[str, str]]:
    return lambda names: {name: label for name, label in known.items() if name in names}


def _scores(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in scores(dict.fromkeys(names, 0.0))}


PANELS: tuple[Panel, ...] = (
    Panel("losses by objective", _objectives, "loss", log=True),
    Panel("losses by task", _tasks, "loss", log=True),
    Panel("gradient norms, before clipping", _norms, "norm", log=True),
    Panel("learning rate", _among({"train/lr": "learning rate"}), "rate"),
    Panel("speed", _among(SPEEDS), "per second"),
    Panel("shares", _among(SHARES), "share"),
    Panel("evaluations", _scores),
)


def _series(rows: Sequence[Row], panel: Panel) -> Series:
    found: Series = {}
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float))
    labels = panel.labels(list(names))
    for row in rows:
        for name, label in labels.items():
            value = row.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(label, []).append((float(row["step"]), float(value)))
    return found


def _draw(rows: Sequence[Row], file: Path, *, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [one for panel in PANELS for one in _split(panel, _series(rows, panel))]
    if not panels:
        return
    lines = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(7.5 * COLUMNS, 3.6 * lines + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    stages = _stage_starts(rows)
    for place, (panel, series) in enumerate(panels):
        axes = figure.add_subplot(lines, COLUMNS, place + 1)
        _plot(axes, panel, series)
        for step, _ in stages[1:]:
            axes.axvline(step, color="grey", linewidth=0.8, linestyle=":")
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png")


def _split(panel: Panel, series: Series) -> list[tuple[Panel, Series]]:
    """A plot of its own for scores that run to 100, beside which rates of errors would be a flat line."""
    parts: dict[bool, Series] = {}
    for label, points in series.items():
        large = panel.labels is _scores and max(value for _, value in points) > LARGE
        parts.setdefault(large, {})[label] = points
    return [(panel, own) for own in parts.values()]


def _plot(axes: Axes, panel: Panel, series: Series) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

    whole = {"loss", "whole"}
    for place, (label, points) in enumerate(series.items()):
        steps, values = zip(*points, strict=True)
        style = {"linewidth": 2.2, "color": "black"} if label in whole else {"linewidth": 1.2, "color": _colour(place)}
        marker = "o" if len(points) < 25 else None
        axes.plot(steps, values, label=label, marker=marker, markersize=3, **style)
    values = [value for points in series.values() for _, value in points]
    numbers = StrMethodFormatter("{x:g}")
    if panel.log and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(numbers if max(values) < NARROW * min(values) else NullFormatter())
    elif min(values) >= 0:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(numbers)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("optimiser step", fontsize=8)
    axes.set_ylabel(panel.unit, fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(visible=True, which="major", alpha=0.25)
    if len(series) > 1 or not panel.unit:
        named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        shown = dict(list(named.items())[:NAMED])
        more = f"and {len(named) - NAMED} more" if len(named) > NAMED else None
        axes.legend(shown.values(), shown.keys(), fontsize=7, ncols=1 + len(shown) // 8, title=more, title_fontsize=7)


def _colour(place: int) -> str:
    return f"C{place % 10}"


def _stage_starts(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """First step of each stage."""
    found: dict[str, float] = {}
    for row in rows:
        found.setdefault(str(row.get("stage", "")), float(row["step"]))
    return [(step, name) for name, step in found.items()]

"""A picture of the durations and the words per minute of prepared datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.checkpoint.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from speechlmm_train.prepare.report import PreparationReport

BINS = 30
"""Bars at most."""
DIGITS = 6
"""Digits by which values differ."""
MOST = 8
"""Datasets that have a curve of their own; smaller ones share one."""


def draw_histogram(report: PreparationReport, path: Path) -> bool:
    """Draws the picture; returns whether there was anything to draw.

    Raises:
        OSError: The disk is full.
    """
    durations = _by_dataset([(part.dataset, part.durations) for part in report.parts])
    if not durations:
        path.unlink(missing_ok=True)
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paces = _by_dataset([(part.dataset, part.words_per_minute) for part in report.parts])
    figure = Figure(figsize=(11, 4.2 + 0.2 * len(durations)), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {name: f"C{number}" for number, name in enumerate(durations)}
    _draw(left, durations, colours, ("seconds", "s"), "Duration")
    if paces:
        _draw(right, paces, colours, ("words per minute", "a minute"), "Words per minute")
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "no transcripts", ha="center", va="center", color="0.4")
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    return True


def _by_dataset(parts: list[tuple[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    """Values by dataset, the largest first."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for name, values in parts:
        found.setdefault(name, []).append(values)
    joined = {name: np.concatenate(values) for name, values in found.items()}
    ordered = sorted((one for one in joined.items() if len(one[1])), key=lambda one: -len(one[1]))
    rest = [values for _, values in ordered[MOST - 1 :]]
    if len(rest) > 1:
        ordered = [*ordered[: MOST - 1], (f"{len(rest)} others", np.concatenate(rest))]
    return dict(ordered)


def bin_edges(values: NDArray[np.float64]) -> list[float]:
    """Where bars begin and end: at most `BINS` of them, as wide as Freedman and Diaconis (1981) have it.

    Values that are multiples of something (seconds, frames) get bars that hold equally many of these each, as a bar
    with one more than its neighbour stands out of the picture like a tooth of a comb.
    """
    low, high = float(values.min()), float(np.quantile(values, 0.999))
    if high <= low:
        low, high = low * 0.9, max(low * 1.1, low + 1e-3)
    lower, upper = np.quantile(values, [0.25, 0.75])
    width = max(float(2 * (upper - lower) / np.cbrt(len(values))), (high - low) / BINS)
    gaps = np.diff(np.unique(np.round(values[values <= high], DIGITS)))
    step = float(gaps.min()) if len(gaps) else 0.0
    if step and np.allclose(gaps / step, np.round(gaps / step), atol=0.01):
        width, low = max(1, np.ceil(width / step - 1e-6)) * step, low - step / 2
        high += step / 2
    count = max(1, int(np.ceil((high - low) / width - 1e-6)))
    return [low + width * number for number in range(count + 1)]


def _draw(
    axes: Axes, values: dict[str, NDArray[np.float64]], colours: dict[str, str], units: tuple[str, str], title: str
) -> None:
    unit, short = units
    everything = np.concatenate(list(values.values()))
    edges = bin_edges(everything)
    high = float(np.quantile(everything, 0.999))
    for name, one in values.items():
        # What lies beyond the picture is counted in the last bar. Several areas would hide each other.
        shown, colour = np.minimum(one, high), colours.get(name, "0.5")
        if len(values) == 1:
            axes.hist(shown, bins=edges, histtype="stepfilled", alpha=0.35, color=colour, edgecolor="none")
        label = f"{_plain(name)} ({_rows(len(one))}, median {np.median(one):.3g} {short})"
        axes.hist(shown, bins=edges, histtype="step", linewidth=1.6, color=colour, label=label)
    # Below the axes, where it hides nothing.
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), frameon=False, fontsize=9, borderaxespad=0)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(unit)
    axes.set_ylabel("rows")
    axes.set_xlim(edges[0], edges[-1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _plain(name: str) -> str:
    """A name that no font's mathematics takes apart and that is drawn whole."""
    shown = "".join(one if one.isprintable() else "?" for one in name).replace("$", r"\$")
    return shown if len(shown) <= 28 else f"…{shown[-27:]}"

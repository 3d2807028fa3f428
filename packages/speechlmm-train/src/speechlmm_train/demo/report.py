"""What the demo shows at its end: a table, examples, a picture of the learning curve, and `report.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from speechlmm_core.checkpoint.atomic import atomic_write, write_text

REPORT, CURVE = "report.json", "learning_curve.png"
LOSSES = {
    "train/loss": "all losses, weighted",
    "train/lm": "next token (text decoder)",
    "train/ctc_encoder": "CTC on the encoder (characters)",
    "train/ctc_adapter": "CTC on the adapter (words)",
}


@dataclass(frozen=True)
class DemoReport:
    """The demo's figures; rates are fractions."""

    wer: float
    """Word error rate on unseen sentences of known voices."""
    cer: float
    """Character error rate, likewise."""
    wer_unseen_voice: float
    """Word error rate on unseen sentences of a voice that is in no training data."""
    wer_shuffled_audio: float
    """Word error rate where every sentence is scored against another one's audio: how much the model listens."""
    steps: int
    """Optimiser steps of all stages."""
    seconds: float
    """From the start of the process to this report."""
    peak_rss_bytes: int
    """Largest resident memory, summed over all processes."""
    num_parameters: int
    seed: int


def save_report(report: DemoReport, path: Path) -> None:
    """Writes the figures as JSON, atomically."""
    write_text(path, json.dumps(asdict(report), indent=2) + "\n")


def save_learning_curve(records: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws the losses over the steps.

    Args:
        records: Lines of `metrics.jsonl` with `step` and losses.
        path: PNG to write, atomically.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [record["step"] for record in records]
    for name, label in LOSSES.items():
        # Not a number where a loss was not computed: the line breaks there.
        values = [value if (value := record.get(name, 0.0)) > 0 else math.nan for record in records]
        if not all(map(math.isnan, values)):
            axes.plot(steps, values, label=label, linewidth=2.4 if name == "train/loss" else 1.4)
    axes.set_yscale("log")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss per token (nats)")
    axes.set_title("SpeechLMM demo: learning curve")
    axes.grid(visible=True, which="both", alpha=0.25)
    if axes.lines:
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def table(report: DemoReport) -> list[tuple[str, str]]:
    """The figures as rows of (name, value)."""
    return [
        ("WER, new sentences, known voices", f"{report.wer:.1%}"),
        ("CER, new sentences, known voices", f"{report.cer:.1%}"),
        ("WER, a voice never heard in training", f"{report.wer_unseen_voice:.1%}"),
        ("WER with the audio shuffled (should be high: it listens)", f"{report.wer_shuffled_audio:.1%}"),
        ("parameters", f"{report.num_parameters / 1e6:.2f} M"),
        ("optimiser steps", f"{report.steps:,}"),
        ("seconds since the start", f"{report.seconds:.0f}"),
        ("peak memory of all processes", f"{report.peak_rss_bytes / 1e9:.2f} GB"),
    ]

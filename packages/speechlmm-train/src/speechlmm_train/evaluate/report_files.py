"""Writes an evaluation's reports: `report.json`, `report.md` and the page `report.html`. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from speechlmm_train.evaluate.align import align
from speechlmm_train.evaluate.markdown import number, shown, spread, to_markdown
from speechlmm_train.evaluate.metric_choice import MetricChoice
from speechlmm_train.evaluate.output import EvaluationFolder
from speechlmm_train.evaluate.playable import playable
from speechlmm_train.evaluate.prediction import Prediction
from speechlmm_train.evaluate.worst import Ranked, worst_examples

TEMPLATE = "report.html.j2"


def write_reports(
    folder: EvaluationFolder,
    report: Mapping[str, Any],
    predictions: Sequence[Prediction],
    choice: MetricChoice,
    *,
    worst: int = 10,
    title: str = "Evaluation",
) -> None:
    """Writes all forms of a report, each atomically.

    Args:
        folder: Where.
        report: What `report_on` gave.
        predictions: The predictions.
        choice: The metrics.
        worst: Examples of each dataset on the page.
        title: Heading of the page.
    """
    folder.write_report("json", to_json(report))
    folder.write_report("md", to_markdown(report, title))
    folder.write_report("html", to_html(folder, report, worst_examples(predictions, choice, worst), title))


def to_json(report: Mapping[str, Any]) -> str:
    """The report as JSON."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_html(
    folder: EvaluationFolder, report: Mapping[str, Any], worst: Mapping[str, Sequence[Ranked]], title: str
) -> str:
    """The report as one page that needs nothing from elsewhere, but for the videos beside it."""
    from jinja2 import Environment

    source = resources.files("speechlmm_train.evaluate").joinpath(TEMPLATE).read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    parts = [
        {
            "name": name,
            "own": own,
            "metrics": [
                {**entry, "task": task, "name": metric, "value": shown(entry), "spread": spread(entry)}
                for task, part in own["tasks"].items()
                for metric, entry in part["metrics"].items()
            ],
            "worst": [_shown(one, folder) for one in worst.get(name, ())],
        }
        for name, own in report["datasets"].items()
    ]
    return template.render(title=title, report=report, datasets=parts)


def heading(prediction: Prediction) -> str:
    """What an example is called: its key, with the names of its files where these say more."""
    files = [Path(str(item["path"])).name for item in prediction.media if item.get("path")]
    new = [name for name in dict.fromkeys(files) if Path(name).stem not in prediction.key]
    return " ".join([prediction.key, *([f"({', '.join(new)})"] if new else [])])


def _shown(one: Ranked, folder: EvaluationFolder) -> dict[str, Any]:
    prediction = one.prediction
    nearest = min(
        ([align(reference, prediction.text or "") for reference in prediction.references]),
        key=lambda pieces: sum(piece.kind != "equal" for piece in pieces),
        default=[],
    )
    return {
        "prediction": prediction,
        "heading": heading(prediction),
        "score": "" if one.value is None else f"{one.metric} {number(one.scale, one.value)}",
        "pieces": nearest,
        "media": [playable(item, folder.path) for item in prediction.media],
    }

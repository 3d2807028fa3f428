"""What is told when a run has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechlmm_train.config import RunConfig

if TYPE_CHECKING:
    from speechlmm_train.run_report import RunReport


def closing_lines(report: RunReport, config: RunConfig) -> tuple[list[str], list[str]]:
    """Lines about what was trained, and notes on what should be looked at."""
    from speechlmm_train.trainer.mixture import table
    from speechlmm_train.trainer.summary import evaluation_lines

    lines: list[str] = []
    for stage, rows in report.mixture.items():
        if len(rows) > 1:
            lines += [f"stage {stage} was trained on", *table(rows)]
    lines += evaluation_lines(report.figures, report.best)
    trained = f"trained {report.steps - report.steps_before} steps in {report.seconds:.0f} s"
    trained += f", after {report.steps_before} that had been done before" if report.steps_before else ""
    lines.append(f"{trained}; the model is in {report.model_path}")
    notes: list[str] = []
    for name, guard in report.guard.items():
        if guard["worsened"] > config.training.guard_tolerance:
            notes.append(f"{name} has worsened from {guard['first']:.4g} to {guard['last']:.4g}")
    return lines, notes

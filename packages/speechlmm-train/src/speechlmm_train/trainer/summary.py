"""What a run's evaluations came to, as a table. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechlmm_train.evaluate.markdown import table

HEAD = ("figure", "last", "best", "best checkpoint")


def scores(figures: Mapping[str, float]) -> dict[str, float]:
    """The scores over all datasets: `eval/asr_wer`, and neither `eval/<dataset>/asr_wer` nor `eval/asr_wer_words`."""
    found = {
        name: value
        for name, value in figures.items()
        if name.startswith(("eval/", "guard/")) and name.count("/") == 1 and not name.endswith("_worsened")
    }
    return {name: value for name, value in found.items() if not any(name.startswith(f"{one}_") for one in found)}


def evaluation_lines(figures: Mapping[str, float], best: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A row for each score: its last value, and the best with the checkpoint that has it; none without scores.

    Args:
        figures: The last figures of a run.
        best: The best checkpoint of each stage, with the figure that it was chosen by.
    """
    rows: list[tuple[str, ...]] = []
    chosen_by = [str(one["figure"]) for one in best.values()]
    for name in dict.fromkeys([*scores(figures), *chosen_by]):
        last = f"{figures[name]:.4g}" if name in figures else ""
        found = [(stage, one) for stage, one in best.items() if one["figure"] == name]
        for stage, one in found:
            at = str(one["checkpoint"]) if len(best) == 1 else f"{one['checkpoint']} (stage {stage})"
            rows.append((name, last, f"{one['value']:.4g}", at))
        if not found:
            rows.append((name, last, "", ""))
    return table(HEAD, rows) if rows else []

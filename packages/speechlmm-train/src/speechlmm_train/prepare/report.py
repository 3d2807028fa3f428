"""What a preparation found: a table for the terminal, a report, and a line for each row in quarantine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.checkpoint.atomic import atomic_write, write_text
from speechlmm_core.data.index.layout import REASONS
from speechlmm_core.data.spec.task_check import ANOTHER_LANGUAGE
from speechlmm_train.prepare.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

REPORT, QUARANTINE, HISTOGRAM = "report.md", "quarantine.jsonl", "durations.png"
SHOWN = 5
"""Rows of each reason that the report shows."""


@dataclass(frozen=True)
class Quarantined:
    """A row for which there is a reason to leave it out."""

    dataset: str
    row: int
    """Its number in the corpus, from 1."""
    id: str
    place: str
    reason: str
    detail: str
    used: bool
    """Whether it is used all the same: a set for evaluation is kept whole."""


@dataclass(frozen=True)
class PartReport:
    """What was found of a part."""

    name: str
    dataset: str
    destination: str
    total: int
    kept: int
    """Rows that are used."""
    hours: float
    reasons: dict[str, int]
    """Rows that are left out, by reason."""
    flagged: dict[str, int]
    """Rows that are used although training would leave them out, by reason."""
    lacks: dict[str, int]
    """Rows that are not in quarantine and that the task or the languages cannot use, by what they lack."""
    strict: bool
    """Whether such rows are faults, and not left out."""
    clipped: int
    quarantine: list[Quarantined]
    durations: NDArray[np.float64]
    """Seconds of media of the rows that are used."""
    words_per_minute: NDArray[np.float64]
    """Words that are spoken in a minute, where the corpus tells."""


@dataclass(frozen=True)
class PreparationReport:
    """What was found of a specification."""

    spec: str
    index_dir: Path
    settings: Settings
    parts: list[PartReport]
    files_read: int
    """Media that were read now, and were not known from before."""
    hours_read: float
    seconds: float
    """Seconds that reading took."""

    @property
    def quarantined(self) -> Counter[str]:
        """Rows that are left out, by reason."""
        return sum((Counter(part.reasons) for part in self.parts), Counter[str]())

    @property
    def flagged(self) -> int:
        """Rows that are used although training would leave them out."""
        return sum(sum(part.flagged.values()) for part in self.parts)

    @property
    def lacking(self) -> Counter[str]:
        """Rows that the task or the languages cannot use, by what they lack."""
        return sum((Counter(part.lacks) for part in self.parts), Counter[str]())

    @property
    def notes(self) -> list[str]:
        """What a run would refuse although something is left."""
        found: list[str] = []
        for part in self.parts:
            refused = {reason: count for reason, count in part.lacks.items() if reason != ANOTHER_LANGUAGE}
            if part.strict and part.kept and refused:
                hint = "`run` refuses them: mend them, or change the entry's task or languages"
                found.append(f"{part.name}: {_listed(refused)}; {hint}")
        return found

    def why_empty(self, dataset: str) -> str:
        """Why no row of a dataset is left."""
        lacks = sum((Counter(part.lacks) for part in self.parts if part.dataset == dataset), Counter[str]())
        if not lacks:
            return f"{dataset}: all of its rows are in quarantine"
        return f"{dataset}: none of its rows can be used: {_listed(lacks)}; change its task or languages, or the data"

    @property
    def empty_datasets(self) -> list[str]:
        """Datasets of which no row is left."""
        kept: Counter[str] = Counter()
        for part in self.parts:
            kept[part.dataset] += part.kept
        return [name for name, count in kept.items() if not count]

    def summary(self) -> str:
        """One line for the end of the command."""
        total, kept = sum(part.total for part in self.parts), sum(part.kept for part in self.parts)
        read = f"{self.files_read:,} files read"
        if self.hours_read and self.seconds:
            read += f" ({self.hours_read:.2f} h at {self.hours_read * 3600 / self.seconds:,.0f} times real time)"
        lacking = self.lacking.total()
        left = f", {quarantined:,} in quarantine" if (quarantined := total - kept - lacking) else ""
        left += f", {lacking:,} that the task or languages cannot use" if lacking else ""
        return f"{total:,} rows, {kept:,} used{left}; {read}; index: {self.index_dir}"


def write_report(report: PreparationReport) -> None:
    """Writes the report, the quarantine and the histogram beside the index.

    Raises:
        OSError: The disk is full.
    """
    from speechlmm_train.prepare.histogram import draw_histogram

    with atomic_write(report.index_dir / QUARANTINE) as path, path.open("wb") as file:
        for part in report.parts:
            for row in part.quarantine:
                file.write(json.dumps(asdict(row), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    shown = draw_histogram(report, report.index_dir / HISTOGRAM)
    text = markdown(report, histogram=shown)
    write_text(report.index_dir / REPORT, text.encode("utf-8", "backslashreplace").decode())


def columns_of(report: PreparationReport) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: the reasons that occur have a column each."""
    found = report.quarantined + report.lacking
    occur = [one for one in dict.fromkeys([*REASONS.values(), *found]) if one in found]
    head = ["part", "for", "rows", "used", "hours", *occur]
    rows = [
        [
            part.name,
            part.destination,
            f"{part.total:,}",
            f"{part.kept:,}",
            f"{part.hours:,.2f}",
            *(f"{part.reasons.get(one, 0) + part.lacks.get(one, 0):,}" for one in occur),
        ]
        for part in report.parts
    ]
    if len(report.parts) > 1:
        rows.append(
            [
                "all",
                "",
                f"{sum(part.total for part in report.parts):,}",
                f"{sum(part.kept for part in report.parts):,}",
                f"{sum(part.hours for part in report.parts):,.2f}",
                *(f"{found[one]:,}" for one in occur),
            ]
        )
    return head, rows


def table(report: PreparationReport) -> Table:
    """The table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    head, rows = columns_of(report)
    found = Table()
    for number, name in enumerate(head):
        found.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        found.add_row(*(Text(cell) for cell in row))
    return found


def markdown(report: PreparationReport, *, histogram: bool) -> str:
    """The report as a Markdown page."""
    head, rows = columns_of(report)
    lines = [f"# Prepared: {_cell(report.spec)}", "", f"Check: {report.settings.check}. {_cell(report.summary())}", ""]
    lines += _table(head, rows)
    flagged = [(part.name, reason, count) for part in report.parts for reason, count in part.flagged.items()]
    if flagged:
        lines += ["", "Used all the same, as sets for evaluation are kept whole:", ""]
        lines += _table(["part", "reason", "rows"], [[name, reason, f"{count:,}"] for name, reason, count in flagged])
    clipped = [[part.name, f"{part.clipped:,}"] for part in report.parts if part.clipped]
    if clipped:
        share = f"{report.settings.clipping:.0%}"
        lines += ["", f"Used, but clipped (at least {share} of the samples at full scale):", ""]
        lines += _table(["part", "rows"], clipped)
    if histogram:
        lines += ["", f"![Durations and words per minute]({HISTOGRAM})"]
    everything = [row for part in report.parts for row in part.quarantine]
    if everything:
        lines += ["", "## Reasons", "", f"All rows are in `{QUARANTINE}`; of each reason the first {SHOWN}:"]
        for reason in dict.fromkeys(row.reason for row in everything):
            first = [row for row in everything if row.reason == reason][:SHOWN]
            lines += ["", f"### {reason}", ""]
            lines += _table(["place", "id", "what was found"], [[row.place, row.id, row.detail] for row in first])
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count:,} row{'' if count == 1 else 's'})" for reason, count in counts.items())


def _cell(text: str) -> str:
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text).replace("|", "\\|")

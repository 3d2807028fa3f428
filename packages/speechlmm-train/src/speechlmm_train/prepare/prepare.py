"""Prepares a specification: lists its rows, reads what is not known of their media, and writes the index.

Shapes: N rows, M media.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from speechlmm_core.data.index.header import IndexHeader
from speechlmm_core.data.index.layout import REASONS, VERSION, Status, is_part_folder, part_slug
from speechlmm_core.data.index.open import made_by
from speechlmm_core.data.index.write import write_part
from speechlmm_core.data.shipped import base_of
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.task_check import TaskCheck
from speechlmm_core.errors import DataError
from speechlmm_train.prepare.decide import Verdict, decide
from speechlmm_train.prepare.known import Journal, Records, joined, parts_in, records_of
from speechlmm_train.prepare.listing import Listing, list_rows
from speechlmm_train.prepare.lock import locked
from speechlmm_train.prepare.opening import OpenPart, open_parts
from speechlmm_train.prepare.pool import start_ahead
from speechlmm_train.prepare.progress import Progress
from speechlmm_train.prepare.reading import Listed, ReadResult, found_for, identifier, read_missing
from speechlmm_train.prepare.report import PartReport, PreparationReport, Quarantined, write_report
from speechlmm_train.prepare.settings import Settings

JOURNAL = ".journal"
STAGED = ".staged-"
LEFT_OVER = re.compile(r"\.(?P<target>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)")
"""What `checkpoint.atomic` makes beside a part that it writes."""


def prepare(
    spec_path: Path,
    *,
    index_dir: Path,
    settings: Settings,
    jobs: int,
    redo: bool = False,
    limit: int | None = None,
    progress: bool = True,
) -> PreparationReport:
    """Prepares a specification.

    Args:
        spec_path: The specification.
        index_dir: Where the index and the report are written.
        settings: What is checked.
        jobs: Processes that read media; 0 to read them in this one.
        redo: Whether everything is read again, whatever is known.
        limit: How many rows of each part are prepared; None for all.
        progress: Whether bars are shown.

    Raises:
        DataError: What is wrong with the specification or the data, or the index cannot be written.
    """
    spec = read_spec(spec_path)
    # What is wrong with the specification or the data shows before anything is written.
    parts = open_parts(spec, base_of(spec_path), index_dir, limit=limit)
    with _writing(index_dir):
        index_dir.mkdir(parents=True, exist_ok=True)
        with locked(index_dir):
            _sweep(index_dir)
            try:
                return _Preparation(spec_path, index_dir, settings, parts, Progress(shown=progress)).run(jobs, redo)
            finally:
                _sweep(index_dir)


@contextmanager
def _writing(index_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        where = f" ({exc.filename})" if exc.filename and str(exc.filename) != str(index_dir) else ""
        raise DataError(
            f"cannot write the index {str(index_dir)!r}: {exc.strerror or exc}{where}; make room or give another "
            "folder with --index-dir (what was read so far is kept where it could be written)"
        ) from exc


def _sweep(index_dir: Path) -> None:
    """Removes what a preparation that was killed left, and nothing else; its journal stays."""
    for path in index_dir.glob(".*"):
        if re.fullmatch(rf"{re.escape(STAGED)}\d+", path.name):
            with suppress(OSError):
                path.unlink()
        elif (left := LEFT_OVER.fullmatch(path.name)) and path.is_dir() and is_part_folder(left["target"]):
            # Where a part itself is missing, the folder that stepped aside for a new one may be all that there is.
            needed = left["kind"] == "old" and not (index_dir / left["target"]).exists()
            if not needed:
                shutil.rmtree(path, ignore_errors=True)


class _Preparation:
    def __init__(
        self, spec_path: Path, index_dir: Path, settings: Settings, parts: Sequence[OpenPart], progress: Progress
    ) -> None:
        self.spec_path, self.index_dir, self.settings = spec_path, index_dir, settings
        self.parts, self.progress = parts, progress

    def run(self, jobs: int, redo: bool) -> PreparationReport:
        before = joined([]) if redo else self.before()
        if redo:
            (self.index_dir / JOURNAL).unlink(missing_ok=True)
        full = self.settings.check == "full"
        if jobs:
            start_ahead()
        listed = [self.list(number, part) for number, part in enumerate(self.parts)]
        journal = Journal(self.index_dir / JOURNAL)
        try:
            with self.progress:
                read = read_missing(listed, before, journal, full=full, jobs=jobs, progress=self.progress.reading)
        finally:
            journal.close()
        for part in self.parts:
            part.check_unchanged()
        reports = [self.write(one, read) for one in listed]
        journal.remove()
        self.remove_outdated()
        report = PreparationReport(
            spec=str(self.spec_path),
            index_dir=self.index_dir,
            settings=self.settings,
            parts=reports,
            files_read=read.num_read,
            hours_read=read.hours,
            seconds=read.seconds,
        )
        write_report(report)
        return report

    def before(self) -> Records:
        """What earlier preparations found."""
        for folder in parts_in(self.index_dir):
            _check_version(folder)
        return joined(records_of(folder) for folder in parts_in(self.index_dir))

    def list(self, number: int, part: OpenPart) -> Listed:
        path = self.index_dir / f"{STAGED}{number}"
        with path.open("wb") as file, self.progress.listing(part.part.name, part.count) as advance:
            task = part.part.spec.task
            rows = list_rows(
                part.examples,
                file,
                count=part.count,
                task=None if task is None else task.type,
                progress=advance,
                check=TaskCheck(part.examples, part.part),
            )
        return Listed(part, rows, path)

    def write(self, listed: Listed, read: ReadResult) -> PartReport:
        """Decides about the rows of a part, and writes it."""
        part, rows = listed.open, listed.rows
        full = self.settings.check == "full"
        records, found = found_for(rows, read.known, full=full)
        training = part.part.destination == "train"
        verdict = decide(rows, records, found, read.faults, self.settings, training=training)
        quarantine = [
            Quarantined(
                dataset=part.part.name,
                row=row + 1,
                id=identifier(listed, row),
                place=part.examples.place(row),
                reason=REASONS[Status(int(verdict.status[row]))],
                detail=verdict.details[row],
                used=bool(verdict.kept[row]),
            )
            for row in np.flatnonzero(verdict.status != Status.OK).tolist()
        ]
        header = self.header(listed, verdict)
        columns = {
            "seconds": verdict.seconds,
            "words": rows.words,
            "characters": rows.characters,
            "quality": rows.quality,
            "status": verdict.status,
            "lacks": rows.lacks,
            "kinds": rows.prompt_kinds,
            "place_files": rows.place_files,
            "place_numbers": rows.place_numbers,
            "lines": rows.lines if rows.stored else np.zeros_like(rows.lines),
            "media_starts": rows.media_starts,
            "num_samples": records["num_samples"],
            "sampling_rates": records["sampling_rate"],
            "sizes": rows.sizes,
            "times": rows.times,
            "keys": rows.keys,
            "measured": records["measured"],
            "peaks": records["peak"],
            "clipped": records["clipped"],
            "hashes": records["hash"],
        }
        if not rows.stored:
            listed.lines.write_bytes(b"")
        complete = write_part(part.folder, header, columns, listed.lines, kept=verdict.kept)
        spoken = rows.spoken_words >= 0
        lacking = _lacking(rows, verdict)
        return PartReport(
            name=part.part.name,
            dataset=part.part.spec.name,
            destination=part.part.destination,
            total=complete.total,
            kept=complete.kept - sum(lacking.values()),
            hours=float(verdict.seconds[verdict.kept & (rows.lacks == 0)].sum()) / 3600,
            reasons=header.quarantined,
            lacks=lacking,
            strict=part.part.spec.reader.strict,
            flagged=header.flagged,
            clipped=verdict.clipped,
            quarantine=quarantine,
            durations=verdict.seconds[verdict.kept & (verdict.seconds > 0)],
            words_per_minute=_pace(rows.spoken_words, verdict, spoken),
        )

    def header(self, listed: Listed, verdict: Verdict) -> IndexHeader:
        part, rows = listed.open, listed.rows
        noted = rows.check if rows.check is not None and rows.check.numbered else None
        return IndexHeader(
            name=part.part.name,
            digest=part.digest,
            total=rows.count,
            kept=0,
            num_media=0,
            check=self.settings.check,
            stamp="",
            spec=str(self.spec_path),
            destination=part.part.destination,
            limit=part.limit,
            stored=rows.stored,
            root=rows.root,
            made_by=made_by(part.part.spec.reader),
            quarantined=_counts(verdict, ~verdict.kept),
            flagged=_counts(verdict, verdict.kept),
            settings=self.settings.plain(),
            choice="" if noted is None else noted.digest,
            lacks=() if noted is None else tuple(noted.reasons),
            places=rows.places,
            sources=part.sources,
        )

    def remove_outdated(self) -> None:
        """Removes parts of the same names that other settings of their readers made."""
        current = {part.folder.name for part in self.parts}
        names = {part.part.name for part in self.parts}
        for folder in parts_in(self.index_dir):
            if folder.name not in current and _is_one_of(folder, names):
                shutil.rmtree(folder, ignore_errors=True)


def _is_one_of(folder: Path, names: Collection[str]) -> bool:
    """Whether a folder's part has one of some names; of a damaged one, the folder's name tells."""
    try:
        return IndexHeader.read(folder).name in names
    except DataError:
        return folder.name.rpartition("-")[0] in {part_slug(name) for name in names}


def _counts(verdict: Verdict, among: np.ndarray) -> dict[str, int]:
    found = verdict.status[among & (verdict.status != Status.OK)]
    return {REASONS[Status(int(code))]: int(np.count_nonzero(found == code)) for code in np.unique(found)}


def _lacking(rows: Listing, verdict: Verdict) -> dict[str, int]:
    """Rows that the index keeps and their task cannot use, by what they lack."""
    if rows.check is None:
        return {}
    counts = np.bincount(rows.lacks[verdict.kept], minlength=len(rows.check.reasons) + 1)
    return {reason: int(counts[number]) for reason, number in rows.check.reasons.items() if counts[number]}


def _pace(words: np.ndarray, verdict: Verdict, spoken: np.ndarray) -> np.ndarray:
    chosen = verdict.kept & spoken & (verdict.seconds > 0)
    return words[chosen] * 60 / verdict.seconds[chosen]


def _check_version(folder: Path) -> None:
    """Refuses to write over what a newer release wrote; a damaged part is read again.

    Raises:
        DataError: A newer release wrote the part.
    """
    try:
        IndexHeader.read(folder)
    except DataError as exc:
        if f"reads version {VERSION}" in str(exc):
            raise

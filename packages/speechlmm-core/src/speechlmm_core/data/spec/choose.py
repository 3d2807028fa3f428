"""Chooses the examples of a part: its amount, its filters, and what its task can use. Imports no torch.

Shapes: N examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.data.chats import chat_of, draws_of
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.header_cache import cache_folder
from speechlmm_core.data.index.choice import StoredChoice
from speechlmm_core.data.index.layout import UNMEASURED
from speechlmm_core.data.index.open import made_by
from speechlmm_core.data.index.prepared import PreparedExamples
from speechlmm_core.data.index.rows import answer_of
from speechlmm_core.data.spec.amount import slice_of
from speechlmm_core.data.spec.config import PartitionSpec
from speechlmm_core.data.spec.durations import seconds_of
from speechlmm_core.data.spec.entry_faults import shortened
from speechlmm_core.data.spec.parts import Part
from speechlmm_core.data.spec.task_check import UNUSABLE, Kind, TaskCheck, kind_of
from speechlmm_core.errors import ConfigError, DataError

FIRST = 300
"""Characters of what is told of an example that was left out."""
TRIED = 64
"""Wordings that are tried out for each pair of languages."""


@dataclass
class Chosen:
    """What takes part, and why the rest does not."""

    indices: NDArray[np.int64]
    """Numbers of the examples that take part, in order."""
    total: int
    """Records there were."""
    dropped: Counter[str] = field(default_factory=Counter[str])
    """How many were left out, by reason."""
    firsts: dict[str, str] = field(default_factory=dict[str, str])
    """The first that was left out, by reason, where it was looked at."""

    def table(self, name: str) -> str:
        """Why nothing is left."""
        if not self.total:
            return f"{name}: there are no examples"
        width = len(str(max(self.dropped.values(), default=0)))
        rows: list[str] = []
        for reason, count in self.dropped.most_common():
            first = " ".join(self.firsts.get(reason, "").split())
            rows.append(f"  {count:>{width}} {reason}" + (f" (the first: {shortened(first)[:FIRST]})" if first else ""))
        return "\n".join([f"{name}: no example is left of {self.total}; change the filters, or the data", *rows])


def choose(examples: Examples, part: Part, *, strict: bool) -> Chosen:
    """Chooses the examples of a part.

    Args:
        examples: All that was read of it.
        part: The part.
        strict: Whether an example that the task cannot use is a fault to be mended, and not left out and counted.

    Raises:
        DataError: The task has no prompts for the data's languages; or, where it is strict, examples lack something.
    """
    prepared = examples if isinstance(examples, PreparedExamples) else None
    total = len(examples) if prepared is None else prepared.total
    chosen = Chosen(np.arange(len(examples)), total)
    if prepared is not None:
        chosen.dropped.update(prepared.quarantined)
    _slice(chosen, part.settings.amount, prepared)
    scan = _Scan(examples, part, strict=strict)
    with nullcontext() if prepared is None else prepared.unchecked():
        scan.by_columns(chosen, prepared)
        numbers = chosen.indices
        if prepared is not None and scan.needed(prepared):
            scan.run_prepared(chosen, prepared)
        elif scan.needed(prepared):
            scan.run(chosen, prepared)
        scan.explain(chosen, numbers)
    return chosen


def _slice(chosen: Chosen, amount: int | str | None, prepared: PreparedExamples | None) -> None:
    if amount is None:
        return
    wanted = slice_of(amount, chosen.total)
    rows = chosen.indices if prepared is None else np.asarray(prepared.rows)
    _keep(chosen, (rows >= wanted.start) & (rows < wanted.stop), f"outside of amount {amount}")


def _keep(chosen: Chosen, kept: NDArray[np.bool_], reason: str) -> None:
    if left_out := int(np.count_nonzero(~kept)):
        chosen.dropped[reason] += left_out
        chosen.indices = chosen.indices[kept]


def _bounds(chosen: Chosen, settings: PartitionSpec, name: str, values: object) -> None:
    unit = "s" if name == "duration" else "words"
    less, more = ("shorter", "longer") if name == "duration" else ("fewer", "more")
    low, high = getattr(settings, f"min_{name}"), getattr(settings, f"max_{name}")
    assert callable(values)
    if low is not None:
        _keep(chosen, ~(values() < low), f"{less} than {low:g} {unit}")
    if high is not None:
        _keep(chosen, ~(values() > high), f"{more} than {high:g} {unit}")


def _quality(chosen: Chosen, low: float, values: NDArray[np.float64]) -> None:
    known = ~np.isnan(values)
    _keep(chosen, known, "no quality is given")
    _keep(chosen, values[known] >= low, f"quality below {low:g}")


class _Scan:
    """One pass over examples."""

    def __init__(self, examples: Examples, part: Part, *, strict: bool) -> None:
        self.examples, self.part, self.strict = examples, part, strict
        self.task = part.spec.task
        self.settings = part.settings
        self.check = TaskCheck(examples, part)
        self.faults = Faults()
        self.tried: set[Kind] = set()
        self.kinds: list[int] = []
        self.firsts: dict[str, str] = {}

    def needed(self, prepared: PreparedExamples | None) -> bool:
        """Whether examples have to be looked at one by one."""
        filters = self.settings.model_dump(exclude={"amount", "destination"}, exclude_none=True)
        return self.check.needed or (prepared is None and bool(filters))

    def by_columns(self, chosen: Chosen, prepared: PreparedExamples | None) -> None:
        """The filters whose values an index has."""
        if prepared is None:
            return
        settings = self.settings
        if (settings.min_duration, settings.max_duration) != (None, None):
            seconds = self._durations(chosen, prepared)
            start = chosen.indices
            _bounds(chosen, settings, "duration", lambda: seconds[np.isin(start, chosen.indices)])
        _bounds(chosen, settings, "num_words", lambda: np.asarray(prepared.num_words)[chosen.indices])
        if settings.min_quality is not None:
            _quality(chosen, settings.min_quality, np.asarray(prepared.quality)[chosen.indices])

    def _durations(self, chosen: Chosen, prepared: PreparedExamples) -> NDArray[np.float64]:
        """(N,) seconds of what is chosen; what has none, in sets for evaluation, is left out as without an index."""
        seconds = np.array(np.asarray(prepared.seconds)[chosen.indices])
        odd = np.isin(np.asarray(prepared.column("status"))[chosen.indices], UNMEASURED)
        if not odd.any():
            return seconds
        kept = np.ones(len(odd), bool)
        for at, found in zip(np.flatnonzero(odd), self._each(chosen.indices[odd]), strict=True):
            kept[at] = not isinstance(found, str)
            if isinstance(found, str):
                chosen.dropped[found] += 1
            else:
                seconds[at] = np.nan if found.duration is None else found.duration
        self.faults.raise_if_any()
        chosen.indices, seconds = chosen.indices[kept], seconds[kept]
        self._time(chosen, seconds, kept)
        there = ~np.isnan(seconds)
        chosen.indices = chosen.indices[there]
        return seconds[there]

    def run_prepared(self, chosen: Chosen, prepared: PreparedExamples) -> None:
        """As `run`, where the part has not changed, without a look at more than an example of each kind."""
        if prepared.header.choice == self.check.digest and self._run_noted(chosen, prepared):
            return
        numbers, before = chosen.indices, Counter(chosen.dropped)
        settings = (made_by(self.part.spec.reader), self.check.digest, self.strict)
        stored = StoredChoice(prepared, numbers, settings, cache=cache_folder())
        known = stored.load()
        if known is None:
            self.run(chosen, prepared)
            stored.save(np.isin(numbers, chosen.indices), chosen.dropped - before, self.kinds)
            return
        kept, dropped, kinds = known
        for number in kinds if self.task is not None else ():
            self._try(self.check.fitted(self.examples.example(number)), number)
        chosen.indices = numbers[kept]
        chosen.dropped.update(dropped)

    def _run_noted(self, chosen: Chosen, prepared: PreparedExamples) -> bool:
        """As `run`, by what was noted of each example when the part was prepared; False where that does not hold."""
        numbers, reasons = chosen.indices, prepared.header.lacks
        codes = np.asarray(prepared.column("lacks"))[numbers]  # (N,)
        lacking = numbers[codes > 0]
        if self.strict and len(lacking):
            # What each of them lacks is told in full, and is only known by looking at it.
            left_out = sum(isinstance(found, str) for found in self._each(lacking))
            self.faults.raise_if_any()
            if left_out < len(lacking):
                return False
        counts = np.bincount(codes, minlength=len(reasons) + 1)[1:]
        if len(counts) > len(reasons):
            return False
        used = numbers[codes == 0]
        if self.task is not None:
            for first in np.sort(np.unique(np.asarray(prepared.column("kinds"))[used], return_index=True)[1]):
                number = int(used[first])
                self._try(self.check.fitted(self.examples.example(number)), number)
        chosen.indices = used
        chosen.dropped.update({reason: int(count) for reason, count in zip(reasons, counts, strict=True) if count})
        return True

    def run(self, chosen: Chosen, prepared: PreparedExamples | None) -> None:
        numbers = chosen.indices
        kept = np.zeros(len(numbers), bool)
        words, quality = np.zeros(len(numbers), np.int64), np.full(len(numbers), np.nan)
        seconds = np.full(len(numbers), np.nan)
        timed = prepared is None and (self.settings.min_duration, self.settings.max_duration) != (None, None)
        for at, found in enumerate(self._each(numbers)):
            if isinstance(found, str):
                chosen.dropped[found] += 1
                continue
            kept[at] = True
            if prepared is None:
                words[at] = len((answer_of(found) or "").split())
                quality[at] = np.nan if found.quality is None else found.quality
                seconds[at] = np.nan if found.duration is None else found.duration
        self.faults.raise_if_any()
        chosen.indices = numbers[kept]
        if prepared is not None:
            return
        if timed:
            self._time(chosen, seconds := seconds[kept], kept)
            words, quality = words[kept], quality[kept]
            there = ~np.isnan(seconds)
            chosen.indices, words, quality = chosen.indices[there], words[there], quality[there]
            seconds = seconds[there]
        else:
            words, quality = words[kept], quality[kept]
        self._filter(chosen, {"duration": seconds, "num_words": words}, quality, timed=timed)

    def _time(self, chosen: Chosen, seconds: NDArray[np.float64], kept: NDArray[np.bool_]) -> None:
        """Fills in the durations that examples do not say."""
        unknown = np.flatnonzero(np.isnan(seconds))
        for at, found in zip(unknown, seconds_of(self.examples, chosen.indices[unknown]), strict=True):
            if isinstance(found, float):
                seconds[at] = found
            elif self.strict:
                self.faults.add(self.examples.place(int(chosen.indices[at])), str(found), order=int(at))
            else:
                chosen.dropped["unreadable"] += 1
                place = self.examples.place(int(chosen.indices[at]))
                chosen.firsts.setdefault("unreadable", f"{place}: {found}")
        self.faults.raise_if_any()

    def _filter(
        self, chosen: Chosen, values: dict[str, NDArray[np.generic]], quality: NDArray[np.float64], *, timed: bool
    ) -> None:
        """The filters, one after the other, each on what the last has left."""
        start = chosen.indices
        for name, column in values.items():
            if name == "num_words" or timed:
                _bounds(chosen, self.settings, name, lambda column=column: column[np.isin(start, chosen.indices)])
        if self.settings.min_quality is not None:
            _quality(chosen, self.settings.min_quality, quality[np.isin(start, chosen.indices)])

    def _each(self, numbers: Sequence[int] | NDArray[np.int64]) -> Iterator[Example | str]:
        """Each example, or why it is left out."""
        for at, number in enumerate(numbers):
            try:
                example = self.check.fitted(self.examples.example(int(number)))
            except (DataError, OSError, ValueError) as exc:  # readers of third parties as well
                self._fault(at, number, str(exc))
                self.firsts.setdefault(UNUSABLE, str(exc))
                yield UNUSABLE
                continue
            reason, lack = self.check.look(example)
            if lack is not None:
                self._fault(at, number, f"{self.examples.place(int(number))}: {lack}")
            if reason is not None:
                if reason not in self.firsts:
                    got = (lack or "").removeprefix(reason).strip(",; ")
                    self.firsts[reason] = self.examples.place(int(number)) + (f": {got}" if got else "")
                yield reason
                continue
            if self.task is not None:
                self._try(example, int(number))
            yield example

    def explain(self, chosen: Chosen, numbers: NDArray[np.int64]) -> None:
        """Where nothing is left, and by what was noted before, looks at the first examples again to say why."""
        if not len(chosen.indices) and not self.firsts and self.needed(None):
            with suppress(DataError):
                all(isinstance(found, str) for found in self._each(numbers[:TRIED]))
        chosen.firsts.update(self.firsts)

    def _fault(self, at: int, number: int, line: str) -> None:
        if self.strict:
            self.faults.add(self.part.name, line, order=at)

    def _try(self, example: Example, number: int) -> None:
        """Makes the chats of the first example of each kind: a language without prompts comes up before training."""
        kind = kind_of(example)
        if kind in self.tried:
            return
        self.tried.add(kind)
        self.kinds.append(number)
        try:
            chat_of(example)
            for drawn in list(draws_of(example)[:TRIED]):
                chat_of(example, draw=drawn)
        except ConfigError as exc:
            raise DataError(f"{self.part.name}: {exc}") from exc

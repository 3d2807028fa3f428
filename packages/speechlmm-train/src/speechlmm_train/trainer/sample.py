"""The fixed sample of the evaluation data that a training is evaluated on: so many examples of each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from speechlmm_core.data.chats import task_for
from speechlmm_core.data.examples import Examples, SubsetExamples
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.errors import DataError


@dataclass(frozen=True)
class Sample:
    """Examples to evaluate on."""

    parts: list[tuple[str, Examples]]
    """Names and views of the datasets' parts; a task may show further examples of what lies behind a view."""
    tasks: list[str]
    """Task of each example."""
    datasets: list[str]
    """Dataset of each example, as figures call it."""
    metrics: dict[str, tuple[str, ...]]
    """Names of each task's metrics."""
    languages: list[str | None] = field(default_factory=list[str | None])
    """Language of each example's answer."""

    @property
    def slices(self) -> dict[str, list[int]]:
        """Examples that are scored together, by the prefix of their figures: all, and those of each dataset."""
        found = {"": list(range(len(self.tasks)))}
        names = list(dict.fromkeys(self.datasets))
        if len(names) > 1:
            for name in names:
                found[f"{name}/"] = [i for i, own in enumerate(self.datasets) if own == name]
        return found


def sample_of(parts: Sequence[OpenedDataset], count: int) -> Sample:
    """At most ``count`` examples of each task, the same at every call.

    A task's examples come from its datasets in equal numbers as far as these have so many, and from all over each.

    Args:
        parts: The evaluation data.
        count: Examples of each task.
    """
    labels = _labels([part.dataset for part in parts])
    places: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for number, part in enumerate(parts):
        for index in range(len(part.examples)):
            task = part.task or task_for(part.examples.example(index)).type
            places.setdefault(task, {}).setdefault(labels[part.dataset], []).append((number, index))
    chosen: dict[tuple[int, int], str] = {}
    metrics: dict[str, tuple[str, ...]] = {}
    for task, datasets in places.items():
        numbers = even([len(own) for own in datasets.values()], count)
        for own, wanted in zip(datasets.values(), numbers, strict=True):
            chosen |= {own[i * len(own) // wanted]: task for i in range(wanted)}
        number, index = next(iter(datasets.values()))[0]
        metrics[task] = task_for(parts[number].examples.example(index)).metrics
    views: list[tuple[str, Examples]] = []
    order = sorted(chosen)
    for number in dict.fromkeys(number for number, _ in order):
        own = [index for one, index in order if one == number]
        views.append((parts[number].name, SubsetExamples(parts[number].examples, own)))
    return Sample(
        views,
        [chosen[place] for place in order],
        [labels[parts[number].dataset] for number, _ in order],
        metrics,
        [_language(parts[number].examples, index) for number, index in order],
    )


def _language(examples: Examples, index: int) -> str | None:
    try:
        example = examples.example(index)
    except DataError:  # answered with what is wrong with it
        return None
    return example.target_language or example.source_language


def even(sizes: Sequence[int], count: int) -> list[int]:
    """Shares of ``count`` among sets of these sizes: equal, but for sets that have fewer, whose rest others take."""
    shares = [0] * len(sizes)
    left = count
    for place, number in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[number] = min(sizes[number], -(-left // (len(sizes) - place)))
        left -= shares[number]
    return shares


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Short names: a manifest's without folder and ending, where that tells them apart."""
    names = list(dict.fromkeys(names))
    short = [PurePath(name).stem if name.endswith(".jsonl") else name for name in names]
    return {name: one if short.count(one) == 1 else name for name, one in zip(names, short, strict=True)}

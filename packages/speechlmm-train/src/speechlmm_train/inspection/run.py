"""Makes the samples of an inspection, and shows them in a terminal and on a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_train.augment.augmenter import Augmenter
from speechlmm_train.compose import Composed
from speechlmm_train.inspection.choose import Chosen, inputs_of
from speechlmm_train.inspection.page import write_page
from speechlmm_train.inspection.sample import SeenMedium, SeenSample, View
from speechlmm_train.inspection.stand_in import processor_of
from speechlmm_train.inspection.tokens import coloured, marked, visible


@dataclass(frozen=True)
class Inspection:
    """Samples of some datasets."""

    datasets: list[OpenedDataset]
    samples: list[list[SeenSample]]
    model: str
    """What they were made for."""
    notes: list[str]

    @classmethod
    def of(
        cls,
        chosen: Chosen,
        picked: Sequence[Sequence[int]],
        composed: Composed | None,
        *,
        model_path: Path | None,
        augment: bool,
        epochs: int,
    ) -> Inspection:
        """Makes the samples.

        Args:
            chosen: The datasets.
            picked: Numbers of the examples of each.
            composed: The configuration, if any.
            model_path: Folder of a saved model; the configuration's, or a stand-in, without it.
            augment: Whether training sets go through the configuration's augmentation.
            epochs: Epochs whose prompts are shown.

        Raises:
            CheckpointError: There is no model in the folder.
            DataError: Augmentations lack something.
        """
        config = composed.config.model if composed is not None else None
        processor = processor_of(model_path, config, inputs_of(chosen.datasets, picked))
        augmenter = None
        if augment and composed is not None:
            augmenter = Augmenter.open(composed.config.data.augment, processor.inputs, base=Path.cwd())
        training_seed = composed.config.training.seed if composed is not None else 0
        # As the first stage of a run draws it.
        seed = int(np.random.SeedSequence([training_seed, 0]).generate_state(1)[0])
        view = View(processor, seed, epochs, augmenter)
        samples = [
            [view.sample(dataset, index, offset) for index in indices]
            for dataset, offset, indices in zip(chosen.datasets, chosen.offsets, picked, strict=True)
        ]
        notes = list(chosen.notes)
        if model_path is None and config is None:
            towers = ", ".join(
                f"{name}: {one.encoder.type} + {one.adapter.type}" for name, one in processor.inputs.items()
            )
            notes.append(
                f"no model was named, so a stand-in counts: bytes as tokens{f', {towers}' if towers else ''}; name "
                "yours by --model-path or by the KEY=VALUEs of its training"
            )
        if augmenter is not None:
            notes.append(
                f"training sets are augmented ({', '.join(one.type for one in augmenter.augmentations)}), epoch 0"
            )
        model = str(model_path) if model_path else "the configuration's model" if config else "a stand-in"
        return cls(chosen.datasets, samples, model, notes)

    @property
    def failed(self) -> int:
        """Samples that cannot be made."""
        return sum(one.error is not None for group in self.samples for one in group)

    def lines(self, *, colour: bool) -> Iterator[str]:
        """The samples as text, of the corpus' characters only those that a terminal shows and does not obey.

        Args:
            colour: For a terminal; else what is learnt stands in brackets.
        """
        for dataset, group in zip(self.datasets, self.samples, strict=True):
            yield visible(f"# {dataset.name}: {summary(dataset)}")
            for one in group:
                yield ""
                yield visible(f"## {head(one)}")
                if one.error is not None:
                    continue
                yield (coloured if colour else marked)(one.spans)
                yield from (f"   {describe(medium)}" for medium in one.media)
                for epoch, prompt in enumerate(one.prompts if len(one.prompts) > 1 else ()):
                    yield visible(f"   epoch {epoch}: {' '.join(prompt.split())}")
            yield ""

    def write(self, folder: Path) -> Path:
        """Writes the page and what is on it, and returns the page's path."""
        groups = [
            (dataset.name, summary(dataset), group) for dataset, group in zip(self.datasets, self.samples, strict=True)
        ]
        return write_page(groups, folder, model=self.model, notes=self.notes)


def summary(dataset: OpenedDataset) -> str:
    """A dataset in a few words."""
    words = [f"{len(dataset.examples)} examples for {dataset.destination}"]
    if dataset.task is not None:
        words.append(f"task {dataset.task}")
    if dropped := sum(dataset.dropped.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in dataset.dropped.items())
        words.append(f"{dropped} left out ({reasons})")
    return "; ".join(words)


def head(one: SeenSample) -> str:
    """A sample's first line."""
    if one.error is not None:
        return f"{one.place}: error: {one.error}"
    words = [word for word in (one.id, one.task, one.languages) if word]
    words.append(f"{one.num_tokens} positions, {one.num_supervised} learnt")
    if one.media:
        words.append(f"{one.duration_s:.2f} s")
    return f"{one.place}: {', '.join(words)}"


def describe(seen: SeenMedium) -> str:
    """A medium's lengths on its way into the language model."""
    medium = seen.medium
    return (
        f"{seen.name}: {medium.duration_s:.2f} s, {medium.num_samples} samples at {medium.sampling_rate} Hz -> "
        f"{seen.encoder_frames} frames -> {seen.positions} positions"
    )

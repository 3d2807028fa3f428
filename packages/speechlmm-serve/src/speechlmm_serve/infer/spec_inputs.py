"""Examples of a dataset specification as inputs: they bring their task, its prompt and its languages along.

The requests are those of an evaluation on the same specification. Imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechlmm_core.data.index.open import index_dir_of
from speechlmm_core.data.shipped import base_of
from speechlmm_core.data.spec.config import Destination
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.find import find_spec
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.data.spec.split import open_split
from speechlmm_core.errors import SpeechLMMError
from speechlmm_serve.infer.inputs import Input
from speechlmm_serve.task_prompt import TaskPrompt


class SpecInputs:
    """The examples of opened datasets, one after the other.

    Args:
        opened: The datasets.
    """

    def __init__(self, opened: Sequence[OpenedDataset]) -> None:
        self.opened = list(opened)

    def __len__(self) -> int:
        """How many there are."""
        return sum(len(one.examples) for one in self.opened)

    def __iter__(self) -> Iterator[Input]:
        """One after the other; one that cannot be asked about says why."""
        for one in self.opened:
            seen: Counter[str] = Counter()
            for number in range(len(one.examples)):
                try:
                    example = one.examples[number]
                    messages = one.examples.chat(number, with_answer=False)
                except (SpeechLMMError, ValueError) as exc:
                    reason = " ".join(str(exc).split())
                    yield Input("", name=f"{one.name}#{number + 1}", dataset=one.name, error=reason)
                    continue
                name = example.id or str(number + 1)
                seen[name] += 1
                key = f"{one.name}/{name}" if seen[name] == 1 else f"{one.name}/{name}#{seen[name]}"
                media = next((m.media for m in reversed(messages) if m.role == "user" and m.media), [])
                path = next((str(item["path"]) for item in media if item.get("path") is not None), "")
                yield Input(path, example=example, name=key, dataset=one.name, chat=tuple(messages))

    def check(self, prompt: TaskPrompt) -> None:
        """Nothing is left to try: opening did."""


def open_inputs(
    name: str, *, split: Destination | None = None, datasets: Sequence[str] = (), index_dir: Path | None = None
) -> SpecInputs:
    """The examples that a specification names.

    Args:
        name: The specification: a path, or a name below `conf/datasets`.
        split: What its partitions are for; None for test sets, or evaluation sets where there are none.
        datasets: Datasets to which it is limited, by name; empty for all.
        index_dir: What `speechlmm-train prepare` wrote; by default what lies beside the specification.

    Raises:
        DataError: What is wrong with the specification or its data.
        ConfigError: There is no dataset of such a name.
    """
    path = find_spec(name, Path.cwd())
    index_dir = index_dir or index_dir_of(path)
    spec = read_spec(path)
    opened = open_split(
        spec.datasets, base=base_of(path), split=split, names=datasets, index_dir=index_dir, label=str(path)
    )
    return SpecInputs(opened)

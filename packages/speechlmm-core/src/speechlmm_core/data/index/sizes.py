"""What the examples of a prepared part take of a model, kept so that a run starts at once. Imports no torch.

It stands in the index, where `speechlmm-train prepare --model-path` puts it, or in the user's cache. What it depends on
is in the file's name, but for the wordings of prompts: of every kind of example one is noted, whose chats are made
again and compared.

Shapes: N examples.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.checkpoint.atomic import atomic_write, write_text
from speechlmm_core.data.chats import chat_of, draws_of, longest_of
from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples
from speechlmm_core.data.index.layout import SIZES_NAME
from speechlmm_core.data.index.prepared import PreparedExamples
from speechlmm_core.data.index.views import prepared_rows, unchecked, view_texts
from speechlmm_core.errors import DataError

if TYPE_CHECKING:
    from speechlmm_core.chat.messages import Message
    from speechlmm_core.config import InputConfig, ModelConfig

logger = logging.getLogger(__name__)

SIZES = 2
"""How sizes are counted; another number leaves those aside that are stored."""
COLUMNS = np.dtype([("positions", "<i8"), ("frames", "<i8"), ("seconds", "<f8"), ("inputs", "<u4")])
LENGTHS = tuple(length + extra for length in (1 << power for power in range(1, 30)) for extra in (0, 1, length // 3))
"""Numbers of samples at which an augmentation's longest results are compared."""

Kind = tuple[str, str | None, str | None, bool, bool, tuple[int, ...]]
MaxLength = Callable[[str, int], int]


class Sizer(Protocol):
    """What of the processor is needed here."""

    config: ModelConfig
    inputs: dict[str, InputConfig]
    tokenizer: Any

    def sizes(
        self, messages: Sequence[Message], num_samples: Sequence[int], *, with_answer: bool = True
    ) -> tuple[int, int]:
        """Positions and encoder frames of a conversation."""
        ...


@dataclass(frozen=True)
class Lengths:
    """What the examples of a dataset take."""

    positions: NDArray[np.int64]
    """(N,) positions in the language model, with the longest wording of the prompt."""
    frames: NDArray[np.int64]
    """(N,) encoder output frames."""
    seconds: NDArray[np.float64]
    """(N,) seconds of media."""
    inputs: NDArray[np.uint32]
    """(N,) which of the model's inputs an example has media of: a bit for each, the first input's being the lowest."""
    kinds: Mapping[Kind, int] = field(default_factory=dict[Kind, int])
    """The first example of each kind."""

    @classmethod
    def joined(cls, parts: Sequence[Lengths]) -> Lengths:
        """Those of several datasets, one after the other."""
        columns = {name: np.concatenate([getattr(one, name) for one in parts]) for name in COLUMNS.names or ()}
        kinds: dict[Kind, int] = {}
        offset = 0
        for one in parts:
            for kind, index in one.kinds.items():
                kinds.setdefault(kind, offset + index)
            offset += len(one)
        return cls(**columns, kinds=kinds)

    def __len__(self) -> int:
        return len(self.positions)


class StoredSizes:
    """The sizes of a view of a prepared part for a model.

    Args:
        examples: The view.
        part: The part that it rests on.
        digest: What they depend on.
        cache: The user's cache folder.
    """

    def __init__(self, examples: Sequence[Example], part: PreparedExamples, digest: str, cache: Path) -> None:
        self.examples, self.part, self.digest, self.cache = examples, part, digest, cache

    @classmethod
    def of(
        cls, examples: Sequence[Example], processor: Sizer, max_length: MaxLength | None, *, cache: Path
    ) -> StoredSizes | None:
        """The sizes of a view; None where it does not rest on one prepared part."""
        rows = prepared_rows(examples)
        if rows is None:
            return None
        part, indices = rows
        digest = hashlib.blake2b(digest_size=16)
        lengths = [] if max_length is None else [[max_length(one, at) for at in LENGTHS] for one in processor.inputs]
        for text in (
            f"{SIZES} {part.header.stamp} {hashlib.blake2b(indices.tobytes()).hexdigest()}",
            *view_texts(examples),
            processor.config.model_dump_json(),
            tokenizer_text(processor.tokenizer),
            *_versions(processor),
            json.dumps(lengths),
        ):
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return cls(examples, part, digest.hexdigest(), cache)

    def load(self) -> Lengths | None:
        """The sizes, where they are stored and the prompts are still the same."""
        for folder in (self.part.folder, self.cache):
            file = folder / f"{SIZES_NAME}{self.digest}.npy"
            try:
                noted = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
                values = np.load(file, allow_pickle=False)
                if values.dtype == COLUMNS and values.shape == (len(self.examples),):
                    with unchecked(self.examples):
                        first = {int(index): self.examples[int(index)] for index in noted["examples"]}
                        same = noted["chats"] == self._chats(list(first.values()))
                    if same:
                        kinds = {kind_of(example): index for index, example in first.items()}
                        columns = {name: np.ascontiguousarray(values[name]) for name in COLUMNS.names or ()}
                        return Lengths(**columns, kinds=kinds)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, DataError) as exc:
                logger.info("cannot read %s: %s", file, exc)
        return None

    def save(self, lengths: Lengths, *, in_index: bool = False) -> None:
        """Stores the sizes in the cache or in the index; where that cannot be, they are computed anew the next time."""
        file = (self.part.folder if in_index else self.cache) / f"{SIZES_NAME}{self.digest}.npy"
        values = np.zeros(len(lengths), COLUMNS)
        for name in COLUMNS.names or ():
            values[name] = getattr(lengths, name)
        first = list(lengths.kinds.values())
        try:
            with unchecked(self.examples):
                noted = {"examples": first, "chats": self._chats([self.examples[index] for index in first])}
            with atomic_write(file) as temporary, temporary.open("wb") as handle:
                np.save(handle, values, allow_pickle=False)
            write_text(file.with_suffix(".json"), json.dumps(noted))
        except OSError as exc:
            logger.warning("cannot keep lengths in %s (they will be computed again): %s", file, exc)

    def _chats(self, first: Sequence[Example]) -> str:
        """Digest of all chats of some examples, and of those that are shown first."""
        pool = self.examples.shown_first() if isinstance(self.examples, Examples) else []
        digest = hashlib.blake2b(digest_size=16)
        for example in [*first, *pool]:
            numbers = draws_of(example)
            chats = [chat_of(example, draw=number) for number in numbers] if numbers else longest_of(example)
            digest.update(repr(chats).encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


def kind_of(example: Example) -> Kind:
    """What decides which wordings an example may get, and so which of them is the longest."""
    return (
        example.task,
        example.source_language,
        example.target_language,
        bool((example.instruction or "").strip()),
        bool((example.source_text or "").strip()),
        tuple(draws_of(example)),
    )


def tokenizer_text(tokenizer: Any) -> str:
    """Everything that decides how text becomes tokens."""
    backend = tokenizer.tokenizer.backend_tokenizer
    return f"{tokenizer.template}\0{backend.to_str()}"


def _versions(processor: Sizer) -> Iterator[str]:
    """Versions of what computes the sizes."""
    towers = [part for one in processor.inputs.values() for part in (one.encoder, one.adapter)]
    for name in sorted({"speechlmm_core", *(type(one).__module__.partition(".")[0] for one in towers)}):
        try:
            yield f"{name} {version(name.replace('_', '-'))}"
        except (PackageNotFoundError, ValueError):
            yield name

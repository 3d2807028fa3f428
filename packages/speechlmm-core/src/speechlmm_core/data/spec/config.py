"""The typed form of a dataset specification. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.data.spec.amount import check_amount
from speechlmm_core.interfaces.dataset import AnyDataset
from speechlmm_core.interfaces.task import AnyTask

Destination = Literal["train", "eval", "test", "guard"]
"""What a partition is for: training, evaluation while it goes on, a final evaluation, or to notice what gets worse."""
# Strict, as the schema is: `false` is no number of seconds.
Number = Annotated[float, Field(strict=True)]
NotNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Amount = Annotated[int | str | None, BeforeValidator(check_amount)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class PartitionSpec(_Part):
    """Which examples of a partition take part, and in what."""

    amount: Amount = None
    """The first so many records (`1000`), or a slice of them in records or per cent (`":10%"`, `"10%:20%"`)."""
    destination: Destination | None = None
    """What they are for; by default what the partition's name says (`dev`: eval, `test-clean`: test), else train."""
    min_duration: NotNegative | None = None
    """Seconds of media at least."""
    max_duration: NotNegative | None = None
    """Seconds of media at most."""
    min_num_words: Count | None = None
    """Words of the answer at least."""
    max_num_words: Count | None = None
    """Words of the answer at most."""
    min_quality: Number | None = None
    """The corpus' own score at least."""

    @model_validator(mode="after")
    def _not_crossed(self) -> PartitionSpec:
        for name in ("duration", "num_words"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise PydanticCustomError(
                    "crossed",
                    "min_{name} ({low}) is above max_{name} ({high}): no example would be left",
                    {"name": name, "low": f"{low:g}", "high": f"{high:g}"},
                )
        return self


class Languages(_Part):
    """A language, or a pair of them."""

    source: str
    """Language that is spoken (or read)."""
    target: str | None = None
    """Language of the answer, where it is another."""

    def __str__(self) -> str:
        return self.source if self.target is None else f"{self.source}-{self.target}"


class DatasetSpec(_Part):
    """One corpus with its task: a reader, and which parts of what it reads are used.

    In YAML the reader's own fields (`type`, `path`, `columns`, …) stand beside these, and so do those of `whole`.
    """

    name: str
    """How messages, reports and weights call it; by default the preset's or the path's name."""
    reader: AnyDataset
    """Where its examples come from."""
    task: AnyTask | None = None
    """What its examples are used for; None where they say so themselves, as lines of a manifest may."""
    languages: tuple[Languages, ...] | None = None
    """Languages or pairs that are used; None for all."""
    partitions: dict[str, PartitionSpec] = Field(default_factory=dict[str, PartitionSpec])
    """What becomes of its partitions, by name; empty for all of it."""
    whole: PartitionSpec = PartitionSpec()
    """What holds for all of it where no partitions are named."""
    weight: NotNegative | None = None
    """How often its examples are drawn, in proportion to other weights; by default as many as it has."""


class DataSpec(_Part):
    """All of a specification."""

    datasets: tuple[DatasetSpec, ...]
    """The corpora, in order."""

"""A processed sample: one conversation, tokenised, with its media loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from speechlmm_core.media.medium import Medium
from speechlmm_core.splice.plan import SampleLayout


@dataclass(frozen=True)
class ProcessedSample:
    """What the data worker makes of one conversation."""

    layout: SampleLayout
    """Token ids, supervised positions, and where the media's frames stand."""
    media: Sequence[tuple[str, Medium]] = ()
    """(input name, medium) in order of appearance."""
    targets: Mapping[str, Sequence[Sequence[int] | None]] = field(default_factory=dict)
    """By objective: target ids for each medium of the objective's input; None where no transcript is known."""
    target_lengths: Sequence[int] = ()
    """Tokens of each medium's transcript, -1 where none is known; empty where no adapter asks for them."""

    @property
    def duration_s(self) -> float:
        """Seconds of all media together."""
        return sum(medium.duration_s for _, medium in self.media)

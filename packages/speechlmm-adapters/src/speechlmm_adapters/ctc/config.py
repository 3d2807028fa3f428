"""Configuration of the CTC adapter. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from speechlmm_adapters.ctc.objective_config import AdapterCTCObjectiveConfig
from speechlmm_adapters.ctc.vocabulary import Vocabulary
from speechlmm_core.interfaces.adapter import AdapterConfig
from speechlmm_core.interfaces.objective import ObjectiveConfig, Weight, can_weigh
from speechlmm_core.lengths import Length, ceil_div
from speechlmm_core.objectives.ctc.config import CHARACTERS, Characters

if TYPE_CHECKING:
    from speechlmm_adapters.ctc.adapter import CTCAdapter
    from speechlmm_core.interfaces.context import BuildContext


class CTCAdapterConfig(AdapterConfig):
    """Merges runs of frames to which a CTC head gives the same label: R Hz -> what the content asks for.

    A run of blanks is merged into one frame like any other, unless `drop_blanks`. The head learns from the adapter's
    own loss `ctc`, which needs a transcript; the adapter itself needs none.
    """

    type: Literal["ctc"] = "ctc"
    vocabulary: Vocabulary = "text_decoder"
    """What the head labels frames with: the text decoder's tokens, or characters."""
    characters: Characters = CHARACTERS
    """The characters, where they are the vocabulary."""
    leading_space: bool = False
    """Whether a space precedes the transcript, for tokenizers that write word beginnings with it."""
    merge: Literal["mean", "weighted", "softmax"] = "mean"
    """How a run becomes one frame: its mean, or a mean weighted by the probabilities of the label, or by their
    softmax."""
    drop_blanks: bool = False
    """Whether runs of blanks are left out."""
    max_compressed_length: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | None = None
    """Frames that come out at most, as a number or as a fraction of those that flow in; where there are more runs,
    every ceil(runs / maximum) neighbours are merged. Null for no maximum. Positions of the language model are planned
    for this many frames, so that a maximum saves time and memory."""
    ctc_loss_weight: Weight = 0.1
    """Weight of the loss `ctc`, or points ``[progress, weight]``; 0 for a head that does not learn from it: with
    `merge: mean` it then does not learn at all, and is frozen."""
    mean_frame_rate: Annotated[float, Field(gt=0)] = 8.0
    """Frames per second that come out on average, as an estimate: three to four tokens, and as many runs of blanks."""

    def output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length | None:
        """None: it depends on the content."""
        return None

    def max_output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length:
        """As many as flow in, or `max_compressed_length`."""
        most = self.max_compressed_length
        if most is None:
            return num_frames
        if isinstance(most, int):
            return num_frames - (num_frames - most) * (num_frames > most)
        share = Fraction(repr(most)).limit_denominator(10**6)
        return ceil_div(num_frames * share.numerator, share.denominator)

    def output_frame_rate(self, frame_rate: Fraction) -> Fraction:
        """The estimate `mean_frame_rate`, at most what flows in."""
        return min(Fraction(repr(self.mean_frame_rate)).limit_denominator(1000), frame_rate)

    def objectives(self, stage: str) -> Mapping[str, ObjectiveConfig]:
        """The loss `ctc`."""
        if not can_weigh(self.ctc_loss_weight):
            return {}
        objective = AdapterCTCObjectiveConfig(
            stage=stage,
            vocabulary=self.vocabulary,
            characters=self.characters,
            leading_space=self.leading_space,
            weight=self.ctc_loss_weight,
        )
        return {"ctc": objective}

    def objective_frames(self, name: str, num_frames: Length, frame_rate: Fraction) -> Length:
        """CTC aligns the frames that flow in."""
        return num_frames

    def build(self, ctx: BuildContext) -> CTCAdapter:
        """The module, randomly initialised."""
        from speechlmm_adapters.ctc.adapter import CTCAdapter

        return CTCAdapter(self, ctx)

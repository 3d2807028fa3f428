"""Configuration of continuous integrate-and-fire. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from speechlmm_adapters.cif.objective_config import CIFQuantityObjectiveConfig
from speechlmm_adapters.ctc.objective_config import AdapterCTCObjectiveConfig
from speechlmm_adapters.ctc.vocabulary import Vocabulary
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.adapter import AdapterConfig
from speechlmm_core.interfaces.objective import ObjectiveConfig, Weight, can_weigh
from speechlmm_core.lengths import Length, ceil_div
from speechlmm_core.objectives.ctc.config import CHARACTERS, Characters

if TYPE_CHECKING:
    from speechlmm_adapters.cif.adapter import CIFAdapter
    from speechlmm_core.interfaces.context import BuildContext


class CIFAdapterConfig(AdapterConfig):
    """Continuous integrate-and-fire: R Hz -> about one frame for each token of the transcript.

    Every frame gets a weight from 0 to 1; each time the weights sum up to `firing_threshold`, the frames since the
    last time come out as one, weighted. For losses, in training and in eval mode, the weights of a medium with a
    transcript are scaled to give a frame for each of its tokens under the text decoder's tokenizer; the loss `quantity`
    teaches the unscaled ones to sum up to that number. Where an answer is generated nothing is scaled.
    """

    type: Literal["cif"] = "cif"
    kernel_size: Annotated[int, Field(ge=1)] = 3
    """Frames that a weight depends on."""
    hidden_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the layer that the weights are predicted from; null for the width of the frames."""
    firing_threshold: Annotated[float, Field(gt=0)] = 1.0
    """Weight that fires a frame."""
    residual_threshold: Annotated[float, Field(gt=0)] = 0.5
    """Weight left at the end that still fires a frame, at inference; what is left while training is dropped."""
    max_frame_rate: Annotated[float, Field(gt=0)] | None = None
    """Frames per second that come out at most. Where more would fire, the weights of the clip are scaled down to fire
    so many: all of it still comes out, in fewer frames, and a transcript of more tokens is left out of the loss
    `quantity`. Null for the most that can fire, a frame for each that flows in where the threshold is 1; that many
    positions of the language model are planned where an answer is generated."""
    mean_frame_rate: Annotated[float, Field(gt=0)] = 4.0
    """Frames per second that come out on average, as an estimate; the untrained weights fire about as many."""
    quantity_loss_weight: Weight = 0.05
    """Weight of the loss `quantity`, or points ``[progress, weight]``; 0 for no such loss. Its gradient is a sum over
    frames that does not shrink as the loss does: at 1 it outweighs all others where gradients are clipped."""
    ctc_loss_weight: Weight = 0.0
    """Weight of the loss `ctc` on the frames that flow in, or points ``[progress, weight]``; 0 for no such loss."""
    ctc_vocabulary: Vocabulary = "characters"
    """What the head of the loss `ctc` labels frames with."""
    ctc_characters: Characters = CHARACTERS
    """The characters, where they are its vocabulary."""
    ctc_leading_space: bool = False
    """Whether a space precedes its transcript, for tokenizers that write word beginnings with it."""

    @property
    def meets_target_lengths(self) -> bool:
        """The weights are scaled to fire a frame for each token."""
        return True

    def output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length | None:
        """None: it depends on the content."""
        return None

    def max_output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length:
        """As many as can fire: weights of 1 throughout, and what is left in the end; at most `max_frame_rate`.

        Raises:
            ConfigError: There is a `max_frame_rate`, and no frame rate.
        """
        most = 1 / _exact(self.firing_threshold)
        if self.max_frame_rate is not None and not frame_rate:
            raise ConfigError(
                f"`max_frame_rate: {self.max_frame_rate}` needs frames that come at a rate, and what flows into this "
                "CIF adapter has none; make it null"
            )
        if self.max_frame_rate is not None:
            most = min(most, _exact(self.max_frame_rate) / frame_rate)
        return ceil_div(num_frames * most.numerator, most.denominator)

    def output_frame_rate(self, frame_rate: Fraction) -> Fraction:
        """The estimate `mean_frame_rate`, at most half of what can fire."""
        most = frame_rate / _exact(self.firing_threshold)
        if self.max_frame_rate is not None:
            most = min(most, _exact(self.max_frame_rate))
        return min(_exact(self.mean_frame_rate), most / 2)

    def objectives(self, stage: str) -> Mapping[str, ObjectiveConfig]:
        """The losses `quantity` and `ctc`, where they have a weight."""
        found: dict[str, ObjectiveConfig] = {}
        if can_weigh(self.quantity_loss_weight):
            found["quantity"] = CIFQuantityObjectiveConfig(stage=stage, weight=self.quantity_loss_weight)
        if can_weigh(self.ctc_loss_weight):
            found["ctc"] = AdapterCTCObjectiveConfig(
                stage=stage,
                vocabulary=self.ctc_vocabulary,
                characters=self.ctc_characters,
                leading_space=self.ctc_leading_space,
                weight=self.ctc_loss_weight,
            )
        return found

    def objective_frames(self, name: str, num_frames: Length, frame_rate: Fraction) -> Length:
        """CTC aligns the frames that flow in; the quantity cannot exceed those that come out."""
        return num_frames if name == "ctc" else self.max_output_lengths(num_frames, frame_rate)

    def build(self, ctx: BuildContext) -> CIFAdapter:
        """The module, randomly initialised."""
        from speechlmm_adapters.cif.adapter import CIFAdapter

        return CIFAdapter(self, ctx)


def _exact(number: float) -> Fraction:
    """A number as it was written, with a denominator that products with lengths in int64 can take."""
    return Fraction(repr(number)).limit_denominator(10**6)

"""Configuration of AutoAVSR's visual speech encoder. Imports no torch.

25 frames of a mouth a second -> 25 Hz.

Shapes: T frames, H x W pixels, D hidden.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from speechlmm_core.interfaces.parts import CheckpointParts
from speechlmm_core.lengths import Length
from speechlmm_encoders.architecture import Architecture, Probability, Size
from speechlmm_encoders.layered import LayeredEncoderConfig

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.media.medium import Medium
    from speechlmm_encoders.auto_avsr.encoder import AutoAvsrEncoder
    from speechlmm_encoders.auto_avsr.preprocessor import AutoAvsrPreprocessor

FRAME_RATE = 25
"""Video frames per second, in and out."""

IMAGE_SIZE = 88
"""Height and width of the mouth crop."""


WRAPPERS = ("", "model.", "e2e.", "model.e2e.", "e2e.model.")
"""What may stand before a published tensor's name."""


class AutoAvsrArchitecture(Architecture):
    """The numbers of a visual AutoAVSR encoder; by default those of the published `vsr_trlrs3vox2_base`."""

    training_only: ClassVar[frozenset[str]] = frozenset({"attention_dropout", "hidden_dropout"})

    frontend_hidden_sizes: tuple[Size, Size, Size, Size] = (64, 128, 256, 512)
    """Widths of the four stages of the ResNet-18; the first is also that of the convolution over time."""
    hidden_size: Size = 768
    """Width D of the frames."""
    num_hidden_layers: Size = 12
    """Conformer layers."""
    num_attention_heads: Size = 12
    """Attention heads of a layer."""
    intermediate_size: Size = 3072
    """Width of a layer's two feed-forward blocks."""
    conv_depthwise_kernel_size: Size = 31
    """Kernel of a layer's convolution over time; odd."""
    hidden_dropout: Probability = 0.1
    """Dropout within the layers and of the positions."""
    attention_dropout: Probability = 0.1
    """Dropout of the attention weights."""

    @model_validator(mode="after")
    def _check(self) -> AutoAvsrArchitecture:
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2:
            raise ValueError(
                f"hidden_size must be even and a multiple of num_attention_heads, got {self.hidden_size!r} and "
                f"{self.num_attention_heads!r}"
            )
        if self.conv_depthwise_kernel_size % 2 == 0:
            raise ValueError(f"conv_depthwise_kernel_size must be odd, got {self.conv_depthwise_kernel_size!r}")
        return self


class AutoAvsrEncoderConfig(LayeredEncoderConfig):
    """AutoAVSR's visual speech encoder: grey mouth crops of 88 x 88 at 25 frames per second to frames at 25 Hz."""

    modality: ClassVar[str] = "video"
    unused_tensors: ClassVar[tuple[str, ...]] = tuple(
        f"{wrapper}{part}." for wrapper in WRAPPERS for part in ("decoder", "ctc")
    )

    type: Literal["auto_avsr"] = "auto_avsr"
    model: AutoAvsrArchitecture = Field(default_factory=AutoAvsrArchitecture)
    """The architecture; published checkpoints do not say theirs."""

    def checkpoint_parts(self) -> CheckpointParts:
        """The weights alone; the published file is on no hub."""
        zoo = "the model zoo of https://github.com/mpc001/auto_avsr"
        return CheckpointParts(files=(), skip=self.unused_tensors, by_hand=zoo)

    @property
    def num_layers(self) -> int:
        """Conformer layers."""
        return self.model.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Width D of the frames."""
        return self.model.hidden_size

    @property
    def hop(self) -> int:
        """One: every video frame gives a frame."""
        return 1

    @property
    def sampling_rate(self) -> int:
        """25 video frames per second."""
        return FRAME_RATE

    @property
    def frame_rate(self) -> Fraction:
        """25 Hz."""
        return Fraction(FRAME_RATE)

    def output_lengths(self, num_samples: Length) -> Length:
        """As many frames as there are video frames."""
        return num_samples

    def load(self, item: dict[str, Any]) -> Medium:
        """Reads a video as (T, 88, 88) grey levels of the mouth, at 25 frames per second.

        Raises:
            MediaError: The file cannot be used, or shows no mouth crop and none can be made.
        """
        from speechlmm_core.media.video import load_video_item

        return load_video_item(item, self._options)

    def num_samples(self, item: dict[str, Any]) -> int:
        """The number of video frames that `load` returns, from the file's header.

        Raises:
            MediaError: The file cannot be used.
        """
        from speechlmm_core.media.video import video_item_length

        return video_item_length(item, self._options)

    @property
    def _options(self) -> Any:
        from speechlmm_core.media.video import VideoOptions

        return VideoOptions(frame_rate=FRAME_RATE, size=(IMAGE_SIZE, IMAGE_SIZE), grey=True, crop="auto")

    def build_preprocessor(self) -> AutoAvsrPreprocessor:
        """Crops and pads video frames."""
        from speechlmm_encoders.auto_avsr.preprocessor import AutoAvsrPreprocessor

        return AutoAvsrPreprocessor(self)

    def build(self, ctx: BuildContext) -> AutoAvsrEncoder:
        """The module, randomly initialised."""
        from speechlmm_encoders.auto_avsr.encoder import AutoAvsrEncoder

        return AutoAvsrEncoder(self, ctx)

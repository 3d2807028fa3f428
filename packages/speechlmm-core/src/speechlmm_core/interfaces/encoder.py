"""The interface of an encoder's configuration: media in, frames out. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from speechlmm_core.interfaces.parts import CheckpointParts
from speechlmm_core.lengths import Length
from speechlmm_core.registry import ComponentConfig, Registry

if TYPE_CHECKING:
    from speechlmm_core.chunking import Chunker
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.interfaces.modules import Encoder, Preprocessor
    from speechlmm_core.media.medium import Medium


class EncoderConfig(ComponentConfig, ABC):
    """Configuration of an encoder; also its weightless length arithmetic, which the batch plan relies on.

    A new modality needs no edit in the core: it sets `modality` and overrides `load` (and `num_samples`, where that
    can be told without reading the whole file). A message names the *input* that its medium is for: in a model with
    an `image_encoder` it may hold ``{"type": "image", "path": ...}``, in one with a `speaker_encoder`
    ``{"type": "speaker", "path": ...}``. An input is by default named like its modality.
    """

    modality: ClassVar[str] = "audio"
    """What kind of media this encoder takes."""

    unused_tensors: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of tensors that published checkpoints hold for other parts (a decoder, a head)."""

    pretrained: str | None = None
    """Folder, name under `$PRETRAINED_COMPONENTS`, or hub name of the base checkpoint; null for random weights."""

    chunk_seconds: Annotated[float, Field(gt=0)] | None = None
    """Length of the chunks that longer audio is cut into; null to encode it whole."""

    chunk_overlap_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Context on each side of a chunk; the frames that overlap are trimmed from the output."""

    @property
    @abstractmethod
    def sampling_rate(self) -> int:
        """Samples per second of the medium that the encoder takes."""

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Width D of the frames that come out."""

    @property
    @abstractmethod
    def frame_rate(self) -> Fraction:
        """Frames per second that come out."""

    @abstractmethod
    def output_lengths(self, num_samples: Length) -> Length:
        """The exact number of frames for media of ``num_samples`` samples (an int, an array or a tensor)."""

    @property
    def fixed_frames(self) -> int | None:
        """Frames that are computed for every row, however short its medium; None where the batch's longest decides."""
        return None

    @property
    def chunker(self) -> Chunker | None:
        """How long media are cut into several rows; None where a medium is one."""
        return None

    @abstractmethod
    def build_preprocessor(self) -> Preprocessor:
        """The preprocessor that turns media into tensors in the data worker, on the CPU."""

    @abstractmethod
    def build(self, ctx: BuildContext) -> Encoder:
        """The module with its architecture; base weights are loaded later, by `Encoder.load_base_weights`."""

    def checkpoint_parts(self) -> CheckpointParts:
        """What this encoder needs of its base checkpoint: the preprocessor's numbers, and all but `unused_tensors`."""
        return CheckpointParts(files=("config.json", "preprocessor_config.json"), skip=self.unused_tensors)

    def load(self, item: dict[str, Any]) -> Medium:
        """Reads a content item (``{"type": "audio", "path": ..., "start": ..., "end": ...}``) from its file.

        Raises:
            MediaError: The file cannot be used.
        """
        from speechlmm_core.media.audio import load_audio_item

        return load_audio_item(item, self.sampling_rate)

    def num_samples(self, item: dict[str, Any]) -> int:
        """The number of samples that `load` returns: from the header of an audio file, by loading anything else.

        Raises:
            MediaError: The file cannot be used.
        """
        if not self.reads_audio_files:
            return self.load(item).num_samples
        from speechlmm_core.media.audio import audio_item_length

        return audio_item_length(item, self.sampling_rate)

    @property
    def reads_audio_files(self) -> bool:
        """Whether media are audio files that `load` reads as it is given here; their headers then tell the length."""
        cls = type(self)
        return cls.load is EncoderConfig.load and cls.num_samples is EncoderConfig.num_samples

    def check_length(self, num_samples: int) -> None:
        """Refuses a medium that is longer than the encoder can take, before any of it is computed.

        Args:
            num_samples: Samples of the medium at the encoder's rate.

        Raises:
            MediaError: It is too long; says how long it is, what the limit is, and what to do.
        """


encoders: Registry[EncoderConfig] = Registry("encoder", EncoderConfig)
AnyEncoder = Annotated[EncoderConfig, encoders]

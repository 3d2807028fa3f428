"""Configuration of Whisper's encoder. Imports no torch.

16 kHz -> 50 Hz with the published strides (log-mel at 100 Hz, then convolutions of stride 1 and 2).

Shapes: L samples, M mel bins, T frames, D hidden.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from speechlmm_core.chunking import Chunker
from speechlmm_core.errors import MediaError
from speechlmm_core.lengths import Length, ceil_div, not_negative
from speechlmm_encoders.architecture import Architecture, Probability, Size, architecture_of
from speechlmm_encoders.layered import SAMPLING_RATE, LayeredEncoderConfig

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.whisper.encoder import UnrestrictedWhisperEncoder, WhisperEncoder
    from speechlmm_encoders.whisper.preprocessor import UnrestrictedWhisperPreprocessor, WhisperPreprocessor

HOP_LENGTH = 160
"""Samples between two log-mel frames."""


class WhisperArchitecture(Architecture):
    """The numbers of a Whisper encoder, called as in transformers' `WhisperConfig`; by default whisper-large-v3's."""

    training_only: ClassVar[frozenset[str]] = frozenset(
        {"dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "init_std"}
    )

    model_types: ClassVar[tuple[str, ...]] = ("whisper",)
    unstated: ClassVar[dict[str, Any]] = {
        "num_mel_bins": 80,
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
    }

    num_mel_bins: Size = 128
    """Mel bins M of the input."""
    d_model: Size = 1280
    """Width D of the frames."""
    encoder_layers: Size = 32
    """Transformer layers."""
    encoder_attention_heads: Size = 20
    """Attention heads of a layer."""
    encoder_ffn_dim: Size = 5120
    """Width of a layer's feed-forward block."""
    max_source_positions: Size = 1500
    """Frames of the window that the encoder is trained on."""
    activation_function: str = "gelu"
    """Activation of the feed-forward blocks, by its name in transformers."""
    dropout: Probability = 0.0
    """Dropout after the embeddings and within the layers."""
    attention_dropout: Probability = 0.0
    """Dropout of the attention weights."""
    activation_dropout: Probability = 0.0
    """Dropout within the feed-forward blocks."""
    encoder_layerdrop: Probability = 0.0
    """Probability of leaving a layer out at training (LayerDrop)."""
    init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of random weights."""

    @model_validator(mode="after")
    def _check_widths(self) -> WhisperArchitecture:
        if self.d_model % self.encoder_attention_heads or self.d_model % 2:
            raise ValueError(
                f"d_model must be even and a multiple of encoder_attention_heads, got {self.d_model!r} and "
                f"{self.encoder_attention_heads!r}"
            )
        return self


class WhisperBase(LayeredEncoderConfig):
    """What both Whisper encoders have in common."""

    unused_tensors: ClassVar[tuple[str, ...]] = ("model.decoder.", "decoder.", "proj_out.")

    model: WhisperArchitecture | None = None
    """The architecture; null to take it from the checkpoint (or whisper-large-v3's, for random weights)."""
    conv_strides: tuple[Size, Size] = (1, 2)
    """Strides of the two convolutions; the published encoders have 1 and 2, and 2 and 2 gives 25 Hz."""
    init: Literal["transformers", "kaiming"] = "transformers"
    """Random weights: as transformers makes them, or with Kaiming-normal convolutions (better from scratch)."""
    position_scale: float = 1.0
    """Factor on the sinusoidal positions; about 0.1 helps when training from scratch."""

    @model_validator(mode="before")
    @classmethod
    def _fill_architecture(cls, data: Any) -> Any:
        return architecture_of(data, WhisperArchitecture)

    @cached_property
    def architecture(self) -> WhisperArchitecture:
        """The numbers in force."""
        return self.model or WhisperArchitecture()

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return self.architecture.encoder_layers

    @property
    def hidden_size(self) -> int:
        """Width D of the frames."""
        return self.architecture.d_model

    @property
    def hop(self) -> int:
        """Samples from one frame that comes out to the next."""
        return HOP_LENGTH * self.conv_strides[0] * self.conv_strides[1]

    def conv_lengths(self, num_mel_frames: Length) -> tuple[Length, Length]:
        """Lengths after each of the two convolutions (kernel 3, padding 1: the stride divides, rounding up)."""
        first = ceil_div(num_mel_frames, self.conv_strides[0])
        return first, ceil_div(first, self.conv_strides[1])

    def audio_frames(self, num_samples: Length) -> Length:
        """Frames of ``num_samples`` samples of audio, without any padding."""
        return self.conv_lengths(ceil_div(num_samples, HOP_LENGTH))[1]

    def output_lengths(self, num_samples: Length) -> Length:
        """Frames of so many samples of audio."""
        return self.audio_frames(num_samples)


class WhisperEncoderConfig(WhisperBase):
    """Whisper's encoder as it was trained: every window of audio is padded with silence to 30 s.

    Longer audio is cut into windows. Only the frames of audio are put out, unless `keep_padding` is set.
    """

    type: Literal["whisper"] = "whisper"
    keep_padding: bool = False
    """Whether the frames of the silence are put out too (1500 for every window, as in the original)."""

    @model_validator(mode="after")
    def _check_chunks(self) -> WhisperEncoderConfig:
        if self.chunk_seconds is not None and self.chunk_seconds > self.window / SAMPLING_RATE:
            raise ValueError(
                f"chunk_seconds may be at most the window of {self.window / SAMPLING_RATE:g} s, got "
                f"{self.chunk_seconds!r}; for longer stretches use the encoder `whisper_unrestricted`"
            )
        if self.keep_padding and self.chunk_seconds not in (None, self.window / SAMPLING_RATE):
            raise ValueError("keep_padding needs whole windows; leave chunk_seconds out")
        _ = self.chunker
        return self

    @property
    def fixed_frames(self) -> int:
        """The frames of the window."""
        return self.architecture.max_source_positions

    @property
    def window(self) -> int:
        """Samples of the window that the encoder is trained on."""
        return self.architecture.max_source_positions * self.hop

    @property
    def chunker(self) -> Chunker:
        """How longer audio is cut; `chunk_seconds` is the window unless it is given."""
        return Chunker.from_seconds(
            self.window / SAMPLING_RATE if self.chunk_seconds is None else self.chunk_seconds,
            self.chunk_overlap_seconds,
            sampling_rate=SAMPLING_RATE,
            hop=self.hop,
            num_frames=self.audio_frames,
        )

    def output_lengths(self, num_samples: Length) -> Length:
        """Frames of so many samples of audio."""
        frames = self.audio_frames(num_samples)
        if not self.keep_padding:
            return frames
        chunker = self.chunker
        whole = chunker.frames + chunker.step * ceil_div(not_negative(frames - chunker.frames), chunker.step)
        return whole * (frames > 0)

    def build_preprocessor(self) -> WhisperPreprocessor:
        """Makes log-mel features in the data worker."""
        from speechlmm_encoders.whisper.preprocessor import WhisperPreprocessor

        return WhisperPreprocessor(self)

    def build(self, ctx: BuildContext) -> WhisperEncoder:
        """The module, randomly initialised."""
        from speechlmm_encoders.whisper.encoder import WhisperEncoder

        return WhisperEncoder(self, ctx)


class UnrestrictedWhisperEncoderConfig(WhisperBase):
    """Whisper's encoder for audio of any length: a batch is padded to its longest clip only, and masked.

    Positions beyond those of the checkpoint are further sinusoids.
    """

    type: Literal["whisper_unrestricted"] = "whisper_unrestricted"
    max_duration_s: Annotated[float, Field(gt=0)] = 600.0
    """Longest audio (or chunk) in seconds that is encoded in one piece."""

    @model_validator(mode="after")
    def _check_chunks(self) -> UnrestrictedWhisperEncoderConfig:
        if self.chunk_seconds is not None and self.chunk_seconds > self.max_duration_s:
            raise ValueError(
                f"chunk_seconds {self.chunk_seconds!r} is longer than max_duration_s {self.max_duration_s!r}"
            )
        _ = self.chunker
        return self

    def check_length(self, num_samples: int) -> None:
        """Refuses audio that is longer than `max_duration_s` and is not cut.

        Raises:
            MediaError: It is.
        """
        seconds = num_samples / SAMPLING_RATE
        if self.chunk_seconds is None and seconds > self.max_duration_s:
            raise MediaError(
                f"got audio of {seconds:.1f} s, the encoder takes at most {self.max_duration_s:g} s in one piece; "
                "give a segment of it (`start`, `end`), set chunk_seconds, or raise max_duration_s"
            )

    def build_preprocessor(self) -> UnrestrictedWhisperPreprocessor:
        """Makes log-mel features in the data worker."""
        from speechlmm_encoders.whisper.preprocessor import UnrestrictedWhisperPreprocessor

        return UnrestrictedWhisperPreprocessor(self)

    def build(self, ctx: BuildContext) -> UnrestrictedWhisperEncoder:
        """The module, randomly initialised."""
        from speechlmm_encoders.whisper.encoder import UnrestrictedWhisperEncoder

        return UnrestrictedWhisperEncoder(self, ctx)

"""Stand-ins for the parts that a component under test needs beside it.

They import torch, so they are no model of how a plugin lays out its files; `examples/speechlmm-toy` is.

Shapes: B media, L samples, T frames, R rows, N tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn

from speechlmm_core.features import Features
from speechlmm_core.interfaces.adapter import AdapterConfig
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.interfaces.modules import Adapter, Encoder, Preprocessor, TextDecoder
from speechlmm_core.lengths import Length
from speechlmm_core.media.medium import Medium


class ToyTokenizer:
    """A tokenizer of characters, for objectives that encode transcripts."""

    pad_token_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        """An id for every character; 0 stays free."""
        return [1 + ord(character) % (self.vocab_size - 1) for character in text]


class ToyTextDecoder(TextDecoder):
    """An embedding table and a head, for objectives that read them."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {"embedding": nn.Embedding(vocab_size, hidden_size), "head": nn.Linear(hidden_size, vocab_size, bias=False)}
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """Input embeddings (R, N, D)."""
        return self.model["embedding"](input_ids)  # (R, N, D)

    @property
    def embedding_weight(self) -> Tensor:
        """(V, D) the embedding table."""
        return self.model["embedding"].weight

    @property
    def output_weight(self) -> Tensor:
        """(V, D) the head."""
        return self.model["head"].weight

    def forward(self, inputs_embeds: Tensor, **kwargs: Any) -> Tensor:
        """Hidden states (R, N, D): a function of each position alone."""
        return torch.tanh(inputs_embeds)


class ToyPreprocessor(Preprocessor):
    """Pads waveforms."""

    def __call__(self, media: Sequence[Medium]) -> dict[str, Tensor]:
        """Batches media."""
        lengths = [medium.num_samples for medium in media]
        values = torch.zeros(len(media), max(lengths, default=0))  # (B, L)
        for row, medium in zip(values, media, strict=True):
            row[: medium.num_samples] = medium.values
        return {"input_values": values, "lengths": torch.tensor(lengths, dtype=torch.int64)}


class ToyEncoder(Encoder):
    """Cuts a waveform into frames and projects each: 16 kHz -> 50 Hz."""

    def __init__(self, config: ToyEncoderConfig) -> None:
        super().__init__()
        self.config: ToyEncoderConfig = config
        self.model = nn.Linear(config.hop, config.width)

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes waveforms (B, L)."""
        values, hop = inputs["input_values"], self.config.hop
        num_frames = values.shape[1] // hop
        frames = values[:, : num_frames * hop].reshape(len(values), num_frames, hop)  # (B, T, hop)
        return Features(self.model(frames), inputs["lengths"] // hop)


class ToyEncoderConfig(EncoderConfig):
    """Configuration of `ToyEncoder`."""

    type: Literal["speechlmm.toy_encoder"] = "speechlmm.toy_encoder"
    width: int = 48
    """Width D of the frames."""

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return 320

    @property
    def sampling_rate(self) -> int:
        """16 kHz."""
        return 16_000

    @property
    def hidden_size(self) -> int:
        """Width D of the frames."""
        return self.width

    @property
    def frame_rate(self) -> Fraction:
        """50 Hz."""
        return Fraction(self.sampling_rate, self.hop)

    def output_lengths(self, num_samples: Length) -> Length:
        """Whole frames."""
        return num_samples // self.hop

    def build_preprocessor(self) -> ToyPreprocessor:
        """Pads waveforms."""
        return ToyPreprocessor()

    def build(self, ctx: BuildContext) -> ToyEncoder:
        """The module."""
        return ToyEncoder(self)


class ToyAdapter(Adapter):
    """Projects each frame to the text decoder's width."""

    def __init__(self, config: ToyAdapterConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config: ToyAdapterConfig = config
        self.model = nn.Linear(ctx.input_size, ctx.output_size)

    def forward(self, features: Features, target_lengths: Tensor | None = None) -> Features:
        """Projects (B, T, D_in) to (B, T, D)."""
        return Features(self.model(features.values), features.lengths)


class ToyAdapterConfig(AdapterConfig):
    """Configuration of `ToyAdapter`."""

    type: Literal["speechlmm.toy_adapter"] = "speechlmm.toy_adapter"

    def output_lengths(self, num_frames: Length, frame_rate: Fraction) -> Length:
        """As many as come in."""
        return num_frames

    def output_frame_rate(self, frame_rate: Fraction) -> Fraction:
        """As it comes in."""
        return frame_rate

    def build(self, ctx: BuildContext) -> ToyAdapter:
        """The module."""
        return ToyAdapter(self, ctx)

"""What the checks of an adapter stand on.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from speechlmm_core.features import Features
from speechlmm_core.interfaces.adapter import AdapterConfig, adapters
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.modules import Adapter
from speechlmm_core.media.medium import Medium
from speechlmm_core.testing.component import ComponentKit
from speechlmm_core.testing.composite import DECODER_WIDTH
from speechlmm_core.testing.encoder_base import rows
from speechlmm_core.testing.in_model import run_in_model
from speechlmm_core.testing.media import noise_audio, noise_video
from speechlmm_core.testing.toy import ToyEncoderConfig
from speechlmm_core.testing.toy_video import ToyVideoEncoderConfig

TOY_ENCODERS = {"audio": ToyEncoderConfig, "video": ToyVideoEncoderConfig}


class AdapterKitBase(ComponentKit):
    """How an adapter is built, fed and placed in a model."""

    config: AdapterConfig

    def __init__(
        self, config: AdapterConfig, ctx: BuildContext | None, unreached: Collection[str], modality: str = "audio"
    ) -> None:
        super().__init__(config, adapters, unreached)
        self._ctx = ctx
        self.modality = modality

    @property
    def ctx(self) -> BuildContext:
        """What the adapter is built with: another width out than in, where the adapter can change it."""
        if self._ctx is not None:
            return self._ctx
        rate = TOY_ENCODERS[self.modality]().frame_rate
        ctx = BuildContext(input_size=12, output_size=16, frame_rate=rate, vocab_size=37)
        if self.config.output_size(ctx) == ctx.output_size:
            return ctx
        return BuildContext(input_size=16, output_size=16, frame_rate=rate, vocab_size=37)

    def make(self, config: AdapterConfig) -> Adapter:
        """The adapter."""
        return config.build(self.ctx)

    @property
    def place(self) -> str:
        """The adapter of the input that is called like its modality."""
        return f"{self.modality}_adapter"

    @property
    def depends_on_content(self) -> bool:
        """Whether how many frames come out is known on the device only; there may then be none."""
        return self.config.output_lengths(1, self.ctx.frame_rate) is None

    def towers(self) -> dict[str, Any]:
        """The adapter behind an encoder of the width that it takes."""
        widening = self.ctx.input_size != self.ctx.output_size
        encoder = TOY_ENCODERS[self.modality](width=48 if widening else DECODER_WIDTH)
        return {f"{self.modality}_encoder": encoder, self.place: self.config}

    def assert_as_in_fp32(self, low: Any, module: Any) -> None:
        """Asserts that a module in low precision computes what it does in fp32.

        Where content decides how many frames come out, rounding moves what is close to a bound. Adapters that meet the
        transcripts' lengths are told them: every row must agree then. They may put out somewhat more or less where
        they are told nothing. Of all others half of the rows must agree.
        """
        if not self.depends_on_content:
            super().assert_as_in_fp32(low, module)
            return
        lengths = (700, 640, 600, 560)
        if self.config.meets_target_lengths:
            told = torch.tensor([length // 12 for length in lengths])
            self._compare_rows(low, module, self.features(*lengths), told, may_differ=0)
            self._compare_rows(low, module, self.features(*lengths), None, may_differ=len(lengths))
        else:
            # What stays for two frames is rarely close to a bound.
            features = self.features(*lengths, hold=2)
            self._compare_rows(low, module, features, None, may_differ=len(lengths) // 2)

    def _compare_rows(self, low: Any, module: Any, features: Features, told: Tensor | None, *, may_differ: int) -> None:
        """Compares row by row; those that may differ must still have about as many frames."""
        with torch.no_grad():
            expected = rows(module(features, told))
            got = rows(low(Features(features.values.to(torch.bfloat16), features.lengths), told))
        faults: list[str] = []
        for one, other in zip(got, expected, strict=True):
            assert abs(len(one) - len(other)) <= 1 + len(other) // 10, f"{len(one)} frames, {len(other)} in fp32"
            assert one.dtype == self.low_precision, f"{one.dtype}, expected {self.low_precision}"
            assert bool(one.isfinite().all()), "the output is not finite"
            try:
                self.assert_near(one, other)
            except AssertionError as exc:
                faults.append(str(exc))
        assert len(faults) <= may_differ, f"{len(faults)} of {len(got)} rows differ ({may_differ} may): {faults[0]}"

    def reached_by_losses(self) -> list[str]:
        """Parameters that a model's losses reach, the adapter's own included (the head of a CTC adapter, say)."""
        ran = run_in_model(self.towers(), self.media(60, 41, 52))
        ran.output.loss.backward()
        component = ran.model.components()[self.place]
        return [name for name, value in component.named_parameters() if value.grad is not None]

    def media(self, *frames: int) -> dict[str, list[Medium]]:
        """Media of so many frames of the toy encoder each."""
        make = noise_video(height=8, width=8) if self.modality == "video" else noise_audio(16_000)
        hop = 1 if self.modality == "video" else 320
        return {self.modality: [make(count * hop, seed) for seed, count in enumerate(frames)]}

    def composite_output(self, module: Any) -> Tensor:
        """The valid frames of two rows of the toy encoder's width."""
        width = self.towers()[f"{self.modality}_encoder"].width
        values = torch.randn(2, 23, width, generator=torch.Generator().manual_seed(0))
        return torch.cat(rows(module(Features(values, torch.tensor([23, 11])))))  # (sum of lengths, D)

    def features(self, *lengths: int, seed: int = 0, padding: float = 0.0, hold: int = 1) -> Features:
        """Random features of these lengths; each row's content depends on its place and the seed alone.

        Args:
            lengths: Frames of each row.
            seed: Another one gives other content.
            padding: What stands beyond the lengths.
            hold: Frames that the content stays the same for.
        """
        values = torch.full((len(lengths), max(lengths, default=0), self.ctx.input_size), padding)
        for row, length in enumerate(lengths):
            generator = torch.Generator().manual_seed(1000 * seed + row)
            content = torch.randn(-(-length // hold), self.ctx.input_size, generator=generator)
            values[row, :length] = content.repeat_interleave(hold, dim=0)[:length]
        return Features(values, torch.tensor(lengths, dtype=torch.int64))

    def output(self, module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """The valid frames of three rows of different length."""
        features = self.features(23, 11, 17)
        return torch.cat(rows(module(Features(features.values.to(dtype), features.lengths))))  # (sum of lengths, D)

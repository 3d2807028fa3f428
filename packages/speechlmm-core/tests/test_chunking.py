"""Chunks cover every frame exactly once, and joining them gives what encoding the whole would have given."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.chunking import Chunker, check_media, merge_plan, merge_tensors
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.features import Features
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.interfaces.modules import Encoder, Preprocessor
from speechlmm_core.media.medium import Medium


def unpadded(kernel: int, stride: int) -> Callable[[int], int]:
    return lambda samples: max(0, (samples - kernel) // stride + 1)


def padded(kernel: int, stride: int) -> Callable[[int], int]:
    return lambda samples: -(-samples // stride)


@given(
    form=st.sampled_from([unpadded, padded]),
    kernel=st.integers(1, 25),
    stride=st.integers(1, 12),
    window_hops=st.integers(4, 40),
    context=st.integers(0, 6),
    num_samples=st.integers(0, 2000),
)
def test_every_frame_is_kept_exactly_once(form, kernel, stride, window_hops, context, num_samples):
    num_frames = form(kernel, stride)
    window = window_hops * stride
    if num_frames(window) - 2 * context < 1:
        with pytest.raises(ConfigError, match="keeps nothing"):
            Chunker(window, stride, context, num_frames)
        return
    chunker = Chunker(window, stride, context, num_frames)
    chunks = chunker.split(num_samples)
    kept: list[int] = []
    for number, chunk in enumerate(chunks):
        assert 0 <= chunk.start <= chunk.end <= num_samples
        assert len(chunks) == 1 or chunk.end - chunk.start <= window
        assert chunk.start % stride == 0
        available = num_frames(chunk.end - chunk.start)
        assert 0 <= chunk.keep_from <= chunk.keep_until <= available
        if number:
            assert chunk.keep_from >= context
        if number < len(chunks) - 1:
            assert available - chunk.keep_until >= context
            assert chunk.keep_until > chunk.keep_from
        kept += [chunk.start // stride + frame for frame in range(chunk.keep_from, chunk.keep_until)]
    assert kept == list(range(num_frames(num_samples)))
    assert chunker.num_chunks(num_frames(num_samples)) == len(chunks)


@given(lengths=st.lists(st.integers(0, 500), max_size=5))
def test_merge_plan_points_at_each_media_s_own_frames(lengths):
    chunker = Chunker(40, 4, 2, unpadded(6, 4))
    chunks = [chunker.split(length) for length in lengths]
    row_frames = chunker.frames + 3
    index, merged = merge_plan(chunks, row_frames)
    # What an encoder would put out: each frame holds (medium, absolute frame).
    rows: list[list[tuple[int, int]]] = []
    for number, medium in enumerate(chunks):
        for chunk in medium:
            frames = [(number, chunk.start // 4 + frame) for frame in range(row_frames)]
            rows.append(frames)
    flat = [frame for row in rows for frame in row]
    for number, length in enumerate(lengths):
        expected = chunker.num_frames(length)
        assert merged[number] == expected
        assert [flat[i] for i in index[number, :expected]] == [(number, frame) for frame in range(expected)]
        assert (index[number, expected:] == -1).all()


def test_nothing_is_merged_where_nothing_was_cut():
    chunker = Chunker(40, 4, 0, padded(1, 4))
    assert merge_tensors([chunker.split(40), chunker.split(0)], chunker.frames) == {}
    assert merge_tensors([], chunker.frames) == {}
    assert set(merge_tensors([chunker.split(41)], chunker.frames)) == {"merge_index", "merged_lengths"}


class Doubling(Encoder):
    """Puts out its input's frames, and twice their first value as an extra; nothing in it is zero."""

    config = None
    model = None

    def encode(self, inputs):
        values = inputs["values"]
        lengths = torch.full((len(values),), values.shape[1])
        return Features(values, lengths, {"double": 2 * values[..., 0], "loud": values[..., 0] > 0})


def test_nothing_stands_beyond_the_frames_of_a_medium_that_was_cut():
    values = 1 + torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[0, 1, 2, 5, 6, 7], [8, 9, -1, -1, -1, -1]])
    out = Doubling()({"values": values, "merge_index": index, "merged_lengths": torch.tensor([6, 2])})
    flat = values.flatten(0, 1)
    assert torch.equal(out.values[0], flat[index[0]])
    assert torch.equal(out.values[1, :2], flat[8:10])
    assert torch.equal(out.extras["double"][1, :2], 2 * flat[8:10, 0])
    assert out.extras["loud"][0].all()
    for padding in (out.values[1, 2:], out.extras["double"][1, 2:], out.extras["loud"][1, 2:]):
        assert not padding.any()


def test_durations_are_rounded_to_whole_frames():
    chunker = Chunker.from_seconds(1.01, 0.031, sampling_rate=16_000, hop=320, num_frames=padded(1, 320))
    assert (chunker.window, chunker.context) == (16_000, 2)
    assert (chunker.frames, chunker.step) == (50, 46)


def test_an_overlap_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match="twice chunk_overlap_seconds"):
        Chunker.from_seconds(1.0, 0.5, sampling_rate=16_000, hop=320, num_frames=padded(1, 320))


class SumConfig(EncoderConfig):
    """A convolution of ones without padding, kernel 6 and stride 4: the frames are sums of samples."""

    type: str = "sum"

    @property
    def sampling_rate(self) -> int:
        return 100

    @property
    def hidden_size(self) -> int:
        return 1

    @property
    def frame_rate(self) -> Fraction:
        return Fraction(25)

    def output_lengths(self, num_samples):
        return unpadded(6, 4)(num_samples)

    def build_preprocessor(self) -> Preprocessor:
        return SumPreprocessor(self)

    def build(self, ctx) -> Encoder:
        return SumEncoder(self)


class SumPreprocessor(Preprocessor):
    def __init__(self, config: SumConfig):
        seconds = config.chunk_seconds
        assert seconds is not None
        self.chunker = Chunker.from_seconds(
            seconds, config.chunk_overlap_seconds, sampling_rate=100, hop=4, num_frames=config.output_lengths
        )

    def __call__(self, media):
        waveforms = check_media(media, 100)
        chunks = [self.chunker.split(len(waveform)) for waveform in waveforms]
        rows = [w[chunk.start : chunk.end] for w, own in zip(waveforms, chunks, strict=True) for chunk in own]
        longest = max(len(row) for row in rows)
        values = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])
        merged = merge_tensors(chunks, self.chunker.num_frames(longest))
        return {"input_values": values, "lengths": torch.tensor([len(row) for row in rows]), **merged}


class SumEncoder(Encoder):
    def __init__(self, config: SumConfig):
        super().__init__()
        self.config = config
        self.model = torch.nn.Identity()

    def encode(self, inputs):
        frames = inputs["input_values"].unfold(1, 6, 4).sum(-1)
        extras = {"pairs": torch.stack([frames, -frames], 2), **self.extras(frames)}
        return Features(frames[:, :, None], (inputs["lengths"] - 6) // 4 + 1, extras)

    def extras(self, frames):
        return {"sums": 2 * frames}


@pytest.mark.parametrize("overlap", [0.0, 0.08])
def test_joined_chunks_equal_the_whole(overlap):
    config = SumConfig(chunk_seconds=0.6, chunk_overlap_seconds=overlap)
    generator = np.random.default_rng(0)
    media = [Medium(torch.from_numpy(generator.normal(size=n).astype(np.float32)), 100) for n in (6, 59, 60, 61, 997)]
    out = config.build(None)(config.build_preprocessor()(media))
    for row, medium in enumerate(media):
        whole = medium.values.unfold(0, 6, 4).sum(-1)
        assert out.lengths[row] == len(whole) == config.output_lengths(medium.num_samples)
        torch.testing.assert_close(out.values[row, : len(whole), 0], whole, rtol=0, atol=0)
        assert torch.equal(out.extras["sums"][row, : len(whole)], 2 * out.values[row, : len(whole), 0])
        assert torch.equal(out.extras["pairs"][row, : len(whole), 1], -out.values[row, : len(whole), 0])


def test_outputs_that_are_not_by_frame_cannot_be_joined(monkeypatch):
    monkeypatch.setattr(SumEncoder, "extras", lambda self, frames: {"means": frames.mean(1)})
    config = SumConfig(chunk_seconds=0.6)
    with pytest.raises(DataError, match=r"'means' of shape \(\d+,\) cannot be joined"):
        config.build(None)(config.build_preprocessor()([Medium(torch.ones(997), 100)]))


def test_media_at_another_rate_are_refused():
    with pytest.raises(DataError, match="8000 Hz, expected 16000 Hz"):
        check_media([Medium(torch.zeros(5), 8000)], 16_000)
    with pytest.raises(DataError, match="one channel"):
        check_media([Medium(torch.zeros(2, 5), 16_000)], 16_000)


def test_the_arithmetic_needs_no_torch(tmp_path):
    import subprocess

    code = (
        "import sys; from speechlmm_core.chunking import Chunker, merge_plan; "
        "c = Chunker(40, 4, 1, lambda n: -(-n // 4)); merge_plan([c.split(1000)], c.frames); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

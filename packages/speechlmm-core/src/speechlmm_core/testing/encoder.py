"""The contract of an encoder.

Shapes: B batch, L samples, T frames, D hidden.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Collection, Mapping
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from speechlmm_core.features import Features
from speechlmm_core.interfaces.encoder import EncoderConfig
from speechlmm_core.interfaces.modules import Encoder
from speechlmm_core.testing.checks import Check, assert_close, check, collect, run_all, select
from speechlmm_core.testing.component import lengths_agree, probe
from speechlmm_core.testing.encoder_base import flat, rows
from speechlmm_core.testing.encoder_options import EncoderOptions
from speechlmm_core.testing.media import MediumFactory, changed

logger = logging.getLogger(__name__)

SIZES = (1, 2, 3, 5, 7, 13, 31, 101, 159, 160, 161, 319, 320, 321, 399, 400, 401, 641, 1009, 1601, 3203, 4801, 7919)


class EncoderKit(EncoderOptions):
    """The checks of an encoder."""

    @check
    def lengths_of_all_kinds(self) -> None:
        """`output_lengths` gives the same for an int, an array and a tensor, never falls, and is never negative."""
        sizes = [0, *SIZES, *(self.samples(count) for count in (10, 100, 1500, 1501))]
        sizes.sort()
        single = [self.config.output_lengths(size) for size in sizes]
        assert all(type(one) is int for one in single), f"an int gives a {type(single[0]).__name__}"
        array = self.config.output_lengths(np.array(sizes))
        tensor = self.config.output_lengths(torch.tensor(sizes))
        assert isinstance(array, np.ndarray), f"an array gives a {type(array).__name__}"
        assert array.dtype.kind == "i", f"an array of int gives {array.dtype}"
        assert isinstance(tensor, Tensor), f"a tensor gives a {type(tensor).__name__}"
        assert tensor.dtype == torch.int64, f"a tensor of int64 gives {tensor.dtype}"
        lengths_agree(array.tolist(), single, "array against int")
        lengths_agree(tensor.tolist(), single, "tensor against int")
        assert min(single) >= 0, f"negative: {min(single)}"
        falls = [size for size, one, two in zip(sizes[1:], single, single[1:], strict=False) if two < one]
        assert not falls, f"more samples give fewer frames at {falls[0]}"

    @check
    def frame_rate(self) -> None:
        """`frame_rate` is a `Fraction` that agrees with `output_lengths` over an hour."""
        rate = self.config.frame_rate
        assert isinstance(rate, Fraction), f"{rate!r} is a {type(rate).__name__}"
        frames, expected = self.config.output_lengths(3600 * self.config.sampling_rate), float(3600 * rate)
        assert abs(frames - expected) <= max(2.0, 0.002 * expected), f"{frames} frames an hour, expected {expected:.0f}"

    @check
    def declared_lengths(self) -> None:
        """The frames that come out are as many as `output_lengths` says, for many sizes, one by one and in a batch."""
        module = self.built()
        few = [size for size in SIZES if size <= self.samples(50)]  # a sample may be a frame of a video
        sizes = [*few, *(self.samples(count) for count in (7, 29))]
        media = [self.medium(size, seed) for seed, size in enumerate(sizes)]
        with torch.no_grad():
            batch = self.encode(module, media)
            alone = [self.encode(module, [one]) for one in media[::4]]
        expected = [self.config.output_lengths(size) for size in sizes]
        lengths_agree(batch.lengths, expected, f"lengths for {sizes} samples")
        lengths_agree([one.lengths[0] for one in alone], expected[::4], f"alone, lengths for {sizes[::4]} samples")
        assert batch.values.shape[1] >= max(expected), f"{batch.values.shape[1]} frames, expected {max(expected)}"
        assert all(bool(row.isfinite().all()) for row in rows(batch)), "some frames are not finite"

    @check
    def output_form(self) -> None:
        """The output is `Features` with values (B, T, hidden_size) in the module's dtype and int64 lengths (B,)."""
        features = self.encode(self.built(), self.media(9, 5))
        assert isinstance(features, Features), f"got a {type(features).__name__}"
        assert features.values.dim() == 3, f"values have {features.values.dim()} dimensions"
        width = features.values.shape[2]
        assert width == self.config.hidden_size, f"width {width}, expected hidden_size {self.config.hidden_size}"
        assert features.values.dtype == torch.float32, f"values are {features.values.dtype}, expected float32"
        assert features.lengths.dtype == torch.int64, f"lengths are {features.lengths.dtype}, expected int64"
        assert features.lengths.shape == (2,), f"lengths have the shape {tuple(features.lengths.shape)}, expected (2,)"

    @check
    def preprocessing(self) -> None:
        """The preprocessor gives CPU tensors with int64 `lengths`, and it and its output can be pickled for workers."""
        preprocessor = pickle.loads(pickle.dumps(self.config.build_preprocessor()))
        media = self.media(9, 5)
        inputs = preprocessor(media)
        assert "lengths" in inputs, f"no `lengths` among {sorted(inputs)}"
        assert inputs["lengths"].dtype == torch.int64, f"`lengths` are {inputs['lengths'].dtype}, expected int64"
        for name, value in inputs.items():
            assert isinstance(value, Tensor), f"{name!r} is a {type(value).__name__}, expected a tensor"
            assert value.device.type == "cpu", f"{name!r} is on {value.device}"
            assert not value.requires_grad, f"{name!r} wants gradients"
        again = pickle.loads(pickle.dumps(inputs))
        assert_close(flat(again), flat(self.config.build_preprocessor()(media)), "a pickled preprocessor's output")

    @check
    def padding_amount(self) -> None:
        """A medium's frames do not depend on how much it is padded, nor on its neighbours' content."""
        module = self.built()
        (medium,) = self.media(11)
        alone = rows(self.encode(module, [medium]))[0]
        for frames in (12, 19, 67):
            other = self.medium(self.samples(frames), 90 + frames)
            assert_close(rows(self.encode(module, [medium, other]))[0], alone, f"beside a medium of {frames} frames")
        twin = changed(medium)
        assert_close(rows(self.encode(module, [medium, twin]))[0], alone, "beside another medium of the same length")

    @check
    def padding_content(self) -> None:
        """What the padding of the encoder's input holds does not matter."""
        module = self.built()
        inputs = self.config.build_preprocessor()(self.media(11, 67))
        expected = rows(module(inputs))
        for value in (1.0, -1e4):
            got = rows(module(self._padded_with(inputs, value)))
            assert_close(torch.cat(got), torch.cat(expected), f"with {value:g} in the padding")

    def _time_dims(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        # Time is the dimension that grows with the longest medium; where none does (fixed windows), the largest.
        longer = self.config.build_preprocessor()(self.media(11, 83))
        found: dict[str, int] = {}
        for name, value in inputs.items():
            # Integers of so many dimensions are pixels; others are masks and indices.
            content = value.is_floating_point() or (value.dim() >= 4 and value.dtype != torch.bool)
            if content and value.dim() > 1 and value.shape[0] == len(inputs["lengths"]):
                grows = [dim for dim in range(1, value.dim()) if value.shape[dim] != longer[name].shape[dim]]
                found[name] = grows[0] if grows else max(range(1, value.dim()), key=lambda dim: value.shape[dim])
        return found

    def _padded_with(self, inputs: Mapping[str, Tensor], value: float) -> dict[str, Tensor]:
        filled = dict(inputs)
        for name, dim in self._time_dims(inputs).items():
            filled[name] = inputs[name].clone()
            brightest = inputs[name].is_floating_point() or value > 0 or torch.iinfo(inputs[name].dtype).max
            for row, start in enumerate(self._padding_starts(inputs, dim, name)):
                padding = filled[name][row].narrow(dim - 1, start, inputs[name].shape[dim] - start)
                padding.fill_(value if brightest is True else brightest)
        return filled

    def _padding_starts(self, inputs: Mapping[str, Tensor], dim: int, name: str) -> list[int]:
        return [min(length + self.margin, inputs[name].shape[dim]) for length in inputs["lengths"].tolist()]

    @check
    def gradients_reach_inputs(self) -> None:
        """Gradients reach each medium's own samples, and not its padding (integers: changes show in its own frames)."""
        module = self.built()
        inputs = dict(self.config.build_preprocessor()(self.media(23, 11)))
        dims = self._time_dims(inputs)
        for name in [name for name in dims if not inputs[name].is_floating_point()]:
            logger.info("%r holds integers, which take no gradient; what they change is checked instead", name)
            self._check_influence(module, inputs, name, dims.pop(name))
        if not dims:
            return
        for name in dims:
            inputs[name] = inputs[name].clone().requires_grad_()
        output = torch.cat(rows(module(inputs)))
        assert output.requires_grad, "the output is detached from the input"
        output.backward(probe(output))
        for name, dim in dims.items():
            gradient = inputs[name].grad
            assert gradient is not None, f"no gradient for {name!r}"
            for row, start in enumerate(self._padding_starts(inputs, dim, name)):
                own, padding = gradient[row].split([start, gradient.shape[dim] - start], dim - 1)
                assert bool(own.isfinite().all()), f"the gradient for {name!r} is not finite"
                assert bool(own.abs().sum() > 0), f"no gradient for row {row} of {name!r}"
                assert not bool(padding.any()), f"the padding of row {row} of {name!r} gets a gradient"

    def _check_influence(self, module: Encoder, inputs: Mapping[str, Tensor], name: str, dim: int) -> None:
        before = rows(module(inputs))
        for row, start in enumerate(self._padding_starts(inputs, dim, name)):
            other = inputs[name].clone()
            own = other[row].narrow(dim - 1, 0, start)
            own.copy_(torch.iinfo(own.dtype).max - own)
            after = rows(module({**inputs, name: other}))
            assert not torch.equal(after[row], before[row]), f"row {row} of {name!r} changes nothing"
            for neighbour in set(range(len(before))) - {row}:
                assert_close(after[neighbour], before[neighbour], f"row {neighbour} where row {row} is another")

    @check
    def batch_order(self) -> None:
        """Changing the order of the batch changes the order of the output, and nothing else."""
        module = self.built()
        media = self.media(11, 23, 17)
        expected = rows(self.encode(module, media))
        got = rows(self.encode(module, [media[2], media[0], media[1]]))
        for position, source in enumerate((2, 0, 1)):
            assert_close(got[position], expected[source], f"medium {source} at position {position}")

    @check
    def one_sample(self) -> None:
        """A medium of one sample, and one of a single frame, are encoded."""
        module = self.built()
        for size in (1, next(size for size in range(1, 10**6) if self.config.output_lengths(size))):
            features = self.encode(module, [self.medium(size, 0)])
            lengths_agree(features.lengths, [self.config.output_lengths(size)], f"frames for {size} samples")
            assert bool(rows(features)[0].isfinite().all()), f"frames for {size} samples are not finite"

    @check
    def empty_batch(self) -> None:
        """A batch of no media gives no rows."""
        features = self.encode(self.built(), [])
        assert features.values.shape[0] == 0, f"{features.values.shape[0]} rows"
        assert features.values.shape[2] == self.config.hidden_size, f"width {features.values.shape[2]}"
        assert features.lengths.shape == (0,), f"lengths have the shape {tuple(features.lengths.shape)}"


def encoder_checks(
    config: EncoderConfig,
    *,
    medium: MediumFactory | None = None,
    margin: int = 0,
    skip: Collection[str] = (),
    unreached: Collection[str] = (),
) -> list[Check]:
    """The checks of an encoder's contract, to run one by one; nothing is built before a check is called.

    Args:
        config: A small configuration with random weights.
        medium: Makes a medium from (number of samples, seed); noise by default, for audio and video.
        margin: Steps after a row's length in the preprocessor's output that still hold content (the tail of a
            spectrogram's window).
        skip: Names of checks to leave out; say why beside it.
        unreached: Ends of the names of parameters that only training reaches (a masking embedding, say).
    """
    checks = collect(EncoderKit(config, medium, margin, unreached), f"encoder {config.type!r}")
    return select(checks, skip)


def encoder_contract(
    config: EncoderConfig,
    *,
    medium: MediumFactory | None = None,
    margin: int = 0,
    skip: Collection[str] = (),
    unreached: Collection[str] = (),
) -> None:
    """Runs every check of an encoder's contract; the arguments are those of `encoder_checks`.

    Raises:
        AssertionError: The checks that fail, by name, with what was demanded and what was found.
    """
    run_all(encoder_checks(config, medium=medium, margin=margin, skip=skip, unreached=unreached))

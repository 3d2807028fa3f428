"""The contract of an adapter.

Shapes: B batch, T frames, D hidden.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import torch
from torch import Tensor

from speechlmm_core.features import Features
from speechlmm_core.interfaces.adapter import AdapterConfig
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.testing.adapter_base import AdapterKitBase
from speechlmm_core.testing.checks import Check, assert_close, check, collect, run_all, select
from speechlmm_core.testing.component import lengths_agree, probe
from speechlmm_core.testing.encoder_base import rows
from speechlmm_core.testing.in_model import assert_learns, run_in_model

ONCE = ("config_defaults", "config_round_trip", "config_import", "weights")
"""Checks that no role of the adapter makes a difference to."""

SIZES = (*range(18), 23, 31, 32, 33, 47, 64, 97)


class AdapterKit(AdapterKitBase):
    """The checks of an adapter."""

    @check
    def lengths_of_all_kinds(self) -> None:
        """`output_lengths` gives the same for an int, an array and a tensor, never falls, and is never negative."""
        rate, sizes = self.ctx.frame_rate, list(range(130))
        bounds = [self.config.max_output_lengths(size, rate) for size in sizes]
        assert all(type(one) is int for one in bounds), f"an int gives a {type(bounds[0]).__name__}"
        array = self.config.max_output_lengths(np.array(sizes), rate)
        tensor = self.config.max_output_lengths(torch.tensor(sizes), rate)
        assert isinstance(array, np.ndarray), f"an array gives a {type(array).__name__}"
        assert array.dtype.kind == "i", f"an array of int gives {array.dtype}"
        assert isinstance(tensor, Tensor), f"a tensor gives a {type(tensor).__name__}"
        assert tensor.dtype == torch.int64, f"a tensor of int64 gives {tensor.dtype}"
        lengths_agree(array.tolist(), bounds, "array against int")
        lengths_agree(tensor.tolist(), bounds, "tensor against int")
        assert min(bounds) >= 0, f"negative: {min(bounds)}"
        falls = [size for size in sizes[1:] if bounds[size] < bounds[size - 1]]
        assert not falls, f"more frames in give fewer out at {falls[0]}"
        exact = [self.config.output_lengths(size, rate) for size in sizes]
        known = {one is not None for one in exact}
        assert len(known) == 1, "`output_lengths` is None for some lengths and not for others"
        if exact[0] is not None:
            lengths_agree(bounds, exact, "`max_output_lengths` against the exact number")

    @check
    def frame_rate(self) -> None:
        """`output_frame_rate` is a `Fraction` that agrees with `output_lengths` over many frames."""
        rate = self.config.output_frame_rate(self.ctx.frame_rate)
        assert isinstance(rate, Fraction), f"{rate!r} is a {type(rate).__name__}"
        frames = self.config.output_lengths(100_000, self.ctx.frame_rate)
        if frames is not None:
            expected = float(100_000 * rate / self.ctx.frame_rate)
            assert abs(frames - expected) <= max(2.0, 0.002 * expected), f"{frames} frames, expected {expected:.0f}"

    @check
    def declared_lengths(self) -> None:
        """The frames that come out are as many as `output_lengths` says, or within its bound."""
        module = self.built()
        with torch.no_grad():
            batch = module(self.features(*SIZES))
            alone = [module(self.features(size)) for size in SIZES[1::5]]
        bounds = [self.config.max_output_lengths(size, self.ctx.frame_rate) for size in SIZES]
        if self.depends_on_content:
            over = [
                (size, int(got)) for size, got, most in zip(SIZES, batch.lengths, bounds, strict=True) if got > most
            ]
            assert not over, f"(frames in, frames out) beyond the bound: {over}"
        else:
            lengths_agree(batch.lengths, bounds, f"lengths for {list(SIZES)} frames")
            lengths_agree([one.lengths[0] for one in alone], bounds[1::5], f"alone, lengths for {list(SIZES[1::5])}")
        longest = int(batch.lengths.max())
        assert batch.values.shape[1] >= longest, f"{batch.values.shape[1]} frames, lengths up to {longest}"
        assert all(bool(row.isfinite().all()) for row in rows(batch)), "some frames are not finite"

    @check
    def output_form(self) -> None:
        """The output is `Features` with values (B, T, output_size) in the input's dtype and int64 lengths (B,)."""
        features = self.built()(self.features(9, 5))
        assert isinstance(features, Features), f"got a {type(features).__name__}"
        assert features.values.dim() == 3, f"values have {features.values.dim()} dimensions"
        width, expected = features.values.shape[2], self.config.output_size(self.ctx)
        assert width == expected, f"width {width}, expected {expected}"
        assert features.values.dtype == torch.float32, f"values are {features.values.dtype}, expected float32"
        assert features.lengths.dtype == torch.int64, f"lengths are {features.lengths.dtype}, expected int64"
        assert features.lengths.shape == (2,), f"lengths have the shape {tuple(features.lengths.shape)}, expected (2,)"

    @check
    def padding_amount(self) -> None:
        """A row's frames do not depend on how much it is padded, nor on its neighbours' content."""
        module = self.built()
        alone = rows(module(self.features(11)))[0]
        for length in (11, 12, 19, 67):
            assert_close(rows(module(self.features(11, length)))[0], alone, f"beside a row of {length} frames")

    @check
    def padding_content(self) -> None:
        """What the padding of the input holds does not matter, even where it is not a number."""
        module = self.built()
        expected = rows(module(self.features(11, 67, 0)))
        for value in (1.0, -1e4, float("nan")):
            got = rows(module(self.features(11, 67, 0, padding=value)))
            assert_close(torch.cat(got), torch.cat(expected), f"with {value:g} in the padding")

    @check
    def gradients_reach_inputs(self) -> None:
        """Gradients reach each row's own frames, and not its padding."""
        module = self.built()
        features = self.features(23, 11, 0)
        values = features.values.requires_grad_()
        adapted = module(features)
        output = torch.cat(rows(adapted))
        assert output.requires_grad, "the output is detached from the input"
        output.backward(probe(output))
        assert values.grad is not None, "no gradient for the input"
        assert bool(values.grad.isfinite().all()), "the gradient for the input is not finite"
        for row, length in enumerate((23, 11)):
            came = int(adapted.lengths[row]) > 0
            assert not came or bool(values.grad[row, :length].any()), f"no gradient for row {row}"
            assert not bool(values.grad[row, length:].any()), f"the padding of row {row} gets a gradient"

    @check
    def batch_order(self) -> None:
        """Changing the order of the batch changes the order of the output, and nothing else."""
        module, features, order = self.built(), self.features(11, 23, 17), [2, 0, 1]
        expected = rows(module(features))
        got = rows(module(Features(features.values[order], features.lengths[order])))
        for position, source in enumerate(order):
            assert_close(got[position], expected[source], f"row {source} at position {position}")

    @check
    def one_frame(self) -> None:
        """A row of one frame, and a row of none, are adapted."""
        module = self.built()
        for lengths in ((1,), (0,), (1, 0, 5)):
            features = module(self.features(*lengths))
            assert len(features.lengths) == len(lengths), f"{len(features.lengths)} rows for {len(lengths)}"
            assert all(bool(row.isfinite().all()) for row in rows(features)), f"not finite for lengths {lengths}"

    @check
    def empty_batch(self) -> None:
        """A batch of no media gives no rows."""
        features = self.built()(self.features())
        assert features.values.shape[0] == 0, f"{features.values.shape[0]} rows"
        expected = self.config.output_size(self.ctx)
        assert features.values.shape[2] == expected, f"width {features.values.shape[2]}, expected {expected}"
        assert features.lengths.shape == (0,), f"lengths have the shape {tuple(features.lengths.shape)}"

    @check
    def target_lengths(self) -> None:
        """The transcripts' lengths may be given; what promises to meet them does, within its bound, in every mode."""
        module, frames, targets = self.build(), (23, 11, 5, 0), [4, 2, 19, 0]
        for training, given in product((True, False), (targets, [-1, 2, -1, -1])):
            features = module.train(training)(self.features(*frames), torch.tensor(given))
            assert all(bool(row.isfinite().all()) for row in rows(features)), "some frames are not finite"
            if self.config.meets_target_lengths:
                most = [self.config.max_output_lengths(count, self.ctx.frame_rate) for count in frames]
                for row, (target, bound) in enumerate(zip(given, most, strict=True)):
                    got, wanted = min(int(features.lengths[row]), bound), min(target, bound)
                    assert target < 0 or got == wanted, f"{got} frames for a transcript of {target}, expected {wanted}"

    def _check_in_model(self, dtype: torch.dtype, *, packed: bool) -> None:
        ran = run_in_model(self.towers(), self.media(60, 41, 52), dtype=dtype, packed=packed)
        own = {f"{self.place}_{name}": one for name, one in self.config.objectives(self.place).items()}
        for name in own:
            assert name in ran.output.losses, f"its loss {name!r} is not among {sorted(ran.output.losses)}"
        for name, loss in ran.output.losses.items():
            assert ran.batch["num_items"].get(loss.unit, 0) > 0, f"nothing is counted in {loss.unit!r} for {name!r}"
            if bool(ran.output.stages[self.place].lengths.any()) or name in own:
                assert_learns(ran.model.components()[self.place], loss.sum, f"the loss {name!r}", retain=True)
        assert bool(ran.output.loss.isfinite()), f"the loss of all is {float(ran.output.loss.detach())}"

    @check
    def in_a_model(self) -> None:
        """In a model, every loss, the adapter's own included, is finite and counted, and the adapter learns from it."""
        self._check_in_model(torch.float32, packed=False)
        self._check_in_model(torch.float32, packed=True)

    @check
    def in_a_bfloat16_model(self) -> None:
        """The same in a model in bfloat16."""
        self._check_in_model(torch.bfloat16, packed=False)

    @check
    def text_alone(self) -> None:
        """A batch of text alone passes the adapter by: its own losses are left out or zero, and all else goes on."""
        ran = run_in_model(self.towers(), {})
        for name, loss in ran.output.losses.items():
            if name.startswith(f"{self.place}_"):
                assert float(loss.sum.detach()) == 0.0, f"{name!r} is {float(loss.sum.detach())} without any media"
        assert bool(ran.output.loss.isfinite()), f"the loss is {float(ran.output.loss.detach())}"
        ran.output.loss.backward()

    @check
    def packed_as_padded(self) -> None:
        """Packed and padded batches give the same losses."""
        towers, media = self.towers(), self.media(60, 41, 52)
        padded, packed = (run_in_model(towers, media, packed=one).output.losses for one in (False, True))
        for name, loss in padded.items():
            off = abs(float(packed[name].sum.detach()) - float(loss.sum.detach()))
            assert off <= 1e-5 * max(1.0, abs(float(loss.sum.detach()))), f"{name!r} differs by {off:.2g}"


def adapter_checks(
    config: AdapterConfig,
    *,
    ctx: BuildContext | None = None,
    skip: Collection[str] = (),
    unreached: Collection[str] = (),
    modalities: Sequence[str] = ("audio", "video"),
) -> list[Check]:
    """The checks of an adapter's contract, to run one by one; nothing is built before a check is called.

    Args:
        config: A small configuration.
        ctx: What the adapter is built with; small widths at the encoder's rate (50 or 25 frames per second) by
            default.
        skip: Names of checks to leave out; say why beside it.
        unreached: Ends of the names of parameters that neither the output nor the adapter's own losses reach.
        modalities: Kinds of media whose frames it adapts (`audio`, `video`); the checks of the second and further
            ones are called `<check>.<modality>`.
    """
    checks: list[Check] = []
    for number, modality in enumerate(modalities):
        found = collect(
            AdapterKit(config, ctx, unreached, modality), f"adapter {config.type!r}", f".{modality}" if number else ""
        )
        checks += [one for one in found if not number or one.name.partition(".")[0] not in ONCE]
    return select(checks, skip)


def adapter_contract(
    config: AdapterConfig,
    *,
    ctx: BuildContext | None = None,
    skip: Collection[str] = (),
    unreached: Collection[str] = (),
    modalities: Sequence[str] = ("audio", "video"),
) -> None:
    """Runs every check of an adapter's contract; the arguments are those of `adapter_checks`.

    Raises:
        AssertionError: The checks that fail, by name, with what was demanded and what was found.
    """
    run_all(adapter_checks(config, ctx=ctx, skip=skip, unreached=unreached, modalities=modalities))

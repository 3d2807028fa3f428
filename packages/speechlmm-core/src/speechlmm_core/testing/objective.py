"""The contract of an objective.

Shapes: B media (a row each), T frames, N tokens, D hidden, U target ids, M supervised positions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechlmm_core.features import Features, Loss
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.modules import Objective
from speechlmm_core.interfaces.objective import ObjectiveConfig, objectives, weight_at
from speechlmm_core.testing.checks import Check, assert_close, check, collect, run_all, select
from speechlmm_core.testing.component import ComponentKit
from speechlmm_core.testing.toy import ToyAdapterConfig, ToyEncoderConfig, ToyTextDecoder, ToyTokenizer

NAME = "tested"
VOCAB, WIDTH, ENCODER_WIDTH, TOKENS = 37, 16, 12, 9


@dataclass(frozen=True)
class Row:
    """One medium and the text that goes with it; its tensors depend on `seed` alone."""

    seed: int
    frames: int
    transcript: str | None
    supervised: int = 4


ROWS = (Row(1, 40, "good day"), Row(2, 31, "yes"), Row(3, 36, "see you soon", 2))


class ObjectiveKit(ComponentKit):
    """The checks of an objective."""

    config: ObjectiveConfig
    low_precision = torch.float32  # a sum is kept in fp32 whatever the module's dtype

    def __init__(self, config: ObjectiveConfig, unreached: Collection[str]) -> None:
        super().__init__(config, objectives, unreached)

    def make(self, config: ObjectiveConfig) -> Objective:
        """The objective."""
        sizes = {stage: ENCODER_WIDTH if stage.endswith("_encoder") else WIDTH for stage in self.config.stages}
        sizes["text_decoder"] = WIDTH
        module = config.build(
            BuildContext(output_size=WIDTH, vocab_size=VOCAB, stage_sizes=sizes, encode=self.tokenizer.encode)
        )
        module.name = NAME
        return module

    @property
    def place(self) -> str:
        """The objective's name in the composite."""
        return f"objectives.{NAME}"

    def towers(self) -> dict[str, Any]:
        """The objective with every input whose stages it reads."""
        found: dict[str, Any] = {"objectives": {NAME: self.config}}
        for stage in self.config.stages:
            if stage != "text_decoder":
                name = stage.rpartition("_")[0]
                found |= {f"{name}_encoder": ToyEncoderConfig(), f"{name}_adapter": ToyAdapterConfig()}
        return found

    def composite_output(self, module: Any) -> Tensor:
        """All parameters and buffers: the widths of a model are others than those of the kit's stages."""
        tensors = [value.detach().float().flatten() for value in module.state_dict().values()]
        return torch.cat(tensors) if tensors else torch.zeros(0)

    def decoder(self) -> ToyTextDecoder:
        """The text decoder beside it, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return ToyTextDecoder(VOCAB, WIDTH)

    def stages(self, rows: Sequence[Row], padding: float = 0.0) -> dict[str, Features]:
        """Outputs of the stages that the objective reads."""
        found: dict[str, Features] = {}
        for stage in self.config.stages:
            width = ENCODER_WIDTH if stage.endswith("_encoder") else WIDTH
            lengths = [TOKENS if stage == "text_decoder" else row.frames for row in rows]
            values = torch.full((len(rows), max(lengths, default=0), width), padding)  # (B, T, D)
            for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                generator = torch.Generator().manual_seed(row.seed)
                values[place, :length] = torch.randn(length, width, generator=generator)
            found[stage] = Features(values.requires_grad_(), torch.tensor(lengths, dtype=torch.int64))
        return found

    def targets(self, rows: Sequence[Row]) -> list[list[int] | None]:
        """Target ids of each row's transcript; None where there is none, or too few frames for it."""
        found: list[list[int] | None] = []
        for row in rows:
            known = self.config.needs_transcript and row.transcript is not None
            ids = self.config.encode_transcript(row.transcript or "", self.tokenizer) if known else None
            found.append(ids if ids and self.config.min_frames(ids) <= row.frames else None)
        return found

    @property
    def tokenizer(self) -> Any:
        """Encodes transcripts."""
        return ToyTokenizer(VOCAB)

    def batch(self, rows: Sequence[Row], padding: int = 0) -> dict[str, Any]:
        """The part of a collated batch that objectives read."""
        targets = self.targets(rows)
        ids = torch.full((len(rows), max((len(one) for one in targets if one), default=0)), padding)  # (B, U)
        for place, target in enumerate(targets):
            ids[place, : len(target or ())] = torch.tensor(target or (), dtype=torch.int64)
        positions = [place * TOKENS + token for place, row in enumerate(rows) for token in range(row.supervised)]
        words = [(7 * row.seed + token) % VOCAB for row in rows for token in range(row.supervised)]
        return {
            "input_ids": torch.zeros(len(rows), TOKENS, dtype=torch.int64),
            "attention_mask": torch.ones(len(rows), TOKENS, dtype=torch.int64),
            "supervised": {
                "positions": torch.tensor(positions, dtype=torch.int64),  # (M,)
                "ids": torch.tensor(words, dtype=torch.int64),  # (M,)
            },
            "targets": {
                NAME: {
                    "ids": ids,
                    "lengths": torch.tensor([len(one or ()) for one in targets], dtype=torch.int64),
                    "valid": torch.tensor([bool(one) for one in targets], dtype=torch.bool),
                }
            },
            "num_items": {
                "supervised_tokens": len(words),
                f"{NAME}_targets": sum(len(one or ()) for one in targets),
                f"{NAME}_valid": sum(bool(one) for one in targets),
                f"{NAME}_infeasible": 0,
            },
        }

    def loss(self, module: Any, rows: Sequence[Row] = ROWS) -> Loss:
        """The loss over some rows."""
        return module(self.stages(rows), self.batch(rows), self.decoder())

    def output(self, module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """The sum over the standard rows."""
        stages = {
            name: Features(one.values.detach().to(dtype).requires_grad_(), one.lengths)
            for name, one in self.stages(ROWS).items()
        }
        loss: Loss = module(stages, self.batch(ROWS), self.decoder().to(dtype))
        return loss.sum.reshape(1)

    @check
    def loss_form(self) -> None:
        """The objective gives a `Loss`: a finite fp32 scalar that a gradient flows from, and its unit."""
        loss = self.loss(self.built())
        assert isinstance(loss, Loss), f"got a {type(loss).__name__}"
        assert loss.sum.shape == (), f"the sum has the shape {tuple(loss.sum.shape)}, expected a scalar"
        assert loss.sum.dtype == torch.float32, f"the sum is {loss.sum.dtype}, expected float32"
        assert bool(loss.sum.isfinite()), f"the sum is {float(loss.sum.detach())}"
        assert loss.sum.requires_grad, "the sum is detached"

    @check
    def unit_is_counted(self) -> None:
        """The loss's unit is one that the collator counts, so that the trainer can divide by it."""
        unit, counted = self.loss(self.built()).unit, self.batch(ROWS)["num_items"]
        words = ", ".join(counted).replace(NAME, "<objective>")
        assert unit in counted, f"unit {unit!r}, counted are {words} (<objective> being the module's `name`)"
        assert counted[unit] > 0, f"nothing is counted for {unit!r} over ordinary media"

    @check
    def sum_over_units(self) -> None:
        """The loss is a sum: that of two batches together is the sum of both, wherever the border lies."""
        module = self.built()
        whole = self.loss(module).sum
        for border in (1, 2):
            parts = self.loss(module, ROWS[:border]).sum + self.loss(module, ROWS[border:]).sum
            assert_close(parts, whole, f"batches of {border} and {len(ROWS) - border}")
        assert_close(self.loss(module, ROWS * 2).sum, 2 * whole, "the batch twice over")

    @check
    def batch_order(self) -> None:
        """The order of the batch does not matter."""
        module = self.built()
        assert_close(self.loss(module, ROWS[::-1]).sum, self.loss(module).sum, "in reverse order")

    @check
    def padding_content(self) -> None:
        """What the padding of stages and targets holds does not matter."""
        module, decoder = self.built(), self.decoder()
        expected = self.loss(module).sum
        for value in (1.0, -1e4):
            got = module(self.stages(ROWS, value), self.batch(ROWS), decoder).sum
            assert_close(got, expected, f"with {value:g} in the padding of the stages")
        got = module(self.stages(ROWS), self.batch(ROWS, 5), decoder).sum
        assert_close(got, expected, "with 5 in the padding of the target ids")

    @check
    def padding_amount(self) -> None:
        """How much the stages are padded does not matter."""
        module = self.built()
        quiet = Row(9, 97, None, 0)
        assert_close(
            self.loss(module, [*ROWS, quiet]).sum, self.loss(module).sum, "beside a longer row without targets"
        )

    @check
    def invalid_media_left_out(self) -> None:
        """Media without a transcript, or too short for it, add nothing and get no gradient."""
        if not self.config.needs_transcript:
            return
        module = self.built()
        rows = [ROWS[0], Row(7, 33, None), ROWS[1], Row(8, 2, "far too long for two frames")]
        assert self.targets(rows)[3] is None, "`min_frames` allows 27 characters in two frames"
        rows_alone = [rows[0], rows[2]]
        stages = self.stages(rows)
        loss: Loss = module(stages, self.batch(rows), self.decoder())
        if "text_decoder" not in self.config.stages:
            assert_close(loss.sum, self.loss(module, rows_alone).sum, "beside invalid media")
        loss.sum.backward()
        for name, stage in stages.items():
            if name != "text_decoder":
                gradient = stage.values.grad
                assert gradient is not None, f"no gradient for the stage {name!r}"
                assert not bool(gradient[[1, 3]].any()), f"invalid media get a gradient in the stage {name!r}"

    @check
    def gradients_reach_stages(self) -> None:
        """Gradients reach each row of every stage that the configuration names, are finite, and spare the padding."""
        stages = self.stages(ROWS)
        self.built()(stages, self.batch(ROWS), self.decoder()).sum.backward()
        for name, stage in stages.items():
            gradient = stage.values.grad
            assert gradient is not None, f"no gradient for the stage {name!r}"
            assert bool(gradient.isfinite().all()), f"the gradient for the stage {name!r} is not finite"
            for row, length in enumerate(stage.lengths.tolist()):
                assert bool(gradient[row, :length].any()), f"no gradient for row {row} of the stage {name!r}"
                assert not bool(gradient[row, length:].any()), f"the padding of row {row} of {name!r} gets a gradient"

    @check
    def empty_targets(self) -> None:
        """Without any target the sum is zero, and backward still works."""
        module = self.built()
        for rows in ([], [Row(1, 12, None, 0), Row(2, 5, None, 0)]):
            loss = self.loss(module, rows)
            assert float(loss.sum.detach()) == 0.0, f"the sum over {len(rows)} media without targets is {loss.sum}"
            assert loss.sum.requires_grad, f"the sum over {len(rows)} media without targets is detached"
            loss.sum.backward()
        wild = [name for name, value in module.named_parameters() if value.grad is not None and value.grad.any()]
        assert not wild, f"the gradient of {wild[:3]} is not zero"

    @check
    def shortest_media(self) -> None:
        """A medium with exactly `min_frames` frames has a finite loss."""
        if not self.config.needs_transcript:
            return
        module = self.built()
        for words in ("a", "aa", "hello all"):
            ids = self.config.encode_transcript(words, self.tokenizer)
            frames = max(1, self.config.min_frames(ids))
            loss = self.loss(module, [Row(1, frames, words)])
            assert bool(loss.sum.isfinite()), f"{float(loss.sum.detach())} for {words!r} in {frames} frames"

    @check
    def weights(self) -> None:
        """The weight may be zero, or follow the training's progress."""
        dumped = self.config.model_dump(mode="json")
        for weight in (0.0, [(0.0, 1.0), (1.0, 0.0)]):
            config = type(self.config).model_validate({**dumped, "weight": weight})
            assert weight_at(config.weight, 1.0) == 0.0, (
                f"a weight of {weight!r} ends at {weight_at(config.weight, 1.0)}"
            )
            self.make(config)


def objective_checks(
    config: ObjectiveConfig, *, skip: Collection[str] = (), unreached: Collection[str] = ()
) -> list[Check]:
    """The checks of an objective's contract, to run one by one; nothing is built before a check is called.

    Args:
        config: The configuration.
        skip: Names of checks to leave out; say why beside it.
        unreached: Ends of the names of parameters that a loss over ordinary media does not reach.
    """
    return select(collect(ObjectiveKit(config, unreached), f"objective {config.type!r}"), skip)


def objective_contract(config: ObjectiveConfig, *, skip: Collection[str] = (), unreached: Collection[str] = ()) -> None:
    """Runs every check of an objective's contract; the arguments are those of `objective_checks`.

    Raises:
        AssertionError: The checks that fail, by name, with what was demanded and what was found.
    """
    run_all(objective_checks(config, skip=skip, unreached=unreached))

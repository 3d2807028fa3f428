"""CTC between the frames of a stage and the transcripts.

Paper: Graves et al. 2006, "Connectionist temporal classification", doi:10.1145/1143844.1143891.

Shapes: B media, T frames, U target tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features, Loss, by_sample
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.modules import Objective, TextDecoder
from speechlmm_core.losses.ctc import ctc_loss, ctc_loss_restricted
from speechlmm_core.objectives.ctc.config import CTCObjectiveConfig, blank_token

FULL_VOCABULARY = 4096
"""Largest vocabulary whose logits are computed for every frame."""


class CTCObjective(Objective):
    """CTC with an own linear head, or with the text decoder's embedding table as the head.

    Targets come from the collator: the sum runs over the valid media with a target, in the unit `<name>_targets`
    (target tokens). A target that turns out not to fit into its frames adds nothing.
    """

    def __init__(self, config: CTCObjectiveConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config: CTCObjectiveConfig = config
        self.input_name = config.stage.rpartition("_")[0]
        width = ctx.stage_sizes.get(config.stage)
        if width is None:
            raise ConfigError(
                f"the CTC objective reads the stage {config.stage!r}; the model has {', '.join(ctx.stage_sizes)}"
            )
        self.width = width
        self.full_vocabulary = FULL_VOCABULARY
        self.linear: nn.Linear | None = None
        self.blank: nn.Parameter | None = None
        self.blank_id: int | None = None
        self.encode = ctx.encode if config.blank is not None else None
        self.log_scale: nn.Parameter | None = None
        if config.head == "linear":
            characters = config.vocabulary == "characters"
            labels = len(config.characters) if characters else ctx.vocab_size
            # The blank is label 0 before characters, and the last one after tokens, so that ids need no shift.
            self.blank_id = 0 if characters else labels
            self.linear = nn.Linear(width, labels + 1, bias=characters)
            return
        decoder_width = ctx.stage_sizes.get("text_decoder", width)
        if decoder_width != width:
            raise ConfigError(
                f"`head: embeddings` scores frames against the text decoder's embeddings of width {decoder_width}, "
                f"but {config.stage} gives {width}; name an adapter's stage, or use `head: linear`"
            )
        if config.blank is None:
            self.blank = nn.Parameter(torch.zeros(width))
        else:
            # Saved, so that a checkpoint needs no tokenizer to be used; looked up when it is first needed.
            self.register_buffer("blank_token", torch.tensor(-1))
        if config.scale == "learned":
            self.log_scale = nn.Parameter(torch.tensor(-0.5 * math.log(width)))

    def _blank_id(self) -> int:
        """Id of the blank's token.

        Raises:
            ConfigError: `blank` is not exactly one token, or there is no tokenizer to tell.
        """
        if self.blank_id is None:
            stored = self.get_buffer("blank_token")
            if int(stored) < 0:
                assert self.config.blank is not None
                if self.encode is None:
                    raise ConfigError(
                        f"the blank {self.config.blank!r} needs the text decoder's tokenizer, and the objective was "
                        "built without one; set `blank: null`"
                    )
                stored.fill_(blank_token(self.config.blank, list(self.encode(self.config.blank))))
            self.blank_id = int(stored)
        return self.blank_id

    def init_weights(self) -> None:
        """Gives parameters that a checkpoint lacks their initial values."""
        if self.linear is not None:
            self.linear.reset_parameters()
        if self.blank is not None:
            nn.init.zeros_(self.blank)
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, -0.5 * math.log(self.width))

    def forward(self, stages: Mapping[str, Features], batch: Mapping[str, Any], text_decoder: TextDecoder) -> Loss:
        """The loss in the unit `<name>_targets`.

        Args:
            stages: The configured stage's frames (B, T, D).
            batch: ``targets[name]`` holds `ids` (B, U), `lengths` (B,) and `valid` (B,) bool.
            text_decoder: For its embedding table.
        """
        features = stages[self.config.stage]
        targets = batch["targets"][self.name]
        ids, valid = targets["ids"], targets["valid"]
        unit = f"{self.name}_targets"
        if ids.numel() == 0 or features.values.numel() == 0:
            nothing = self._nothing(features.values)
            return Loss(nothing, unit, by_sample(nothing.new_zeros(len(valid)), batch, self.input_name))
        target_lengths = torch.where(valid, targets["lengths"], 0)
        weight, blank = self._labels(text_decoder)
        hidden = features.values if self.linear is not None else features.values * self._scale(features.values)
        hidden = torch.where(features.mask()[..., None], hidden, 0)  # (B, T, D); padding may hold anything
        lengths = features.lengths
        if weight.shape[0] > self.full_vocabulary and (self.linear is None or self.linear.bias is None):
            row = blank if blank is not None else weight[self._blank_id()]
            losses = ctc_loss_restricted(
                hidden, lengths, ids, target_lengths, weight=weight, blank=row, blank_in_weight=blank is None
            )
            return Loss(losses.sum(), unit, by_sample(losses, batch, self.input_name))
        bias = self.linear.bias if self.linear is not None else None
        logits = nn.functional.linear(hidden, weight.to(hidden.dtype), bias)  # (B, T, V)
        if blank is not None:
            logits = torch.cat([logits, (hidden @ blank.to(hidden.dtype))[..., None]], dim=2)  # (B, T, V+1)
        blank_id = weight.shape[0] if blank is not None else self._blank_id()
        losses = ctc_loss(logits, lengths, ids, target_lengths, blank=blank_id)  # (B,)
        return Loss(losses.sum(), unit, by_sample(losses, batch, self.input_name))

    def _labels(self, text_decoder: TextDecoder) -> tuple[Tensor, Tensor | None]:
        """The labels' vectors (V, D), and the blank's (D,) where it is not among them."""
        if self.linear is not None:
            return self.linear.weight, None
        return text_decoder.embedding_weight, self.blank

    def _scale(self, values: Tensor) -> Tensor | float:
        return values.shape[-1] ** -0.5 if self.log_scale is None else self.log_scale.exp().to(values.dtype)

    def _nothing(self, values: Tensor) -> Tensor:
        """A zero that still depends on everything trainable, so that no rank waits for a gradient."""
        total = values.float().flatten()[:0].sum()
        for parameter in self.parameters():
            total = total + parameter.float().flatten()[:0].sum()
        return total

"""The checks of what encoders may do beside encoding: other layers, chunks, and their work in a model."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from speechlmm_core.testing.checks import assert_close, check
from speechlmm_core.testing.component import lengths_agree, probe
from speechlmm_core.testing.encoder_base import EncoderBase, rows
from speechlmm_core.testing.in_model import assert_learns, run_in_model


class EncoderOptions(EncoderBase):
    """The checks of layers, chunks, and of the encoder in a model."""

    def _check_in_model(self, dtype: torch.dtype) -> None:
        media = {self.config.modality: self.media(23, 11, 17)}
        ran = run_in_model(self.towers(), media, dtype=dtype)
        assert_learns(ran.model.components()[self.place], ran.output.loss, "the loss")

    @check
    def in_a_model(self) -> None:
        """In a model, messages with media give a finite loss that the encoder learns from."""
        self._check_in_model(torch.float32)

    @check
    def in_a_bfloat16_model(self) -> None:
        """The same in a model in bfloat16."""
        self._check_in_model(torch.bfloat16)

    def _varied(self, **fields: Any) -> Any:
        return type(self.config).model_validate({**self.config.model_dump(mode="json"), **fields})

    @check
    def weighted_layers(self) -> None:
        """With `layer: weighted`, the weights of the layers learn while the network itself is frozen."""
        if "layer" not in type(self.config).model_fields:
            return
        module: Any = self.make(self._varied(layer="weighted")).eval()
        module.requires_grad_(True)
        module.model.requires_grad_(False)
        weights = dict(module.named_parameters()).get("layer_mix.weights")
        assert weights is not None, "no parameter `layer_mix.weights` outside of `model`"
        output = self.output(module)
        assert output.requires_grad, "the output is detached from `layer_mix.weights`"
        output.backward(probe(output))
        assert weights.grad is not None, "no gradient for `layer_mix.weights`"
        assert bool(weights.grad.isfinite().all()), "the gradient for `layer_mix.weights` is not finite"
        assert bool(weights.grad.any()), "the gradient for `layer_mix.weights` is zero"

    @check
    def chosen_layer(self) -> None:
        """The first and the last `layer` give as many frames as each other, of other content."""
        if "layer" not in type(self.config).model_fields:
            return
        first, last = (self._output_of(self._varied(layer=layer)) for layer in (0, -1))
        assert first.shape == last.shape, f"shapes {tuple(first.shape)} and {tuple(last.shape)}"
        assert bool(first.isfinite().all()), "the frames before the first layer are not finite"
        assert not torch.allclose(first, last), "`layer: 0` gives the same frames as `layer: -1`"

    def _output_of(self, config: Any) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.output(self.make(config).eval())

    @check
    def chunks(self) -> None:
        """Cut into chunks, media have as many frames as whole, finite, and none depends on its neighbours."""
        config = self.config
        if config.chunk_seconds is None:
            frame = float(1 / config.frame_rate)
            try:
                config = self._varied(chunk_seconds=20 * frame, chunk_overlap_seconds=2 * frame)
            except ValidationError:
                if config.modality == "audio":
                    raise
                return  # chunks are a matter of long recordings
        module, preprocessor = self.make(config).eval(), config.build_preprocessor()
        media = [self.medium(self.samples(count), seed) for seed, count in enumerate((49, 7, 66))]
        with torch.no_grad():
            batch = module(preprocessor(media))
            alone = [rows(module(preprocessor([one])))[0] for one in media]
        whole = [self.config.output_lengths(one.num_samples) for one in media]
        lengths_agree(batch.lengths, whole, "frames of chunks")
        lengths_agree([config.output_lengths(one.num_samples) for one in media], whole, "`output_lengths` of chunks")
        for number, (together, one) in enumerate(zip(rows(batch), alone, strict=True)):
            assert bool(together.isfinite().all()), f"frames of medium {number} are not finite"
            assert_close(together, one, f"medium {number} beside others")

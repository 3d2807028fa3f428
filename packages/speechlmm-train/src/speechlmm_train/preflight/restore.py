"""Leaves a model and all random numbers as they were, whatever is tried out on it meanwhile."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.preflight.step import checkpoint_activations


def forget_peak() -> None:
    """Has a GPU's peak of memory counted from now on, so that what was tried out is no part of a training's."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


@contextmanager
def untouched(model: SpeechLMM) -> Iterator[None]:
    """Within it, a model may be frozen, run and given gradients; afterwards nothing of that is left.

    Weights must not be changed. Buffers (running statistics, say) and the generators of Python, NumPy and torch are
    put back.
    """
    training, trained = model.training, set(model.ever_trainable)
    requires = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    frozen = model.frozen_modules
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(requires[name])
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        model.ever_trainable, model.frozen_modules, model.modes = trained, frozen, None
        checkpoint_activations(model, on=False)
        model.train(training)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

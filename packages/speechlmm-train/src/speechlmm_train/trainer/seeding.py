"""Random numbers of a training: a function of seed, stage, step and micro-batch."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_step(seed: int, stage: int, step: int, number: int) -> None:
    """Seeds every generator for one micro-batch of a step."""
    value = int(np.random.SeedSequence([seed, stage, step, number]).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)

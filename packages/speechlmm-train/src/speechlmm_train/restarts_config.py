# pyright: strict
"""How far the learning rate falls, and when it starts again. Imports no torch."""

from __future__ import annotations

from speechlmm_train.data_config import Positive, Rate, Section


class Restarts(Section):
    """A cosine that ends above zero, or that starts again (Loshchilov and Hutter, 2017, arXiv 1608.03983)."""

    lr_min: Rate | None = None
    """Learning rate that the cosine falls to; parts with rates of their own fall in the same proportion."""
    num_steps_between_each_restart: Positive | None = None
    """Steps after the warm-up in which the cosine falls from the peak, to start there again; null for once."""

    @property
    def restarts(self) -> bool:
        """Whether either is asked for."""
        return self.lr_min is not None or self.num_steps_between_each_restart is not None

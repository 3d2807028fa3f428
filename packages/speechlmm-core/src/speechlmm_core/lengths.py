"""Exact integer lengths: samples, frames and tokens. The only place where lengths are rounded.

Every function takes an `int`, a NumPy array or a torch tensor, and returns the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

Length = TypeVar("Length", int, "np.ndarray[Any, Any]", "torch.Tensor")


def ceil_div(length: Length, divisor: int) -> Length:
    """Rounds ``length / divisor`` up."""
    return -(-length // divisor)


def conv_output_length(length: Length, *, kernel_size: int, stride: int = 1, padding: int = 0) -> Length:
    """Length after a convolution (``padding`` on both sides); never negative.

    Source: the shape formula of `torch.nn.Conv1d` with dilation 1.
    """
    out = (length + 2 * padding - kernel_size) // stride + 1
    return not_negative(out)


def not_negative(length: Length) -> Length:
    """Replaces negative lengths by zero."""
    return length * (length > 0)

"""Random numbers that are a function of their place: no state, the same on every machine and version of NumPy.

SplitMix64's finaliser (G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014), applied to one word after another.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def mix(word: int) -> int:
    """SplitMix64's finaliser: 64 bits to 64 bits, one to one."""
    word = ((word ^ (word >> 30)) * _MIX_1) & _MASK
    word = ((word ^ (word >> 27)) * _MIX_2) & _MASK
    return word ^ (word >> 31)


def draw(seed: int, epoch: int, index: int, purpose: str = "prompt") -> int:
    """A number of 63 bits for an example in an epoch, to pick a prompt's wording with.

    Args:
        seed: The run's seed.
        epoch: The pass over the data, from 0.
        index: The example's number.
        purpose: Draws for other purposes are independent.
    """
    return int(mix((_state(seed, epoch, purpose) + (index + 1) * _GAMMA) & _MASK) >> 1)


def derive(number: int, purpose: str) -> int:
    """A further number from a drawn one, so that one draw decides several things independently; 0 stays 0.

    Args:
        number: What `draw` gave. 0 stands for "the first of everything": what evaluation and inference use.
        purpose: What it decides (`language`, `wording`, `shots`).
    """
    return int(mix((number ^ _state(0, 0, purpose)) & _MASK) >> 1) if number else 0


def draws(seed: int, epoch: int, count: int, purpose: str) -> NDArray[np.uint64]:
    """`draw` for the indices 0 to ``count - 1``, with its 64th bit."""
    state = np.uint64(_state(seed, epoch, purpose))
    with np.errstate(over="ignore"):
        word = state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(_MIX_1)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(_MIX_2)
    return word ^ (word >> np.uint64(31))


def permutation(seed: int, epoch: int, count: int, purpose: str) -> NDArray[np.int64]:
    """A random order of ``count`` things."""
    # No two of the numbers are the same (the finaliser is one to one), so that any way of sorting gives one order.
    return np.argsort(draws(seed, epoch, count, purpose))


def _state(seed: int, epoch: int, purpose: str) -> int:
    state = mix((zlib.crc32(purpose.encode()) + _GAMMA) & _MASK)
    for word in (seed, epoch):
        state = mix((state ^ mix((word + _GAMMA) & _MASK)) + _GAMMA & _MASK)
    return state

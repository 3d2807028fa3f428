"""Which examples of a prepared part a task can use, kept so that not each is looked at again. Imports no torch.

Shapes: N examples that were looked at.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechlmm_core.checkpoint.atomic import atomic_write
from speechlmm_core.data.index.prepared import PreparedExamples

logger = logging.getLogger(__name__)

WORTH_KEEPING = 10_000
"""Examples from which a look at each takes longer than a look into the cache."""


class StoredChoice:
    """What was chosen of some examples of a prepared part.

    Args:
        part: The part.
        numbers: (N,) the examples that are chosen from.
        settings: Everything else that the choice depends on.
        cache: The user's cache folder.
    """

    def __init__(
        self, part: PreparedExamples, numbers: NDArray[np.int64], settings: Sequence[object], *, cache: Path
    ) -> None:
        self.count = len(numbers)
        digest = hashlib.blake2b(repr((part.header.stamp, *settings)).encode("utf-8", "surrogatepass"), digest_size=16)
        digest.update(np.ascontiguousarray(numbers, np.int64).tobytes())
        self.file = cache / f"chosen-{digest.hexdigest()}.npy"

    def load(self) -> tuple[NDArray[np.bool_], dict[str, int], list[int]] | None:
        """(N,) what is used, how many are not by reason, and examples of each kind; None where nothing is kept."""
        try:
            with self.file.open("rb") as file:
                noted = json.loads(file.readline())
                bits = np.load(file, allow_pickle=False)
            kept = np.unpackbits(bits, count=self.count).astype(np.bool_)
            dropped = {str(reason): int(count) for reason, count in noted["dropped"].items()}
            if len(kept) == self.count == int(kept.sum()) + sum(dropped.values()):
                return kept, dropped, [int(number) for number in noted["kinds"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError) as exc:
            logger.info("cannot read %s: %s", self.file, exc)
        return None

    def save(self, kept: NDArray[np.bool_], dropped: Mapping[str, int], kinds: Sequence[int]) -> None:
        """Keeps a choice; where that cannot be, it is made again the next time."""
        if self.count < WORTH_KEEPING:
            return
        try:
            with atomic_write(self.file) as temporary, temporary.open("wb") as file:
                file.write(json.dumps({"dropped": dict(dropped), "kinds": list(kinds)}).encode() + b"\n")
                np.save(file, np.packbits(kept), allow_pickle=False)
        except OSError as exc:
            logger.warning("cannot keep %s (it will be made again): %s", self.file, exc)

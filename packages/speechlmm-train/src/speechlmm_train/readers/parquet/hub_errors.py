"""Words for what goes wrong with datasets of the Hugging Face hub. Imports no torch, and `datasets` late."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from speechlmm_core.errors import DataError


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Puts what goes wrong with the hub, or while reading its records, into one line.

    Raises:
        DataError: It did.
    """
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, ImportError, DatasetsError, pa.ArrowException) as exc:
        reason = " ".join(str(exc).split())[:300] or type(exc).__name__
        if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no"):
            hint = (
                "$HF_HUB_OFFLINE is set, which forbids to ask the hub; unset it, or download the dataset beforehand "
                f"(hf download --repo-type dataset {name}) and give its folder as `path`"
            )
        else:
            hint = (
                "check the name, `subset`, `revision` and the network; a gated dataset needs $HF_TOKEN, and one that "
                "runs code of its own is not read"
            )
        raise DataError(f"the hub's dataset {name!r} cannot be read ({reason}): {hint}") from exc

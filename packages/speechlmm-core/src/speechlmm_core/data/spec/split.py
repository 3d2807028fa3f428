"""Opens what of a specification is meant for answering questions about it: test sets, or those of another kind.

Evaluation and inference choose alike, so that they ask a model the same. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechlmm_core.data.spec.config import DatasetSpec, Destination
from speechlmm_core.data.spec.file import named_apart
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.data.spec.parts import parts_of
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.registry import nearest

PREFERRED: tuple[Destination, ...] = ("test", "eval")
"""What is taken unless the user says otherwise: the first of which there is something."""


def open_split(
    datasets: Sequence[DatasetSpec],
    *,
    base: Path,
    split: Destination | None = None,
    names: Sequence[str] = (),
    index_dir: Path | None = None,
    label: str = "the specification",
    whole: bool = False,
) -> list[OpenedDataset]:
    """Opens the parts of datasets that are for one destination.

    Args:
        datasets: The datasets.
        base: Folder where relative paths start.
        split: What they are for; None for test sets, or evaluation sets where there is no test set.
        names: Datasets to which it is limited, by name; empty for all.
        index_dir: What `speechlmm-train prepare` wrote.
        label: How messages call the specification.
        whole: Take everything, whatever it is for: manifests that a command names.

    Raises:
        DataError: The data are wrong, or there are none for this.
        ConfigError: There is no dataset of such a name.
    """
    specs = named_apart(datasets)
    known = [one.name for one in specs]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--dataset {name!r}: {label} has none of that name{nearest(name, known)} (it has: {', '.join(known)})"
            )
    specs = [one for one in specs if not names or one.name in names]
    if whole:
        return open_spec(specs, base=base, index_dir=index_dir)
    there: list[Destination] = list(dict.fromkeys(part.destination for one in specs for part in parts_of(one, base)))
    wanted = split or next((one for one in PREFERRED if one in there), PREFERRED[0])
    if wanted not in there:
        raise DataError(
            f"{label} names nothing with the destination {wanted!r} (there is: {', '.join(there) or 'nothing'}); "
            "choose with --split"
        )
    return open_spec(specs, base=base, destinations={wanted}, index_dir=index_dir)

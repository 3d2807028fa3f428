"""COMET: a neural score of translations from source, answer and reference.

Paper: R. Rei et al., "COMET: A Neural Framework for MT Evaluation", EMNLP 2020 (arXiv:2009.09025). Source:
unbabel-comet (Apache-2.0); each model has a licence of its own.

Shapes: N answers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from speechlmm_core.errors import ConfigError, DataError, MissingDependencyError
from speechlmm_core.interfaces.metric import Answer, MetricConfig


class COMETConfig(MetricConfig):
    """COMET of the corpus: the mean over its answers. Only computed where it is asked for."""

    type: Literal["comet"] = "comet"
    model: str = "Unbabel/wmt22-comet-da"
    """Name of the model on the hub, or path of its checkpoint."""
    batch_size: Annotated[int, Field(gt=0)] = 16
    """Answers at a time."""
    higher_is_better: ClassVar[bool] = True

    @property
    def signature(self) -> str:
        """The model and the library's version."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("unbabel-comet")
        except PackageNotFoundError:
            number = "not installed"
        return f"comet|model:{self.model}|unbabel-comet:{number}"

    def statistics(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """Score and number of each answer (N, 2); of several references, the best counts.

        Raises:
            MissingDependencyError: unbabel-comet is not installed.
            DataError: An answer has no source text.
        """
        if importlib.util.find_spec("comet") is None:
            raise MissingDependencyError("metric 'comet' needs unbabel-comet: pip install unbabel-comet")
        without = sum(not answer.source for answer in answers)
        if without:
            raise DataError(
                f"metric 'comet' compares with what was translated, which {without} of {len(answers)} answers lack; "
                "give the examples a `transcript` or `source_text`"
            )
        rows = [row for row, answer in enumerate(answers) for _ in answer.references]
        data = [{"src": a.source, "mt": a.text, "ref": reference} for a in answers for reference in a.references]
        table = np.full((len(answers), 2), -np.inf)
        table[:, 1] = 1
        scores = _load(self.model).predict(data, batch_size=self.batch_size, gpus=_num_gpus()).scores if data else []
        for row, found in zip(rows, scores, strict=True):
            table[row, 0] = np.maximum(table[row, 0], found)  # keeps a NaN, which is reported
        return table

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """The mean."""
        return {"comet": float(total[0] / total[1]) if total[1] else 0.0, "comet_answers": float(total[1])}


@lru_cache(maxsize=1)
def _load(name: str) -> Any:
    from comet import download_model, load_from_checkpoint

    try:
        path = name if name.endswith(".ckpt") else download_model(name)
        return load_from_checkpoint(path)
    except (OSError, KeyError, ValueError) as exc:
        raise ConfigError(f"metric 'comet': the model {name!r} cannot be loaded: {' '.join(str(exc).split())}") from exc


def _num_gpus() -> int:
    import torch

    return int(torch.cuda.is_available())

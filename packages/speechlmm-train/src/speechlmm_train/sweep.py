"""The runs of a sweep: what `--multirun` makes of values like `a,b,c`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechlmm_core.errors import ConfigError, SpeechLMMError
from speechlmm_train.compose import Composed, Sweep, compose_in, import_file
from speechlmm_train.composing.overrides import products
from speechlmm_train.composing.tree import hydra_tree


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep; either it is composed or it has a fault."""

    number: int
    """Its place in the sweep, from 0."""
    overrides: tuple[str, ...]
    """All of its overrides, each with one value."""
    varied: tuple[str, ...]
    """Those that are not the same for all runs."""
    composed: Composed | None
    fault: str | None = None
    """What is wrong with it, a line each."""

    @property
    def name(self) -> str:
        """What the run is called; by what makes it different where it could not be composed."""
        return self.composed.name if self.composed else " ".join(self.varied) or "run"


def expand_sweep(
    config_name: str,
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    imports: Sequence[Path] = (),
) -> list[SweepRun]:
    """Composes and validates every combination of the values; the last key that has several varies fastest.

    A run that cannot be composed says why and leaves the others as they are.

    Args:
        config_name: Name of the top-level configuration.
        overrides: Overrides in Hydra's grammar; `key=a,b`, `choice(…)`, `range(…)` and `glob(…)` give several values.
        config_dir: The user's folder of configurations, searched first.
        imports: Python files that register the user's own components.

    Raises:
        ConfigError: What is wrong with all of them, or two of them would write to one folder.
    """
    for path in imports:
        import_file(path)
    runs: list[SweepRun] = []
    with hydra_tree(config_dir) as tree:
        for number, (given, varied) in enumerate(products(list(overrides), tree)):
            composed, fault = None, None
            try:
                place = Sweep(number, varied)
                composed = compose_in(tree, config_name, given, config_dir=config_dir, sweep=place)
            except SpeechLMMError as exc:
                fault = str(exc)
            runs.append(SweepRun(number, tuple(given), tuple(varied), composed, fault))
    _refuse_shared_folders(runs)
    return runs


def _refuse_shared_folders(runs: Sequence[SweepRun]) -> None:
    taken: dict[str, int] = {}
    for run in runs:
        if run.composed is None:
            continue
        folder = run.composed.config.training.output_dir
        if folder in taken:
            raise ConfigError(
                f"runs {taken[folder]} and {run.number} of the sweep would both write to {folder!r}; "
                "is a value there twice?"
            )
        taken[folder] = run.number

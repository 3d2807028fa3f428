"""What a sweep consists of: `sweep.json` in its own folder beside those of its runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_train.folders import may_write
from speechlmm_train.sweep import SweepRun

SWEEP = "sweep.json"


@dataclass(frozen=True)
class RecordedRun:
    """One run of a sweep."""

    name: str
    varied: tuple[str, ...]
    """What makes it different from the others."""
    overrides: tuple[str, ...]
    output_dir: str | None
    """None for a run that could not be composed."""
    fault: str | None = None


@dataclass(frozen=True)
class SweepRecord:
    """A sweep."""

    config_name: str
    overrides: tuple[str, ...]
    runs: tuple[RecordedRun, ...]

    @classmethod
    def of(cls, config_name: str, overrides: Sequence[str], runs: Sequence[SweepRun]) -> SweepRecord:
        """The record of runs that were composed."""
        recorded = [
            RecordedRun(
                run.name,
                run.varied,
                run.overrides,
                str(Path(run.composed.config.training.output_dir).expanduser().absolute()) if run.composed else None,
                run.fault,
            )
            for run in runs
        ]
        return cls(config_name, tuple(overrides), tuple(recorded))

    def folder(self) -> Path:
        """Where it is kept: `multirun/<configuration>-<hash>` in the folder that all runs have in common.

        The hash is the command's, so that the same command finds its record again. Where they have none in common
        that can be written to, it is the working folder.
        """
        parents = [str(Path(run.output_dir).parent) for run in self.runs if run.output_dir]
        common = Path(os.path.commonpath(parents)) if parents else Path.cwd()
        if common == Path(common.anchor) or not may_write(common):
            common = Path.cwd()
        said = json.dumps([self.config_name, *self.overrides]).encode()
        return common / "multirun" / f"{self.config_name}-{hashlib.sha256(said).hexdigest()[:8]}"

    def write(self, folder: Path) -> None:
        """Writes it, atomically."""
        write_text(folder / SWEEP, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> SweepRecord | None:
        """The sweep that a folder is the record of; None if it is not."""
        try:
            content: dict[str, Any] = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
            runs = [
                {**run, "varied": tuple(run["varied"]), "overrides": tuple(run["overrides"])} for run in content["runs"]
            ]
            return cls(content["config_name"], tuple(content["overrides"]), tuple(RecordedRun(**run) for run in runs))
        except (OSError, ValueError, TypeError, KeyError):
            return None

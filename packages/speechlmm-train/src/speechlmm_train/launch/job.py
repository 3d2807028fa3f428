"""A run to start: what `speechlmm-train run` composed, so that another process, or another machine, can do it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """One run."""

    plain: Mapping[str, Any]
    """The composed configuration."""
    base: str
    """Folder where relative paths start."""
    imports: tuple[str, ...] = ()
    """Python files that register components."""
    resume: bool = False
    overwrite: bool = False
    progress: bool = True
    overrides: tuple[str, ...] = field(default=())
    """What the user changed, for messages and tables."""
    replaces: int | None = None
    """When the run that `overwrite` is to remove had begun to write; once another one has, that is done."""

    @property
    def output_dir(self) -> Path:
        """Where the run writes to."""
        return Path(self.base, Path(self.plain["training"]["output_dir"]).expanduser())

    def write(self, path: Path) -> None:
        """Writes the job as JSON, atomically."""
        write_text(path, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Reads a job.

        Raises:
            ConfigError: The file is missing or is none.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**content, "imports": tuple(content["imports"]), "overrides": tuple(content["overrides"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
            raise ConfigError(f"{str(path)!r} is not a job that speechlmm-train wrote: {exc}") from exc

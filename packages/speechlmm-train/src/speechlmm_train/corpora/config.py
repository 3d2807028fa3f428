"""What the configurations of the corpora's readers have in common. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from speechlmm_core.data.records import RecordDatasetConfig
from speechlmm_core.errors import DataError
from speechlmm_train.corpora.layout import Layout


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
"""One text or several."""


class LayoutDatasetConfig(RecordDatasetConfig):
    """A corpus whose files are found by templates of their paths, such as ``{partition}/*/*.trans.txt``."""

    files: Strings = ("{partition}",)
    """Templates of the files that list the examples, relative to `path`; in braces what a path tells
    (`partition`, `source_language`, `target_language` and other names), `*` for the rest."""
    language_names: dict[str, str] = Field(default_factory=dict)
    """What the layout calls a language, by code (`de: german`); empty where it uses the codes."""

    def root(self, base: Path) -> Path:
        """The corpus' root.

        Raises:
            DataError: No path is given, or it cannot be one.
        """
        if not self.path or "\0" in self.path:
            raise DataError(
                f"a dataset of type {self.type!r} needs the `path` where the corpus was unpacked, got {self.path!r}"
            )
        try:
            return (base / Path(self.path).expanduser()).absolute()
        except RuntimeError as exc:
            raise DataError(f"`path` {self.path!r}: there is no such user; write the folder in full") from exc

    def layout(self) -> Layout:
        """Where its files lie."""
        return Layout(self.files, self.language_names)

    def partitions(self, base: Path) -> list[str]:
        """Names of the partitions that are there."""
        return self.layout().values(self.root(base), "partition")

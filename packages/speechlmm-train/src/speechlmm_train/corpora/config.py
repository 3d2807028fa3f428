"""What the configurations of the corpora's readers have in common. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from speechlmm_core.data.records import RecordDatasetConfig
from speechlmm_core.errors import DataError
from speechlmm_train.corpora.layout import Layout


class LayoutDatasetConfig(RecordDatasetConfig):
    """A corpus whose files are found by templates of their paths, such as ``{partition}/*/*.trans.txt``."""

    files: tuple[str, ...] = ()
    """Templates of the files that list the examples, relative to `path`; in braces what a path tells
    (`partition`, `source_language`, `target_language` and other names), `*` for the rest."""
    language_names: dict[str, str] = Field(default_factory=dict)
    """What the layout calls a language, by code (`de: german`); empty where it uses the codes."""

    def root(self, base: Path) -> Path:
        """The corpus' root.

        Raises:
            DataError: No path is given.
        """
        if not self.path:
            raise DataError(f"a dataset of type {self.type!r} needs the `path` where the corpus was unpacked")
        return (base / Path(self.path).expanduser()).absolute()

    def layout(self) -> Layout:
        """Where its files lie."""
        return Layout(self.files, self.language_names)

    def partitions(self, base: Path) -> list[str]:
        """Names of the partitions that are there."""
        return self.layout().values(self.root(base), "partition")

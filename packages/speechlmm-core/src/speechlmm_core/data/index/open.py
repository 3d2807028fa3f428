"""Opens what was prepared of a corpus. Imports no torch."""

from __future__ import annotations

import logging
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from speechlmm_core.data.index.header import IndexHeader, damaged
from speechlmm_core.data.index.layout import HEADER, index_dir_of, part_digest, part_folder, part_slug, redo_hint
from speechlmm_core.data.index.listed import LISTED, listed_change
from speechlmm_core.data.index.prepared import PreparedExamples
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import DatasetConfig, Selection
from speechlmm_core.registry import ComponentConfig

__all__ = ["index_dir_of", "made_by", "open_prepared"]

logger = logging.getLogger(__name__)


def open_prepared(
    index_dir: Path, name: str, reader: DatasetConfig, base: Path, selection: Selection
) -> PreparedExamples | None:
    """What was prepared of a part of a corpus; the corpus itself is not read.

    The files that list the examples are compared with what was prepared, and so are those of a few examples; those of
    the others when an example is loaded.

    Args:
        index_dir: Folder that `speechlmm-train prepare` wrote.
        name: The part's name, for messages.
        reader: The reader of the corpus.
        base: Folder where the reader's relative paths start.
        selection: The part.

    Returns:
        None where this part was not prepared with this reader, or not as much of it.

    Raises:
        DataError: The corpus changed since, or the index is damaged or of another version; says what to run.
    """
    digest = part_digest(name, reader, base, selection)
    folder = part_folder(index_dir, name, digest)
    if not (folder / HEADER).exists():
        _hint(index_dir, name, folder)
        return None
    header = IndexHeader.read(folder)
    if header.limit is not None and (selection.limit is None or selection.limit > header.limit):
        logger.warning("%s: only the first %d rows are prepared; all are read from the corpus", name, header.limit)
        return None
    if header.made_by != made_by(reader):
        raise DataError(
            f"{name}: prepared by {header.made_by}, and {made_by(reader)} may read the corpus differently; "
            f"{redo_hint(header.spec)}"
        )
    if change := _change(folder, header):
        raise DataError(f"{name}: {change}; {redo_hint(header.spec)} (only what is new is read)")
    prepared = PreparedExamples(folder, reader, base, selection, header=header)
    prepared.check_sample()
    return prepared


def _change(folder: Path, header: IndexHeader) -> str | None:
    """What happened to the files that list the examples since."""
    if LISTED not in header.files:
        return next((change for source in header.sources if (change := source.changed())), None)
    try:
        return listed_change(folder)
    except (OSError, ValueError, EOFError) as exc:
        raise damaged(folder / LISTED, str(exc).splitlines()[0], header.spec) from exc


def made_by(component: ComponentConfig) -> str:
    """The versions that decide what a component does: which examples a reader makes, say."""
    found: list[str] = []
    for distribution in dict.fromkeys(("speechlmm_core", type(component).__module__.partition(".")[0])):
        try:
            found.append(f"{distribution.replace('_', '-')} {version(distribution.replace('_', '-'))}")
        except (PackageNotFoundError, ValueError):
            found.append(distribution)
    return ", ".join(found)


def _hint(index_dir: Path, name: str, wanted: Path) -> None:
    """Says so where the part was prepared, but with other settings of its reader."""
    beginning = part_slug(name) + "-"
    if index_dir.is_dir():
        for other in index_dir.glob(f"{beginning}*"):
            if len(other.name) == len(wanted.name) and (other / HEADER).exists():
                with suppress(DataError):
                    if IndexHeader.read(other).name != name:
                        continue
                logger.warning(
                    "%s: prepared with other settings of its reader, and not used; prepare it again to use the index",
                    name,
                )
                return

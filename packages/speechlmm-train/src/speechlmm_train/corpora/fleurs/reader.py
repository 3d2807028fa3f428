"""Reads FLEURS, and joins the sentences of two languages. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_train.corpora.layout import Layout, fill
from speechlmm_train.corpora.lines import Lines
from speechlmm_train.corpora.rows import Rows

if TYPE_CHECKING:
    from speechlmm_train.corpora.fleurs.config import FleursDatasetConfig

CELLS = ("sentence", "file", "raw_text", "text", "characters", "num_samples", "gender")
COLUMNS = ("id", "sentence", "raw_text", "text", "num_samples", "gender", "audio")
TRANSLATED = ("translation", "raw_translation")


def read_fleurs(config: FleursDatasetConfig, root: Path, layout: Layout, selection: Selection) -> Rows:
    """Reads the recordings of a part of the corpus.

    Raises:
        DataError: Files are missing, or lines are wrong.
    """
    target = selection.target_language
    spoken = layout.find(root, replace(selection, target_language=None))
    if target is None and any((source or "") in TRANSLATED for source in config.columns.values()):
        there = layout.values(root, "source_language")
        raise DataError(
            f"any two of the languages that are there ({', '.join(there)}) are a pair; name those you want under "
            "`languages` (en-de)"
        )
    faults = Faults()
    rows: list[Mapping[str, Any]] = []
    places: list[str] = []
    told: list[Mapping[str, str]] = []
    translations: dict[str, dict[str, tuple[str, str]]] = {}
    sources = [Path(found.path) for found in spoken]
    for found in spoken:
        partition = found.told["partition"]
        if target is not None and partition not in translations:
            beside = layout.find(root, Selection(partition=partition, source_language=target))
            sources += [Path(file.path) for file in beside]
            translations[partition] = {
                cells["sentence"]: (cells["text"], cells["raw_text"])
                for file in beside
                for _, cells in _table(file.path, faults)
            }
        for place, cells in _table(found.path, faults):
            row: dict[str, Any] = {**cells, "id": os.path.splitext(cells["file"])[0]}
            row["audio"] = fill("audio", config.audio, {**found.told, **cells, "folder": found.folder})
            if target is not None:
                translated = translations[partition].get(cells["sentence"])
                if translated is None:
                    continue
                row.update(zip(TRANSLATED, translated, strict=True))
            rows.append(row)
            places.append(place)
            told.append(found.told if target is None else {**found.told, "target_language": target})
    faults.raise_if_any()
    if not rows:
        raise DataError(f"{str(root)!r}: no sentence of {selection.source_language!r} was read in {target!r} too")
    columns = (*COLUMNS, *(TRANSLATED if target is not None else ()))
    return Rows(columns, rows, places, str(root), told, sources)


def _table(path: str, faults: Faults) -> list[tuple[str, dict[str, str]]]:
    """The rows of a table with their places; lines that are none are noted."""
    found: list[tuple[str, dict[str, str]]] = []
    lines = Lines([path])
    for index, line in enumerate(lines.all()):
        cells = line.split("\t")
        if len(cells) == len(CELLS):
            found.append((lines.place(index), dict(zip(CELLS, cells, strict=True))))
        else:
            faults.add(lines.place(index), f"expected {len(CELLS)} columns between tabs, got {len(cells)}", order=index)
    return found

"""Reads SLURP's annotations. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError
from speechlmm_train.corpora.layout import Found
from speechlmm_train.corpora.lines import Lines, parse_json, read_text
from speechlmm_train.corpora.rows import Rows

if TYPE_CHECKING:
    from speechlmm_train.corpora.slurp.config import SlurpDatasetConfig

COLUMNS = (
    "id",
    "slurp_id",
    "text",
    "scenario",
    "action",
    "intent",
    "slots",
    "speaker",
    "audio",
    "quality",
    "status",
)


def read_slurp(config: SlurpDatasetConfig, root: Path, files: Sequence[Found]) -> Rows:
    """Reads the recordings of some partitions.

    Raises:
        DataError: Files are missing, or lines are wrong.
    """
    rows: list[Mapping[str, Any]] = []
    places: list[str] = []
    told: list[Mapping[str, str]] = []
    faults = Faults()
    speakers = _speakers(root / config.metadata)
    for found in files:
        folder = config.audio_folders.get(found.told.get("partition", ""), config.audio_folder)
        lines = Lines([found.path])
        for index, line in enumerate(lines.all()):
            try:
                for row in _recordings(line, folder, speakers, config.microphone):
                    rows.append(row)
                    places.append(lines.place(index))
                    told.append(found.told)
            except DataError as exc:
                faults.add(lines.place(index), str(exc), order=index)
    faults.raise_if_any()
    if not rows:
        raise DataError(
            f"{', '.join(found.path for found in files)}: no recordings of microphone {config.microphone!r}"
        )
    sources = [Path(found.path) for found in files]
    metadata = root / config.metadata
    return Rows(COLUMNS, rows, places, str(root), told, [*sources, metadata] if metadata.exists() else sources)


def _recordings(line: str, folder: str, speakers: Mapping[str, str], microphone: str) -> Iterator[dict[str, Any]]:
    """The rows of one sentence.

    Raises:
        DataError: The line is not what SLURP writes.
    """
    try:
        entry = parse_json(line)
        slots = _slots(entry)
        shared = {
            "slurp_id": entry["slurp_id"],
            "text": entry["sentence"],
            "scenario": entry["scenario"],
            "action": entry["action"],
            "intent": entry.get("intent") or f"{entry['scenario']}_{entry['action']}",
            "slots": slots,
        }
        for recording in entry["recordings"]:
            name = recording["file"]
            close = name.rpartition(".")[0].endswith("-headset")
            if microphone != "all" and close != (microphone == "headset"):
                continue
            rate = recording.get("wer")
            yield {
                **shared,
                "id": name.rpartition(".")[0],
                "speaker": speakers.get(name),
                "audio": f"{folder}/{name}",
                "quality": None if rate is None else 1 - float(rate),
                "status": recording.get("status"),
            }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
        raise DataError(f"not an annotation of SLURP ({type(exc).__name__}: {exc}): {line!r:.80}") from exc


def _slots(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    """Type and words of every entity, in the sentence's order."""
    surfaces = {token["id"]: token["surface"] for token in entry["tokens"]}
    entities = sorted(entry["entities"], key=lambda entity: entity["span"][0])
    return [{"type": entity["type"], "value": " ".join(surfaces[at] for at in entity["span"])} for entity in entities]


def _speakers(path: Path) -> dict[str, str]:
    """Speakers by recording; empty where the corpus came without its metadata.

    Raises:
        DataError: The file is there and cannot be read.
    """
    if not path.exists():
        return {}
    try:
        entries = parse_json(read_text(str(path)))
        return {
            name: recording["usrid"]
            for entry in entries.values()
            for name, recording in entry["recordings"].items()
            if recording.get("usrid")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        if isinstance(exc, DataError):
            raise
        raise DataError(f"{str(path)!r} is not the metadata of SLURP: {type(exc).__name__}: {exc}") from exc

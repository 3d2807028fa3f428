"""Reads the questions of Spoken-SQuAD. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError
from speechlmm_train.corpora.layout import Found
from speechlmm_train.corpora.lines import parse_json, read_text
from speechlmm_train.corpora.rows import Rows

if TYPE_CHECKING:
    from speechlmm_train.corpora.spoken_squad.config import SpokenSQuADDatasetConfig

COLUMNS = ("id", "title", "context", "question", "answer", "answers", "audio", "messages")


def read_spoken_squad(config: SpokenSQuADDatasetConfig, root: Path, files: Sequence[Found]) -> Rows:
    """Reads the questions of some partitions.

    Raises:
        DataError: Files are missing, or are not what they must be; passages without recordings are listed.
    """
    rows: list[Mapping[str, Any]] = []
    places: list[str] = []
    told: list[Mapping[str, str]] = []
    faults = Faults()
    for found in files:
        recordings = _recordings(config, root, found.told["partition"])
        for number, passage in enumerate(_passages(found.path)):
            place = f"{found.path}: article {passage['article']}, paragraph {passage['paragraph']}"
            audio = recordings.get((passage["article"], passage["paragraph"]))
            if audio is None:
                faults.add(place, "there is no recording of this passage", order=number)
                continue
            for row in _questions(passage, audio, place):
                rows.append(row)
                places.append(f"{place}, question {row['id']}")
                told.append(found.told)
    faults.raise_if_any()
    sources = [Path(found.path) for found in files]
    return Rows(COLUMNS, rows, places, str(root), told, sources, _with_messages)


def _recordings(config: SpokenSQuADDatasetConfig, root: Path, partition: str) -> dict[tuple[int, int], list[str]]:
    """Paths of a partition's recordings by article and paragraph, in the order of their sentences.

    Raises:
        DataError: There is no folder of recordings.
    """
    folders = config.audio_folders.get(partition, ())
    folder = next((root / one for one in folders if (root / one).is_dir()), None)
    if folder is None:
        expected = " or ".join(folders) or f"an entry {partition!r} in `audio_folders`"
        raise DataError(f"{str(root)!r} has no recordings of {partition!r}: expected {expected}")
    name = re.compile(rf"(\d+)_(\d+)(?:_(\d+))?{re.escape(config.extension)}")
    found: dict[tuple[int, int], list[tuple[int, str]]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if match := name.fullmatch(entry.name):
                passage = int(match[1]), int(match[2])
                found.setdefault(passage, []).append((int(match[3] or 0), entry.path))
    return {passage: [path for _, path in sorted(paths)] for passage, paths in found.items()}


def _passages(path: str) -> Iterator[dict[str, Any]]:
    """The passages of a file.

    Raises:
        DataError: It is not JSON of SQuAD's form.
    """
    try:
        for article, entry in enumerate(parse_json(read_text(path))["data"]):
            for paragraph, passage in enumerate(entry["paragraphs"]):
                yield {
                    "article": article,
                    "paragraph": paragraph,
                    "title": entry.get("title"),
                    "context": passage["context"],
                    "questions": [
                        {
                            "id": str(question["id"]),
                            "question": question["question"].strip(),
                            "answers": list(dict.fromkeys(answer["text"] for answer in question["answers"])),
                        }
                        for question in passage["qas"]
                    ],
                }
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        if isinstance(exc, DataError):
            raise
        raise DataError(f"{path!r} is not JSON of SQuAD's form: {type(exc).__name__}: {exc}") from exc


def _questions(passage: Mapping[str, Any], audio: Sequence[str], place: str) -> Iterator[dict[str, Any]]:
    for question in passage["questions"]:
        if not question["answers"]:
            raise DataError(f"{place}: question {question['id']!r} has no answer")
        answer = question["answers"][0]
        yield {
            **question,
            "title": passage["title"],
            "context": passage["context"],
            "answer": answer,
            "audio": audio,
        }


def _with_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its conversation, which is made when it is asked for."""
    if len(row["audio"]) == 1:
        return {**row, "audio": row["audio"][0], "messages": None}
    heard = [{"type": "audio", "path": path} for path in row["audio"]]
    messages = [
        Message(role="user", content=[*heard, {"type": "text", "text": row["question"]}]),
        Message(role="assistant", content=[{"type": "text", "text": row["answer"]}]),
    ]
    return {**row, "audio": None, "messages": messages}

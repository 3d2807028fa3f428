"""Reads meetings of the NITE XML toolkit as rows. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.data.faults import Faults
from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection
from speechlmm_core.registry import nearest
from speechlmm_train.corpora.layout import Found, fill
from speechlmm_train.corpora.nxt.words import Segment, join_words, pack_words, read_segments, read_words, with_words
from speechlmm_train.corpora.rows import Rows
from speechlmm_train.corpora.xml import read_xml

if TYPE_CHECKING:
    from speechlmm_train.corpora.nxt.config import NXTDatasetConfig

SEGMENT_COLUMNS = ("id", "meeting", "agent", "channel", "speaker", "text", "start", "end", "words", "audio")
MEETING_COLUMNS = ("id", "meeting", "text", "transcript", "audio")


def read_meetings(config: NXTDatasetConfig, root: Path, selection: Selection) -> Rows:
    """Reads the meetings of a part of the corpus.

    Raises:
        DataError: There is no such partition, files are missing, or their XML is not what it must be.
    """
    wanted = selection.partition
    if wanted is not None and wanted not in config.splits:
        known = ", ".join(config.splits)
        raise DataError(f"there is no partition {wanted!r}{nearest(wanted, list(config.splits))} (there are: {known})")
    files = config.layout().find(root, replace(selection, partition=None))
    meetings: dict[str, list[Found]] = {}
    for found in files:
        if wanted is None or found.told["meeting"].startswith(config.splits[wanted]):
            meetings.setdefault(found.told["meeting"], []).append(found)
    if not meetings:
        raise DataError(f"{str(root)!r} has no annotations of the meetings of {wanted!r}")
    reader = _Reader(config, root)
    faults = Faults()
    for order, (meeting, agents) in enumerate(meetings.items()):
        try:
            reader.meeting(meeting, agents)
        except DataError as exc:
            faults.add(meeting, str(exc), order=order)
    faults.raise_if_any()
    if not reader.rows:
        kind = "segments with words" if config.rows == "segments" else "summaries"
        raise DataError(f"the {len(meetings)} meetings of {wanted or 'the corpus'!r} in {str(root)!r} have no {kind}")
    columns = SEGMENT_COLUMNS if config.rows == "segments" else MEETING_COLUMNS
    told = [{} if wanted is None else {"partition": wanted}] * len(reader.rows)
    finish = with_words if config.rows == "segments" else None
    return Rows(columns, reader.rows, reader.places, str(root), told, reader.sources, finish)


class _Reader:
    """Collects rows meeting by meeting."""

    def __init__(self, config: NXTDatasetConfig, root: Path) -> None:
        self.config, self.root = config, root
        self.rows: list[Mapping[str, Any]] = []
        self.places: list[str] = []
        self.sources: list[Path] = []
        self._participants: dict[tuple[str, str], dict[str, str]] | None = None

    def meeting(self, name: str, files: list[Found]) -> None:
        top = _top(files[0].path, self.config.files)
        turns = [turn for found in files for turn in self._turns(found, top)]
        if self.config.rows == "segments":
            for place, row in turns:
                self.rows.append(row)
                self.places.append(place)
            return
        paths = (
            os.path.join(top, fill("summaries", form, {"root": self.root, "meeting": name}))
            for form in self.config.summaries
        )
        path = next((path for path in paths if os.path.exists(path)), None)
        if path is None:
            return  # many meetings were never summed up
        self.sources.append(Path(path))
        summary = _summary(path, self.config.sections)
        if summary:
            turns.sort(key=lambda turn: (turn[1]["start"], turn[1]["end"]))
            spoken = "\n".join(f"{row['agent']}: {row['text']}" for _, row in turns)
            audio = fill("audio", self.config.audio, {"root": self.root, "meeting": name})
            self.rows.append({"id": name, "meeting": name, "text": summary, "transcript": spoken, "audio": audio})
            self.places.append(path)

    def _turns(self, found: Found, top: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The segments of one speaker, with their places."""
        meeting, agent = found.told["meeting"], found.told["agent"]
        path = os.path.join(top, fill("segments", self.config.segments, {"meeting": meeting, "agent": agent}))
        if not os.path.exists(path):
            return  # who says nothing has words (coughs), but no segments
        self.sources += [Path(found.path), Path(path)]
        person = self._person(meeting, agent, top)
        words = read_words(found.path)
        for segment in read_segments(path, words, start=self.config.start, end=self.config.end):
            text = join_words(segment.words)
            if text:
                yield f"{path}#{segment.id}", self._row(segment, text, meeting, agent, person)

    def _row(self, segment: Segment, text: str, meeting: str, agent: str, person: Mapping[str, str]) -> dict[str, Any]:
        channel = person.get("channel", "")
        speaker = person.get("global_name") or segment.participant or f"{meeting}.{agent}"
        told = {"root": self.root, "meeting": meeting, "agent": agent, **({"channel": channel} if channel else {})}
        audio = fill("audio", self.config.audio, told)
        return {
            "id": segment.id,
            "meeting": meeting,
            "agent": agent,
            "channel": channel,
            "speaker": speaker,
            "text": text,
            "start": segment.start,
            "end": segment.end,
            "words": pack_words(segment.words),
            "audio": audio,
        }

    def _person(self, meeting: str, agent: str, top: str) -> Mapping[str, str]:
        if self.config.participants is None:
            return {}
        if self._participants is None:
            path = os.path.join(top, self.config.participants)
            self._participants = {
                (one.get("observation", ""), person.get("nxt_agent", "")): dict(person.attrib)
                for one in read_xml(path).iter("meeting")
                for person in one.iter("speaker")
            }
        person = self._participants.get((meeting, agent))
        if person is None:
            raise DataError(f"{self.config.participants!r} names no agent {agent!r} of this meeting")
        return person


def _summary(path: str, sections: tuple[str, ...]) -> str:
    """The sentences of a summary's parts."""
    root = read_xml(path)
    texts = (
        " ".join("".join(sentence.itertext()).split())
        for section in sections
        for part in root.iter(section)
        for sentence in part.iter("sentence")
    )
    return " ".join(text for text in texts if text and not _is_nothing(text))


def _is_nothing(text: str) -> bool:
    """Whether a sentence only says that a part of the summary is empty."""
    return text.strip("* .").upper() in ("NA", "N/A", "NONE")


def _top(path: str, templates: tuple[str, ...]) -> str:
    """The folder of annotations that a file of words lies in: where the words' folder stands."""
    depth = min(template.count("/") for template in templates)
    return os.path.abspath(os.path.join(os.path.dirname(path), *([os.pardir] * min(depth, 1))))

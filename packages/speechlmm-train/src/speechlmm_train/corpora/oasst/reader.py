"""Reads threads of OpenAssistant's message trees. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.chat.messages import Message
from speechlmm_core.data.faults import Faults
from speechlmm_core.data.text_lines import check_regular, each_line
from speechlmm_core.errors import DataError
from speechlmm_train.corpora.layout import TOLD, Found
from speechlmm_train.corpora.lines import parse_json, unreadable
from speechlmm_train.readers.unpack import unpacked

if TYPE_CHECKING:
    from speechlmm_train.corpora.oasst.config import OasstDatasetConfig

Node = Mapping[str, Any]
_KEPT = ("message_id", "text", "role", "lang")


class OasstThreads:
    """Threads of message trees; implements the `Records` protocol. Messages are kept once, however many share them.

    Args:
        roles: What the corpus calls the user and the assistant.
        root: The corpus' root.
    """

    columns: Sequence[str] = ("id", "tree", "language", "instruction", "text", "messages", "quality", "num_turns")

    def __init__(self, roles: tuple[str, str], root: str) -> None:
        self.roles = {roles[0]: "user", roles[1]: "assistant"}
        self.threads: list[tuple[Node, ...]] = []
        self.places: list[str] = []
        self.told: list[Mapping[str, str]] = []
        self._root = root

    def __len__(self) -> int:
        return len(self.threads)

    def record(self, index: int) -> Mapping[str, Any]:
        """A thread."""
        thread = self.threads[index]
        ratings = [
            node["quality"]
            for node in thread
            if self.roles[node["role"]] == "assistant" and node["quality"] is not None
        ]
        return {
            "id": thread[-1]["message_id"],
            "tree": thread[0]["message_id"],
            "language": thread[0]["lang"],
            "instruction": thread[0]["text"],
            "text": thread[1]["text"],
            "messages": [Message.model_validate({"role": self.roles[n["role"]], "content": n["text"]}) for n in thread],
            "quality": min(ratings) if ratings else None,
            "num_turns": len(thread) // 2,
        }

    def place(self, index: int) -> str:
        """The file and line of a thread's tree, and its last message."""
        return f"{self.places[index]} ({self.threads[index][-1]['message_id']})"

    def root(self, index: int) -> str:
        """The corpus' root."""
        return self._root

    def constants(self, index: int) -> Mapping[str, str]:
        """What the file's path tells."""
        return self.told[index]

    @property
    def sources(self) -> tuple[Path, ...]:
        """Files that say which threads there are."""
        return tuple(Path(path) for path in dict.fromkeys(place.rpartition(":")[0] for place in self.places))


def read_threads(config: OasstDatasetConfig, root: Path, files: Sequence[Found]) -> OasstThreads:
    """Reads the threads of some files.

    Raises:
        DataError: Lines are wrong, or nobody replied to anything.
    """
    found = OasstThreads(config.roles, str(root))
    faults = Faults()
    for file in files:
        told = {name: value for name, value in file.told.items() if name in TOLD}
        for number, line in _numbered(file.path):
            place = f"{file.path}:{number}"
            try:
                threads = _threads(line, config)
            except DataError as exc:
                faults.add(place, str(exc), order=number)
                continue
            for thread in threads:
                found.threads.append(thread)
                found.places.append(place)
                found.told.append(told)
    faults.raise_if_any()
    if not found.threads:
        raise DataError(f"{', '.join(file.path for file in files)}: nobody replied to anything")
    return found


def _numbered(path: str) -> Iterator[tuple[int, bytes]]:
    try:
        check_regular(path)
        with unpacked(Path(path)).open("rb") as file:
            for number, line in enumerate(each_line(file, path), 1):
                if line.strip():
                    yield number, line
    except OSError as exc:
        raise DataError(unreadable(path, exc)) from exc


def _threads(line: bytes, config: OasstDatasetConfig) -> list[tuple[Node, ...]]:
    """The threads of a tree, each from the first message to a reply of the assistant's.

    Raises:
        DataError: The line is no tree.
    """
    try:
        tree = parse_json(line)
        top = tree["prompt"]
        # trees are up to some hundred messages deep, so that the walk keeps its own stack
        stack: list[tuple[Mapping[str, Any], tuple[Node, ...]]] = [(top, ())]
        found: list[tuple[Node, ...]] = []
        while stack:
            raw, above = stack.pop()
            if raw["role"] != config.roles[len(above) % 2]:
                raise DataError(f"message {raw['message_id']!r}: expected one of {config.roles[len(above) % 2]!r}")
            thread = (*above, _node(raw))
            replies = _replies(raw, config.threads)
            answered = len(thread) % 2 == 0
            done = not replies or (config.turns == "first" and answered)
            if done and len(thread) >= 2:
                found.append(thread if answered else thread[:-1])
            elif not done:
                stack += [(reply, thread) for reply in reversed(replies)]
        return list({thread[-1]["message_id"]: thread for thread in found}.values())
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        if isinstance(exc, DataError):
            raise
        raise DataError(f"not a message tree ({type(exc).__name__}: {exc})") from exc


def _replies(raw: Mapping[str, Any], which: str) -> list[Mapping[str, Any]]:
    """The replies to a message that take part, the best first."""
    there = [reply for reply in raw.get("replies") or () if not reply.get("deleted")]
    there.sort(key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))
    return there[:1] if which == "best" else there


def _node(raw: Mapping[str, Any]) -> Node:
    label = (raw.get("labels") or {}).get("quality")
    quality = None if label is None else float(label["value"])
    if not isinstance(raw["text"], str):
        raise TypeError(f"`text` must be a string, got {raw['text']!r:.40}")
    return {**{key: raw.get(key) for key in _KEPT}, "quality": quality}

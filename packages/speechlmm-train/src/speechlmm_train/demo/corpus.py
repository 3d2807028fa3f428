"""Synthesises the demo's speech corpus, FLAC files and JSONL manifests, the same for the same seed; needs no torch."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import soxr
from tqdm import tqdm

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_train.demo.corpus_audio import (
    GAIN,
    NOISE,
    SAMPLING_RATE,
    Utterance,
    start_worker,
    synthesiser,
    write_utterances,
)
from speechlmm_train.demo.espeak import Voice
from speechlmm_train.demo.grammar import SLOTS, TEMPLATES, SentenceSets, sentence_sets

FORMAT = 1
"""Version of what is written below; another one makes the corpus anew."""
CHUNK = 32
"""Utterances that a worker is handed at a time."""
MARKER = "corpus.json"
MANIFESTS = ("train", "test", "test_unseen")
RATES = (140, 190)
"""Slowest and fastest speech, words per minute."""
PITCHES = (-10, 10)
"""How far an utterance lies below and above its speaker's pitch."""
PITCH_RANGES = (30, 70)
"""Flattest and liveliest intonation."""


@dataclass(frozen=True)
class Speaker:
    """A voice with a name and a base pitch."""

    name: str
    language: str
    variant: str
    pitch: int


KNOWN_SPEAKERS: tuple[Speaker, ...] = (
    Speaker("alice", "en-us", "f2", 60),
    Speaker("bruno", "en-us", "m3", 38),
    Speaker("clara", "en", "f3", 55),
    Speaker("duncan", "en-gb-scotland", "m2", 42),
    Speaker("edith", "en-gb-x-rp", "f4", 50),
    Speaker("frank", "en", "m1", 45),
)
"""The voices of the training set and of the test set."""
UNSEEN_SPEAKER = Speaker("george", "en-us", "m7", 48)
"""The voice that is heard in a test set only."""


@dataclass(frozen=True)
class Corpus:
    """A finished corpus: its folder, its manifests, and what is in them."""

    folder: Path
    num_train: int
    num_test: int
    num_unseen: int
    duration_s: float
    """Seconds of audio in all manifests."""
    reused: bool
    """Whether the corpus was already there."""

    @property
    def train(self) -> Path:
        """Manifest to train with."""
        return self.folder / "train.jsonl"

    @property
    def test(self) -> Path:
        """Manifest of held-out sentences by known voices."""
        return self.folder / "test.jsonl"

    @property
    def test_unseen(self) -> Path:
        """Manifest of held-out sentences by a voice that is not in `train`."""
        return self.folder / "test_unseen.jsonl"

    @property
    def text(self) -> Path:
        """Sentences for text-only training, one JSON object a line; none is in a test manifest."""
        return self.folder / "text.jsonl"


def synthesise_corpus(
    folder: str | Path,
    *,
    seed: int = 0,
    num_train: int = 4000,
    num_test: int = 300,
    num_unseen: int = 100,
    num_text: int | None = None,
    workers: int = 2,
    progress: bool = True,
    replace: bool = True,
) -> Corpus:
    """Writes the corpus, or completes or reuses the one that is there.

    A finished corpus with the same settings is reused; an interrupted one is completed; one with other settings is
    replaced. Every file is the same whatever the number of workers.

    Args:
        folder: Where it goes: `audio/`, the manifests, and the marker `corpus.json`.
        seed: Decides sentences, voices and noise.
        num_train: Utterances of the training set, each another sentence.
        num_test: Utterances of the test set.
        num_unseen: Utterances by the unseen voice; their sentences are not in the training set either.
        num_text: Sentences for text-only training, with those of the training set; three times as many by default.
        workers: Processes that synthesise; 1 does it in this one.
        progress: Whether to show a progress bar.
        replace: Whether an earlier corpus with other settings is replaced, or refused.

    Raises:
        MissingDependencyError: eSpeak NG is not installed.
        ConfigError: There is a corpus with other settings, and it may not be replaced.
        DataError: The folder holds something else, or a worker was killed.
    """
    folder = Path(folder).expanduser()
    sentences = sentence_sets(seed, num_train=num_train, num_test=num_test + num_unseen, num_text=num_text)
    settings = _settings(seed, num_train, num_test, num_unseen, len(sentences.text))
    splits = _utterances(seed, sentences, num_test)
    utterances = [one for split in splits.values() for one in split]
    marker = folder / MARKER
    state = _state(folder)
    same = state.get("settings") == settings
    counts = (num_train, num_test, num_unseen)
    if same and state.get("complete") and _all_there(folder, utterances):
        return Corpus(folder, *counts, duration_s=float(state["duration_s"]), reused=True)
    if not same:
        if state and not replace:
            _refuse(folder, state.get("settings"), settings)
        _clear(folder)
    write_text(marker, _dump({"complete": False, "settings": settings}))
    for one in splits:
        (folder / "audio" / one).mkdir(parents=True, exist_ok=True)
    num_samples = _synthesise(folder, utterances, workers, progress)
    durations = {one.id: count / SAMPLING_RATE for one, count in zip(utterances, num_samples, strict=True)}
    for split, members in splits.items():
        _write_lines(folder / f"{split}.jsonl", [_line(one, durations[one.id]) for one in members])
    _write_lines(folder / "text.jsonl", [{"text": text, "language": "en"} for text in sentences.text])
    duration = round(sum(durations.values()), 3)
    write_text(marker, _dump({"complete": True, "duration_s": duration, "settings": settings}))
    return Corpus(folder, *counts, duration_s=duration, reused=False)


def _settings(seed: int, num_train: int, num_test: int, num_unseen: int, num_text: int) -> dict[str, Any]:
    """All that decides the corpus; read back from JSON it compares equal."""
    grammar = json.dumps([SLOTS, TEMPLATES]).encode()
    return {
        "format": FORMAT,
        "seed": seed,
        "num_train": num_train,
        "num_test": num_test,
        "num_unseen": num_unseen,
        "num_text": num_text,
        "sampling_rate": SAMPLING_RATE,
        "speakers": [asdict(speaker) for speaker in (*KNOWN_SPEAKERS, UNSEEN_SPEAKER)],
        "rates": list(RATES),
        "pitches": [list(PITCHES), list(PITCH_RANGES)],
        "gain": list(GAIN),
        "noise": NOISE,
        "grammar": hashlib.sha256(grammar).hexdigest()[:16],
        "versions": {"espeak-ng": synthesiser().version, "soxr": soxr.__version__},
    }


def _refuse(folder: Path, old: Any, new: dict[str, Any]) -> None:
    """Says in what an earlier corpus differs."""
    was = old if isinstance(old, dict) else {}
    short = [key for key in new if was.get(key) != new[key]]
    told = ", ".join(f"{key} {was.get(key)!r} and not {new[key]!r}" for key in short[:3])
    raise ConfigError(
        f"the corpus in {str(folder)!r} was made with {told}; --resume goes on with what is there: name the same "
        "settings, or start anew with --overwrite"
    )


def _utterances(seed: int, sentences: SentenceSets, num_test: int) -> dict[str, list[Utterance]]:
    plan = {
        "train": (sentences.train, KNOWN_SPEAKERS),
        "test": (sentences.test[:num_test], KNOWN_SPEAKERS),
        "test_unseen": (sentences.test[num_test:], (UNSEEN_SPEAKER,)),
    }
    return {
        split: [_utterance(seed, split, index, text, speakers) for index, text in enumerate(texts)]
        for split, (texts, speakers) in plan.items()
    }


def _utterance(seed: int, split: str, index: int, text: str, speakers: Sequence[Speaker]) -> Utterance:
    rng = random.Random(f"{seed} {split} {index}")
    speaker = speakers[index % len(speakers)]
    voice = Voice(
        speaker.language,
        speaker.variant,
        rate=rng.randint(*RATES),
        pitch=speaker.pitch + rng.randint(*PITCHES),
        pitch_range=rng.randint(*PITCH_RANGES),
    )
    name = f"{split}-{index:05d}"
    return Utterance(name, f"audio/{split}/{name}.flac", text, speaker.name, voice, seed=rng.getrandbits(63))


def _state(folder: Path) -> dict[str, Any]:
    """What the marker says; empty where the folder is new."""
    try:
        state = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(
                f"{folder}: expected a new folder or an earlier corpus, but it holds other files and no {MARKER}; "
                "name another folder"
            ) from None
        return {}
    except (OSError, ValueError) as exc:
        raise DataError(f"{folder / MARKER}: cannot be read ({exc}); remove the folder and try again") from exc
    return state if isinstance(state, dict) else {}


def _all_there(folder: Path, utterances: Sequence[Utterance]) -> bool:
    manifests = [folder / f"{name}.jsonl" for name in (*MANIFESTS, "text")]
    present = {path.relative_to(folder).as_posix() for path in (folder / "audio").rglob("*.flac")}
    return present >= {one.audio for one in utterances} and all(path.is_file() for path in manifests)


def _clear(folder: Path) -> None:
    """Removes an earlier corpus; nothing else that may lie in the folder."""
    for name in MANIFESTS:
        shutil.rmtree(folder / "audio" / name, ignore_errors=True)
    for name in (*MANIFESTS, "text"):
        (folder / f"{name}.jsonl").unlink(missing_ok=True)


def _synthesise(folder: Path, utterances: Sequence[Utterance], workers: int, progress: bool) -> list[int]:
    chunks = [utterances[start : start + CHUNK] for start in range(0, len(utterances), CHUNK)]
    counts: list[int] = []
    with tqdm(total=len(utterances), desc="synthesising", unit="utt", disable=not progress) as bar:
        for done in _results(folder, chunks, workers):
            counts.extend(done)
            bar.update(len(done))
    return counts


def _results(folder: Path, chunks: Sequence[Sequence[Utterance]], workers: int) -> Iterator[list[int]]:
    work = partial(write_utterances, folder)
    if min(workers, len(chunks)) <= 1:
        yield from map(work, chunks)
        return
    # Spawned, not forked: the caller may hold threads and torch.
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn"), initializer=start_worker)
    try:
        yield from pool.map(work, chunks)
    except BrokenProcessPool as exc:
        raise DataError(
            f"{folder}: a process that synthesised speech was killed, perhaps for want of memory; "
            "run it again, what is finished is kept"
        ) from exc
    finally:
        pool.shutdown(cancel_futures=True)


def _line(one: Utterance, duration: float) -> dict[str, Any]:
    return {
        "id": one.id,
        "audio": one.audio,
        "text": one.text,
        "task": "asr",
        "language": "en",
        "duration": duration,
        "speaker": one.speaker,
    }


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _dump(state: dict[str, Any]) -> str:
    return json.dumps(state, indent=2) + "\n"

"""Renders the corpus's utterances to FLAC files, in worker processes. Imports neither torch nor pydantic.

Shapes: L samples.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from speechlmm_train.demo.espeak import ESpeak, Voice

SAMPLING_RATE = 16_000
"""Rate of the corpus in Hz."""
GAIN = (0.4, 0.9)
"""Quietest and loudest scale that is put on the synthesiser's output."""
NOISE = 8
"""Largest amplitude of the added noise, in steps of 16 bits (-72 dB)."""


@dataclass(frozen=True)
class Utterance:
    """One file of the corpus: what is said, how, and where it goes."""

    id: str
    audio: str
    """Path relative to the corpus's folder."""
    text: str
    speaker: str
    voice: Voice
    seed: int
    """Decides gain and noise."""


def render(utterance: Utterance) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Synthesises an utterance at 16 kHz, with a random gain and a trace of noise.

    Returns:
        (L,) samples, a function of the utterance alone.
    """
    spoken, rate = synthesiser().synthesise(utterance.text, utterance.voice)  # (L at 22.05 kHz,)
    samples = soxr.resample(spoken.astype(np.float32), rate, SAMPLING_RATE)  # (L,)
    rng = np.random.Generator(np.random.PCG64(utterance.seed))
    gain, level = rng.uniform(*GAIN), rng.integers(1, NOISE, endpoint=True)
    noise = rng.integers(-level, level, size=len(samples), endpoint=True, dtype=np.int16)  # (L,)
    return np.clip(np.rint(gain * samples) + noise, -32768, 32767).astype(np.int16)


def write_utterances(folder: Path, utterances: Sequence[Utterance]) -> list[int]:
    """Writes the utterances that are not there yet.

    Returns:
        The number of samples of each.
    """
    return [_existing(folder / one.audio) or _write(folder / one.audio, one) for one in utterances]


def _existing(path: Path) -> int:
    try:
        return soundfile.info(path).frames
    except soundfile.LibsndfileError:
        return 0  # missing, or cut off by a power failure


def _write(path: Path, utterance: Utterance) -> int:
    samples = render(utterance)
    temporary = path.with_name(f".{path.name}.tmp")
    soundfile.write(temporary, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16", compression_level=0.0)
    os.replace(temporary, path)
    return len(samples)


@cache
def synthesiser() -> ESpeak:
    """This process's eSpeak NG."""
    return ESpeak()


def start_worker() -> None:
    """Leaves Ctrl-C to the parent process, which stops its workers after the files they are at."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

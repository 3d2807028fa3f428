"""Loads damaged audio files within limits of time and memory; a process of its own, for it may die.

    python damaged_audio.py FOLDER FIRST LAST

prints a JSON line for each file before and after it is tried. The damage is a function of the file's number.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import torch  # before the memory is counted

from speechlmm_core.errors import MediaError
from speechlmm_core.media.audio import audio_info, load_audio
from speechlmm_core.media.source import MediaSource

CPU_SECONDS = 5.0
MEMORY = 1_000_000_000
FORMATS = {
    "pcm16.wav": ("WAV", "PCM_16"),
    "pcm24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "rf64.wav": ("RF64", "PCM_16"),
    "a.flac": ("FLAC", "PCM_16"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "a.ogg": ("OGG", "VORBIS"),
    "a.opus": ("OGG", "OPUS"),
    "a.aiff": ("AIFF", "PCM_16"),
    "a.au": ("AU", "PCM_16"),
}
MAGIC = (
    b"RIFF",
    b"RF64",
    b"fLaC",
    b"OggS",
    b"FORM",
    b".snd",
    b"ID3\x04",
    b"\xff\xfb\x90\x00",
    b"caff",
    b"\x1aE\xdf\xa3",
)
EXTREMES = tuple(
    struct.pack(order + kind, value)
    for order in "<>"
    for kind, values in {
        "H": (0, 1, 0x7FFF, 0xFFFF),
        "I": (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF),
        "Q": (0, 1 << 33, (1 << 63) - 1, (1 << 64) - 1),
    }.items()
    for value in values
)
Damage = Callable[[bytearray, np.random.Generator, list[bytes]], bytes]


def originals() -> dict[str, bytes]:
    """Two seconds in each format."""
    rate = 8000
    times = np.arange(2 * rate) / rate
    values = 0.4 * np.sin(2 * np.pi * (300 + 200 * times) * times) + 0.01 * np.random.default_rng(0).normal(
        size=2 * rate
    )
    found: dict[str, bytes] = {}
    for name, (container, subtype) in FORMATS.items():
        buffer = io.BytesIO()
        soundfile.write(buffer, values, rate, format=container, subtype=subtype)
        found[name] = buffer.getvalue()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as target:
        stream = target.add_stream("aac", rate=rate, layout="mono")
        for start in range(0, len(values), 1024):
            frame = av.AudioFrame.from_ndarray(values[None, start : start + 1024].astype(np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return {**found, "a.m4a": buffer.getvalue()}


def cut(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """The end is missing, or the beginning."""
    at = int(rng.integers(len(data)) if rng.random() < 0.6 else rng.integers(min(200, len(data))))
    return bytes(data[:at] if rng.random() < 0.8 else data[at:])


def flip(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Some bits are wrong, anywhere or in the header."""
    top = len(data) if rng.random() < 0.5 else min(128, len(data))
    for at in rng.integers(top, size=int(rng.integers(1, 30))):
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


def extreme(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Numbers of the header are the smallest or largest: sizes, rates, channels."""
    for _ in range(int(rng.integers(1, 4))):
        value = EXTREMES[int(rng.integers(len(EXTREMES)))]
        at = int(rng.integers(min(len(data), 96 if rng.random() < 0.7 else len(data))))
        data[at : at + len(value)] = value
    return bytes(data)


def magic(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """The file begins like another format."""
    name = MAGIC[int(rng.integers(len(MAGIC)))]
    data[: len(name)] = name
    return bytes(data)


def zeros(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """A stretch was never written."""
    first = int(rng.integers(len(data)))
    last = min(len(data), first + int(rng.integers(1, 6000)))
    data[first:last] = (b"\0" if rng.random() < 0.7 else b"\xff") * (last - first)
    return bytes(data)


def splice(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """One file goes over into another, or is in it twice."""
    other = others[int(rng.integers(len(others)))]
    at, to = int(rng.integers(len(data))), int(rng.integers(len(other)))
    return bytes(data[:at]) + other[to:] + (bytes(data[at:]) if rng.random() < 0.5 else b"")


def shuffle(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Blocks are lost, doubled or in the wrong place."""
    size = int(rng.integers(16, 2048))
    blocks = [bytes(data[at : at + size]) for at in range(0, len(data), size)]
    order = rng.integers(len(blocks), size=len(blocks))
    return b"".join(blocks[index] if rng.random() < 0.3 else blocks[at] for at, index in enumerate(order))


DAMAGES: tuple[Damage, ...] = (cut, flip, flip, extreme, extreme, magic, zeros, splice, shuffle)


def damaged(number: int, whole: dict[str, bytes]) -> tuple[str, bytes]:
    """The name and the bytes of a damaged file."""
    rng = np.random.default_rng([7, number])
    names = sorted(whole)
    name = names[number % len(names)]
    damage = DAMAGES[number // len(names) % len(DAMAGES)]
    data = damage(bytearray(whole[name]), rng, list(whole.values()))
    if rng.random() < 0.2 and data:
        data = flip(bytearray(data), rng, [])
    return f"{number}-{damage.__name__}-{name}", data


def attempt(path: Path | MediaSource) -> str:
    """What comes of a file: `loaded`, or why it is refused. Anything else is a fault of ours."""
    outcomes: list[str] = []
    for segment in ({}, {"start": 0.25, "end": 0.75}, {"start": 1.5}):
        try:
            medium = load_audio(path, sampling_rate=16_000, **segment)
            assert medium.num_samples > 0
            assert torch.isfinite(medium.values).all()
            outcomes.append("loaded")
        except MediaError as exc:
            outcomes.append(str(exc))
    try:
        info = audio_info(path)
        assert info.num_samples > 0
        assert info.sampling_rate > 0
    except MediaError as exc:
        outcomes.append(str(exc))
    for outcome in outcomes:
        assert "\n" not in outcome, outcome
        assert outcome == "loaded" or outcome.startswith(str(path)), outcome
        assert len(outcome) < 1000, outcome
    return outcomes[0]


def main() -> None:
    """Tries the files."""
    folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    whole = originals()
    assert torch.get_num_threads()
    for name, data in whole.items():  # everything is imported, and every library's tables are made
        (folder / name).write_bytes(data)
        assert attempt(folder / name) == "loaded", name
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    for number in range(first, last):
        name, data = damaged(number, whole)
        print(json.dumps({"file": name}), flush=True)
        path = folder / name.partition("-")[2]
        path.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        began = time.process_time()
        try:
            outcome = attempt(path)
            if number % 4 == 0:  # the same bytes in memory, as archives and tables have them
                attempt(MediaSource(data=data))
            found = {"outcome": outcome.replace(str(path), "FILE")}
        except Exception:
            found = {"fault": traceback.format_exc()}
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.unlink()
        seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"file": name, **found, "seconds": seconds, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()

"""Speech synthesis by eSpeak NG inside the process, through ctypes. Imports no torch.

The library and its data come with the wheel `espeakng-loader`, an optional extra because eSpeak NG is under the
GPL-3.0. Source: the interface that eSpeak NG documents in its header ``speak_lib.h`` (version 1.52).
"""

from __future__ import annotations

import _ctypes
import atexit
import ctypes
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechlmm_core.errors import MissingDependencyError, SpeechLMMError

AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
POS_CHARACTER = 1
RATE, PITCH, RANGE = 1, 3, 4  # the parameters' numbers
LANGUAGE_FOLDER = "gmw"
"""Where eSpeak NG keeps the West Germanic languages, English among them."""

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """How something is said."""

    language: str = "en-us"
    """Language and accent: ``en`` (British), ``en-us``, ``en-gb-scotland``, ``en-gb-x-rp``, …"""
    variant: str = ""
    """Speaker: ``f1`` to ``f5``, ``m1`` to ``m8``, or another of eSpeak NG's variants."""
    rate: int = 165
    """Words per minute, 80 to 450."""
    pitch: int = 50
    """Base pitch, 0 to 99."""
    pitch_range: int = 50
    """Liveliness of the intonation, 0 to 99; 0 is monotone."""

    @property
    def name(self) -> str:
        """Language and variant, as eSpeak NG writes them."""
        return f"{self.language}+{self.variant}" if self.variant else self.language


class ESpeak:
    """A synthesiser whose samples depend on its arguments alone.

    eSpeak NG keeps state between utterances (phases, flutter, its noise generator) that neither its seed function nor
    terminating it resets; the same words never come out the same twice. So each utterance gets a freshly loaded
    library, which costs half a millisecond. One at a time in a process.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as exc:
            raise MissingDependencyError(
                "speech synthesis needs eSpeak NG, which is not installed; run `pip install 'speechlmm-train[demo]'`"
            ) from exc
        self._library_path = espeakng_loader.get_library_path()
        self._data = _data_folder(Path(espeakng_loader.get_data_path()))
        self._blocks: list[bytes] = []
        self._callback = _Callback(self._collect)
        library = self._load()
        try:
            library.espeak_Info.restype = ctypes.c_char_p
            self.version: str = (library.espeak_Info(None) or b"").decode()
            """Version of eSpeak NG."""
        finally:
            self._unload(library)

    def synthesise(self, text: str, voice: Voice) -> tuple[np.ndarray[Any, np.dtype[np.int16]], int]:
        """Speaks a text.

        Returns:
            The (L,) samples and their rate in Hz.

        Raises:
            SpeechLMMError: eSpeak NG knows no such voice, or made no sound.
        """
        library = self._load()
        try:
            # Named by its file, else the library first reads all 140 voices to find the language.
            if library.espeak_SetVoiceByName(f"{LANGUAGE_FOLDER}/{voice.name}".lower().encode()):
                raise SpeechLMMError(f"eSpeak NG has no voice {voice.name!r}; expected one such as 'en-us+f3'")
            for parameter, value in ((RATE, voice.rate), (PITCH, voice.pitch), (RANGE, voice.pitch_range)):
                library.espeak_SetParameter(parameter, value, 0)
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            self._blocks.clear()
            data = text.encode() + b"\0"
            failed = library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
            if failed or not self._blocks:
                raise SpeechLMMError(f"eSpeak NG made no sound of {text!r} (code {failed}); check the text")
            return np.frombuffer(b"".join(self._blocks), np.int16), self._sampling_rate  # (L,)
        finally:
            self._unload(library)

    def _collect(self, samples: Any, count: int, events: int | None) -> int:
        if samples and count > 0:
            self._blocks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def _load(self) -> ctypes.CDLL:
        try:
            library = ctypes.CDLL(self._library_path)
        except OSError as exc:
            raise MissingDependencyError(
                f"eSpeak NG is installed but cannot be loaded ({exc}); "
                "run `pip install --force-reinstall espeakng-loader`"
            ) from exc
        rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(self._data), INITIALIZE_DONT_EXIT)
        if rate <= 0:
            raise SpeechLMMError(f"eSpeak NG could not start with its data in {self._data} (code {rate})")
        self._sampling_rate: int = rate
        library.espeak_SetSynthCallback(self._callback)
        return library

    @staticmethod
    def _unload(library: ctypes.CDLL) -> None:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)


def _data_folder(data: Path) -> Path:
    """A folder of links to eSpeak NG's data, under a path that the library can use.

    It cuts paths at 160 characters (a deep virtual environment has more), and finds a language's file directly only
    where its name is in lower case.
    """
    folder = Path(tempfile.mkdtemp(prefix="espeak-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for entry in data.iterdir():
        if entry.name != "lang":
            (folder / entry.name).symlink_to(entry)
    languages = folder / "lang" / LANGUAGE_FOLDER
    languages.mkdir(parents=True)
    for entry in (data / "lang" / LANGUAGE_FOLDER).iterdir():
        (languages / entry.name.lower()).symlink_to(entry)
    return folder

"""Names of tasks as people write them, those of the first SpeechLMM among them. Imports no torch."""

from __future__ import annotations

from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.task import tasks
from speechlmm_core.registry import nearest

ALIASES = {
    "sluintentonly": "slu_intent",
    "interleavedtextaudiontp": "interleaved",
}
"""Names of tasks by other names, in small letters and without punctuation."""
SPEECH_OUTPUT = ("tts", "ttsbase", "s2st", "s2stcloning")
"""Tasks of the first SpeechLMM whose answer is speech."""


def task_name(written: str) -> str:
    """The registered name of a task, whatever its case and punctuation (`ASR`, `TextInstruct`, `SLU_INTENT_ONLY`).

    Raises:
        ConfigError: There is no such task.
    """
    available = tasks.names()
    if written in available:
        return written
    plain = _plain(written)
    by_plain = {_plain(name): name for name in available}
    found = by_plain.get(plain, ALIASES.get(plain))
    if found is not None and found in available:
        return found
    listed = ", ".join(available)
    if plain in SPEECH_OUTPUT:
        raise ConfigError(f"task {written!r} answers in speech, which no installed package provides yet ({listed})")
    known = {**by_plain, **ALIASES}
    hint = nearest(plain, list(known))
    if hint:
        near = hint.split("'")[1]
        hint = f"; did you mean {known[near]!r}?"
    raise ConfigError(f"unknown task {written!r}{hint} (available: {listed})")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")

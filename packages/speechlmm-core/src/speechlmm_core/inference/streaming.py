"""Streaming one answer as text, with a stop that the reader can pull at any time.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator, Mapping
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from speechlmm_core.chat.tokenizer import ChatTokenizer
from speechlmm_core.model.speechlmm import SpeechLMM


class _Stop(StoppingCriteria):
    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # declared narrower than what is passed
        self, input_ids: Tensor, scores: Tensor, **_: Any
    ) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)  # (B,)


class IncrementalDecoder:
    """Text of a growing sequence of ids, in pieces that end on whole characters.

    Only the last two pieces are decoded again for each token: a token's text depends on its neighbours (a leading
    space, the bytes of one character), but not on what lies further back.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0
        """How many ids of the window have been given out as text."""

    def add(self, token: int) -> str:
        """The text that a further id completes, which may be none."""
        self._ids.append(token)
        fresh = self._fresh()
        if not fresh or fresh.endswith("\ufffd"):  # the first bytes of a character
            return ""
        del self._ids[: self._given]
        self._given = len(self._ids)
        return fresh

    def rest(self) -> str:
        """What is left at the end."""
        fresh = self._fresh()
        self._given = len(self._ids)
        return fresh

    def _fresh(self) -> str:
        given = self._tokenizer.decode(self._ids[: self._given])
        return self._tokenizer.decode(self._ids)[len(given) :]


class _Streamer(BaseStreamer):
    """Puts text into a queue as `generate` hands over tokens; None is the end."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.queue: SimpleQueue[str | None] = SimpleQueue()
        self._decoder = IncrementalDecoder(tokenizer)
        self._stops = set(tokenizer.stop_token_ids)
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        """Takes the prompt, and then one token after the other."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token in value.flatten().tolist():
            if token not in self._stops:
                self.queue.put(self._decoder.add(token))

    def end(self) -> None:
        """Takes note of the end."""
        self.queue.put(self._decoder.rest())
        self.queue.put(None)


def stream_text(
    model: SpeechLMM, tokenizer: ChatTokenizer, batch: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> Iterator[str]:
    """Generates in a thread and yields the text as it grows.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        batch: One conversation, collated for generation.
        kwargs: Options of `SpeechLMM.generate`.

    Yields:
        Pieces of text of whole characters; joined and stripped they are the answer.
    """
    stop, streamer = _Stop(), _Streamer(tokenizer)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(batch, **kwargs, streamer=streamer, stopping_criteria=StoppingCriteriaList([stop]))
        except BaseException as exc:
            failure.append(exc)
            streamer.queue.put(None)

    thread = threading.Thread(target=work, name="speechlmm-generate", daemon=True)

    def leave() -> None:
        stop.event.set()
        thread.join()

    # A reader that still holds the stream when Python ends, such as in a traceback, does not close it. Python would end
    # the thread in the middle of torch's code, which aborts the process.
    atexit.register(leave)
    thread.start()
    try:
        while (piece := streamer.queue.get()) is not None:
            if piece:
                yield piece
    finally:
        leave()
        atexit.unregister(leave)
    if failure:
        raise failure[0]

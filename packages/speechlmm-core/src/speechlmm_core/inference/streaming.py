"""Streaming one answer as text, with a stop that the reader can pull at any time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from speechlmm_core.chat.tokenizer import ChatTokenizer
from speechlmm_core.model.speechlmm import SpeechLMM


class _Stop(StoppingCriteria):
    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


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
        Pieces of text, cut at word boundaries; joined and stripped they are the answer.
    """
    stop = _Stop()
    streamer = TextIteratorStreamer(
        tokenizer.tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    failure: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(batch, **kwargs, streamer=streamer, stopping_criteria=StoppingCriteriaList([stop]))
        except BaseException as exc:
            failure.append(exc)
            streamer.text_queue.put(streamer.stop_signal)

    thread = threading.Thread(target=work, name="speechlmm-generate", daemon=True)
    thread.start()
    try:
        for piece in streamer:
            if piece:
                yield piece
    finally:
        stop.event.set()
        thread.join()
    if failure:
        raise failure[0]

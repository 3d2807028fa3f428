"""The inference engine: sorts requests by length, batches them, generates, and answers in order.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from speechlmm_core.chat.messages import Message
from speechlmm_core.errors import SpeechLMMError
from speechlmm_core.inference.options import GenerationOptions, Request, Result
from speechlmm_core.inference.streaming import stream_text
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.processor.sample import ProcessedSample

logger = logging.getLogger(__name__)

Numbered = tuple[int, ProcessedSample]

AUTO_POSITIONS = {"cpu": 4096, "cuda": 65536}
"""Padded positions of an automatic batch, by device."""
AUTO_ROWS = {"cpu": 32, "cuda": 256}
"""Rows of an automatic batch at most, by device."""
NUM_LOADERS = 4


class InferenceEngine:
    """Answers conversations with a model, batched or streaming.

    Args:
        model: The model; it is put in evaluation mode.
        processor: Its processor.
    """

    def __init__(self, model: SpeechLMM, processor: SpeechLMMProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> InferenceEngine:
        """Loads a model and its processor; see `SpeechLMM.from_pretrained` for the options.

        Raises:
            CheckpointError: The checkpoint is missing, incomplete or does not fit.
        """
        return cls(SpeechLMM.from_pretrained(path, **kwargs), SpeechLMMProcessor.from_pretrained(path))

    def answer(self, messages: Sequence[Message | dict[str, Any]], options: GenerationOptions | None = None) -> str:
        """The answer to one conversation.

        Raises:
            SpeechLMMError: What is wrong with the conversation.
        """
        sample = self.processor.sample(messages, with_answer=False)
        return self._generate([sample], options or GenerationOptions())[0][0]

    def stream(
        self, messages: Sequence[Message | dict[str, Any]], options: GenerationOptions | None = None
    ) -> Iterator[str]:
        """The answer to one conversation, piece by piece; closing the iterator stops the generation.

        Raises:
            SpeechLMMError: What is wrong with the conversation.
        """
        sample = self.processor.sample(messages, with_answer=False)
        batch = self._batch([sample])
        yield from stream_text(self.model, self.processor.tokenizer, batch, self._kwargs(options))

    def run(
        self,
        requests: Iterable[Request],
        *,
        options: GenerationOptions | None = None,
        batch_size: int | Literal["auto"] = "auto",
        window: int = 256,
    ) -> Iterator[Result]:
        """Answers many requests, in their order; what is wrong with one is its result, and the others go on.

        Args:
            requests: Any number; they are read one window at a time.
            options: How to generate; greedy by default.
            batch_size: Rows of a batch, or `auto` for as many as a budget of positions allows.
            window: Requests that are sorted by length together.

        Yields:
            One result per request, in input order, as soon as all before it are there.
        """
        options = options or GenerationOptions()
        iterator = iter(requests)
        with ThreadPoolExecutor(NUM_LOADERS) as pool:
            while chunk := list(islice(iterator, window)):
                yield from self._run_window(chunk, options, batch_size, pool)

    def _run_window(
        self,
        requests: Sequence[Request],
        options: GenerationOptions,
        batch_size: int | Literal["auto"],
        pool: ThreadPoolExecutor,
    ) -> Iterator[Result]:
        results: dict[int, Result] = {}
        ready: list[Numbered] = []
        for i, loaded in enumerate(pool.map(self._load, requests)):
            if isinstance(loaded, Result):
                results[i] = loaded
            else:
                ready.append((i, loaded))
        # Longest first: if memory does not suffice, that shows at once.
        ready.sort(key=lambda pair: -len(pair[1].layout.input_ids))
        flushed = 0
        for batch in self._batches(ready, batch_size):
            for (i, sample), (text, count, complete) in zip(batch, self._answers(batch, options), strict=True):
                results[i] = Result(requests[i].id, text, None, sample.duration_s, count, complete)
            while flushed in results:
                yield results[flushed]
                flushed += 1
        while flushed in results:
            yield results[flushed]
            flushed += 1

    def _load(self, request: Request) -> ProcessedSample | Result:
        try:
            return self.processor.sample(request.messages, with_answer=False)
        except SpeechLMMError as exc:
            return Result(request.id, None, str(exc))

    def _batches(self, ready: Sequence[Numbered], batch_size: int | Literal["auto"]) -> Iterator[list[Numbered]]:
        device = self.model.device.type
        rows = AUTO_ROWS.get(device, 32) if batch_size == "auto" else batch_size
        budget = AUTO_POSITIONS.get(device, 4096) if batch_size == "auto" else 0
        batch: list[Numbered] = []
        for pair in ready:
            longest = len(batch[0][1].layout.input_ids) if batch else 0
            full = len(batch) >= rows or (budget and (len(batch) + 1) * longest > budget)
            if batch and full:
                yield batch
                batch = []
            batch.append(pair)
        if batch:
            yield batch

    def _answers(self, batch: Sequence[Numbered], options: GenerationOptions) -> list[tuple[str, int, bool]]:
        samples = [sample for _, sample in batch]
        try:
            return self._generate(samples, options)
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(batch) // 2
            logger.warning("a batch of %d does not fit the memory; trying %d at a time", len(batch), half)
            return self._answers(batch[:half], options) + self._answers(batch[half:], options)

    def _generate(self, samples: Sequence[ProcessedSample], options: GenerationOptions) -> list[tuple[str, int, bool]]:
        batch = self._batch(samples)
        ids = self.model.generate(batch, **self._kwargs(options))  # (B, N)
        return [self._decode(row) for row in ids.tolist()]

    def _decode(self, ids: Sequence[int]) -> tuple[str, int, bool]:
        stops = set(self.processor.tokenizer.stop_token_ids)
        for i, token in enumerate(ids):
            if token in stops:
                return self.processor.tokenizer.decode(ids[:i]).strip(), i + 1, True
        return self.processor.tokenizer.decode(ids).strip(), len(ids), False

    def _kwargs(self, options: GenerationOptions | None) -> dict[str, Any]:
        tokenizer = self.processor.tokenizer
        return {
            **(options or GenerationOptions()).kwargs(),
            "eos_token_id": list(tokenizer.stop_token_ids),
            "pad_token_id": tokenizer.pad_token_id,
        }

    def _batch(self, samples: Sequence[ProcessedSample]) -> dict[str, Any]:
        batch = self.processor.collate(samples, packed=False, padding_side="left")
        return to_device(batch, self.model.device)


def to_device(batch: Any, device: torch.device) -> Any:
    """Moves every tensor of a nested batch to a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch

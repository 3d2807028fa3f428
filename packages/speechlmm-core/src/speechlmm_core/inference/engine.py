"""The inference engine: sorts requests by length, batches them, generates, and answers in order.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from speechlmm_core.chat.messages import Message
from speechlmm_core.errors import ConfigError, DataError, SpeechLMMError
from speechlmm_core.inference.options import GenerationOptions, Request, Result
from speechlmm_core.inference.shrinking import generate_shrinking
from speechlmm_core.inference.sizing import Size, batches, measure
from speechlmm_core.inference.streaming import stream_text
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.processor.sample import ProcessedSample

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
Answer = tuple[str, int, bool]
"""Text, generated tokens, and whether it ended by itself."""

NUM_LOADERS = 4
NO_MEMORY = "does not fit into memory; give shorter media (a segment by `start` and `end`), or use a larger device"


class InferenceEngine:
    """Answers conversations with a model, batched or streaming.

    Args:
        model: The model; it is put in evaluation mode.
        processor: Its processor.
    """

    def __init__(self, model: SpeechLMM, processor: SpeechLMMProcessor) -> None:
        self.model = model.eval()
        self.processor = processor
        self.max_positions = _max_positions(model)

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> InferenceEngine:
        """Loads a model and its processor; see `SpeechLMM.from_pretrained` for the options.

        Raises:
            CheckpointError: The checkpoint is missing, incomplete or does not fit.
        """
        return cls(SpeechLMM.from_pretrained(path, **kwargs), SpeechLMMProcessor.from_pretrained(path))

    def prepare(self, messages: Sequence[Message | dict[str, Any]]) -> ProcessedSample:
        """Tokenises a conversation and loads its media: what `answer` and `stream` begin with.

        Raises:
            SpeechLMMError: The conversation cannot be used, or is longer than the model's positions.
        """
        sample = self.processor.sample(messages, with_answer=False)
        self._check(len(sample.layout.input_ids))
        return sample

    def answer(self, messages: Sequence[Message | dict[str, Any]], options: GenerationOptions | None = None) -> str:
        """The answer to one conversation.

        Raises:
            SpeechLMMError: What is wrong with the conversation.
        """
        with _explained_memory():
            return self._generate([self.prepare(messages)], options or GenerationOptions())[0][0]

    def stream(
        self, messages: Sequence[Message | dict[str, Any]], options: GenerationOptions | None = None
    ) -> Iterator[str]:
        """The answer to one conversation, piece by piece; closing the iterator stops the generation.

        Raises:
            SpeechLMMError: What is wrong with the conversation.
        """
        options = options or GenerationOptions()
        if options.num_beams > 1:
            raise ConfigError(f"an answer of a beam search cannot be streamed, got num_beams={options.num_beams}")
        with _explained_memory():
            sample = self.prepare(messages)
            batch = self._batch([sample])
            yield from stream_text(self.model, self.processor.tokenizer, batch, self._kwargs(options, [sample]))

    def run(
        self,
        requests: Iterable[Request],
        *,
        options: GenerationOptions | None = None,
        batch_size: int | Literal["auto"] = "auto",
        window: int = 256,
        ordered: bool = True,
    ) -> Iterator[Result]:
        """Answers many requests; what is wrong with one is its result, and the others go on.

        Args:
            requests: Any number; they are read one window at a time, and their media one batch ahead.
            options: How to generate; greedy by default.
            batch_size: Rows of a batch, or `auto` for as many as budgets of positions and frames allow.
            window: Requests that are sorted by length together.
            ordered: Whether results come in input order; otherwise as soon as they are there, longest requests first.

        Yields:
            One result per request, in input order as soon as all before it are there.
        """
        options = options or GenerationOptions()
        iterator = iter(requests)
        pool = ThreadPoolExecutor(NUM_LOADERS, thread_name_prefix="speechlmm-load")
        try:
            while chunk := list(islice(iterator, window)):
                found = self._run_window(chunk, options, batch_size, pool)
                yield from in_order(found) if ordered else (result for _, result in found)
        finally:
            pool.shutdown(cancel_futures=True)

    def _run_window(
        self,
        requests: Sequence[Request],
        options: GenerationOptions,
        batch_size: int | Literal["auto"],
        pool: ThreadPoolExecutor,
    ) -> Iterator[tuple[int, Result]]:
        """Results with the numbers of their requests, as they come."""
        began = time.perf_counter()
        sizes: list[tuple[int, Size]] = []
        for i, size in enumerate(pool.map(lambda request: _guarded(self._measure, request), requests)):
            if isinstance(size, Result):
                yield i, size
            else:
                sizes.append((i, size))
        alone_from = None if self.max_positions is None else self.max_positions - options.max_new_tokens
        plan = batches(sizes, batch_size, device=self.model.device.type, alone_from=alone_from)
        for loaded in self._loaded(list(plan), requests, pool):
            samples = {i: one for i, one in loaded.items() if not isinstance(one, Result)}
            yield from ((i, one) for i, one in loaded.items() if isinstance(one, Result))
            results = self._results(requests, samples, options)
            each = (time.perf_counter() - began) / max(len(results), 1)
            yield from ((i, result._replace(seconds=each)) for i, result in results.items())
            if results:  # what was done with them meanwhile is no time of ours
                began = time.perf_counter()

    def _loaded(
        self, plan: Sequence[Sequence[int]], requests: Sequence[Request], pool: ThreadPoolExecutor
    ) -> Iterator[dict[int, ProcessedSample | Result]]:
        """The samples of each batch; those of the next one are read meanwhile."""

        def submit(batch: Sequence[int]) -> dict[int, Future[ProcessedSample | Result]]:
            return {i: pool.submit(_guarded, self._load, requests[i]) for i in batch}

        ahead = submit(plan[0]) if plan else {}
        for number in range(len(plan)):
            now, ahead = ahead, submit(plan[number + 1]) if number + 1 < len(plan) else {}
            yield {i: now.pop(i).result() for i in plan[number]}

    def _measure(self, request: Request) -> Size:
        size = measure(self.processor, request.messages)
        self._check(size.positions)
        return size

    def _load(self, request: Request) -> ProcessedSample:
        return self.processor.sample(request.messages, with_answer=False)

    def _check(self, positions: int) -> None:
        if self.max_positions is not None and positions >= self.max_positions:
            raise DataError(
                f"the conversation takes {positions} positions, more than the language model has "
                f"({self.max_positions}, the answer included); shorten it, or give shorter media"
            )

    def _results(
        self, requests: Sequence[Request], samples: dict[int, ProcessedSample], options: GenerationOptions
    ) -> dict[int, Result]:
        if not samples:
            return {}
        try:
            answers = self._generate(list(samples.values()), options)
        except (RuntimeError, MemoryError) as exc:
            if not _is_out_of_memory(exc):
                raise
        else:
            return {
                i: Result(requests[i].id, text, None, sample.duration_s, count, complete)
                for (i, sample), (text, count, complete) in zip(samples.items(), answers, strict=True)
            }
        # Outside the handler, whose traceback would keep the failed attempt's tensors alive.
        torch.cuda.empty_cache()
        if len(samples) == 1:
            ((i, sample),) = samples.items()
            return {i: Result(requests[i].id, None, f"the conversation {NO_MEMORY}", sample.duration_s)}
        numbers, half = list(samples), len(samples) // 2
        logger.info("a batch of %d does not fit into memory; trying %d at a time", len(samples), half)
        return {
            **self._results(requests, {i: samples[i] for i in numbers[:half]}, options),
            **self._results(requests, {i: samples[i] for i in numbers[half:]}, options),
        }

    def _generate(self, samples: Sequence[ProcessedSample], options: GenerationOptions) -> list[Answer]:
        kwargs = self._kwargs(options, samples)
        if len(samples) > 1 and options.is_greedy:
            kwargs["custom_generate"] = generate_shrinking
        ids = self.model.generate(self._batch(samples), **kwargs)  # (B, N)
        return [self._decode(row) for row in ids.tolist()]

    def _decode(self, ids: Sequence[int]) -> Answer:
        stops = set(self.processor.tokenizer.stop_token_ids)
        for i, token in enumerate(ids):
            if token in stops:
                return self.processor.tokenizer.decode(ids[:i]).strip(), i + 1, True
        return self.processor.tokenizer.decode(ids).strip(), len(ids), False

    def _kwargs(self, options: GenerationOptions, samples: Sequence[ProcessedSample]) -> dict[str, Any]:
        tokenizer = self.processor.tokenizer
        kwargs = options.kwargs()
        if self.max_positions is not None:
            room = self.max_positions - max(len(sample.layout.input_ids) for sample in samples)
            kwargs["max_new_tokens"] = min(options.max_new_tokens, room)
        return {**kwargs, "eos_token_id": list(tokenizer.stop_token_ids), "pad_token_id": tokenizer.pad_token_id}

    def _batch(self, samples: Sequence[ProcessedSample]) -> dict[str, Any]:
        batch = self.processor.collate(samples, packed=False, padding_side="left")
        return to_device(batch, self.model.device)


def in_order(numbered: Iterable[tuple[int, Found]]) -> Iterator[Found]:
    """What comes with numbers from 0 on, in their order, as soon as all before it are there."""
    waiting: dict[int, Found] = {}
    due = 0
    for number, found in numbered:
        waiting[number] = found
        while due in waiting:
            yield waiting.pop(due)
            due += 1


def to_device(batch: Any, device: torch.device) -> Any:
    """Moves every tensor of a nested batch to a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch


def _guarded(work: Callable[[Request], Found], request: Request) -> Found | Result:
    """What the work makes of a request, or what was wrong with it: one request must not end the others."""
    try:
        return work(request)
    except SpeechLMMError as exc:
        return Result(request.id, None, " ".join(str(exc).split()))
    except Exception as exc:
        logger.debug("unexpected error of %r", request.id, exc_info=True)
        return Result(request.id, None, f"{type(exc).__name__}: {' '.join(str(exc).split())}")


def _max_positions(model: SpeechLMM) -> int | None:
    """Positions that the language model was made for; None where it states none."""
    config: Any = model.text_decoder.model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings", most)
    if rope.get("rope_type") in ("linear", "dynamic", "yarn") and original == most:
        return int(most * rope.get("factor", 1.0))  # stated without the stretch
    return most


def _is_out_of_memory(exc: BaseException) -> bool:
    return isinstance(exc, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(exc)


@contextmanager
def _explained_memory() -> Iterator[None]:
    """Says what to do where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as exc:
        if not _is_out_of_memory(exc):
            raise
        raise DataError(f"the conversation {NO_MEMORY}") from exc

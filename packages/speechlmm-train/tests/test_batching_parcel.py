from __future__ import annotations

from typing import Any

import pytest
import torch

from speechlmm_train.batching.parcel import ALIGNMENT, wrap

TENSORS = {
    "features": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).transpose(0, 2),
    "mask": torch.tensor([True, False, True]),
    "number": torch.tensor(7),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "wide": torch.tensor([2**40, -1]),
    "none": torch.empty(0, 5),
}
BATCH: dict[str, Any] = {
    "inputs": TENSORS,
    "listed": [TENSORS["wide"], "a name", (TENSORS["number"], None)],
    "lengths": [3, 4],
}


def check(got: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        for key, value in expected.items():
            check(got[key], value)
    elif isinstance(expected, list | tuple):
        assert type(got) is type(expected)
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            check(one, other)
    else:
        assert got == expected


def test_what_is_wrapped_comes_out_again() -> None:
    parcel = wrap(BATCH)
    opened = parcel.open()
    check(opened, BATCH)
    assert opened["inputs"]["features"].untyped_storage().data_ptr() == parcel.data.untyped_storage().data_ptr()
    assert opened["inputs"]["wide"].data_ptr() % opened["inputs"]["wide"].element_size() == 0
    assert ALIGNMENT % max(tensor.element_size() for tensor in TENSORS.values()) == 0


@pytest.mark.parametrize("batch", [{}, {"words": ["a"]}, {"none": torch.empty(0)}])
def test_there_may_be_nothing_to_lay_out(batch: dict[str, Any]) -> None:
    check(wrap(batch).open(), batch)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_it_goes_through_a_queue() -> None:
    context: Any = torch.multiprocessing.get_context("fork")
    queue, answers = context.Queue(), context.Queue()
    process = context.Process(target=_send, args=(queue, answers))
    process.start()
    check(queue.get(timeout=60).open(), BATCH)
    answers.put(None)
    process.join()


def _send(queue: Any, answers: Any) -> None:
    queue.put(wrap(BATCH))
    answers.get()  # what is sent lives as long as its sender

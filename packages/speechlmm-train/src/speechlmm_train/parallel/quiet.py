"""Keeps what libraries say about themselves, again and again, out of a training's messages."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_IDLE = (
    "unknown inputs or outputs type",
    "Gradient accumulation steps mismatch",
    "arguments do not match the ones in the `trainer_state.json`",
)
"""DeepSpeed's hooks do not see into our own classes, and need not: what lies behind them is gathered at the start of a
forward pass. Accelerate takes DeepSpeed's number of micro-batches, which is the right one. And transformers compares
numbers of its own where a run goes on, which are not those that the run is made of."""

_UNASKED = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",  # a kernel for inference on CPUs
    "DeepSpeed": "Setting accelerator to CPU",
}
"""What libraries tell as soon as they are imported, by the names of their loggers."""

_LOGGERS = ("DeepSpeed", "accelerate.accelerator", "transformers.trainer_utils")


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out warnings of libraries that no user can do anything about."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_wanted)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pin_memory.*")  # no GPU: nothing to pin, and nothing lost
            warnings.filterwarnings("ignore", message=r".*torch\.distributed\..* is deprecated", category=FutureWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_wanted)


def quiet_imports() -> None:
    """Leaves out what libraries tell that others import wherever they are installed, whether or not they are used."""
    for name in _UNASKED:
        logging.getLogger(name).addFilter(_of_use)


def _of_use(record: logging.LogRecord) -> bool:
    return _UNASKED[record.name] not in record.getMessage()


def _wanted(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _IDLE)

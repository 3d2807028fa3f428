"""What all tests share: those marked `gpu` are left out where no GPU can run them, and `-n` spreads whole files."""

from __future__ import annotations

import signal
from pathlib import PurePosixPath
from typing import Any

import pytest

OF_SEVERAL_PROCESSES = (
    "test_launch",
    "test_parallel",
    "test_preflight_memory_ranks",
    "test_preflight_run",
    "test_serve_process",
    "test_train_divergence",
    "test_train_lora_ranks",
    "test_train_resume",
    "test_train_run",
    "test_train_settings",
)
"""Files whose tests start processes that take both cores, or wait for them: never two at a time, and first."""


def pytest_configure() -> None:
    """Has processes that tests start hear Ctrl-C: a shell has what it starts in the background ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests of a GPU on machines without one; pytest's last line says how many."""
    items.sort(key=lambda item: not _of_several_processes(item.nodeid))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # some packages' tests need none, and it takes a second to import

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, gives each worker whole files, in the order above."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "several processes" if _of_several_processes(nodeid) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


def _of_several_processes(nodeid: str) -> bool:
    return PurePosixPath(nodeid.partition("::")[0]).name.startswith(OF_SEVERAL_PROCESSES)

"""What the tests across packages share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread(tmp_path_factory):
    """A cache of its own, and one thread: the order of a sum depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEECHLMM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)

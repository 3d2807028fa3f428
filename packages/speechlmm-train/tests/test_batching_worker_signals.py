"""Data workers go on when a whole job is told to end, and end with the process that they work for."""

import os
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from speechlmm_train.batching.worker_signals import leave_signals_to_the_parent

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not say who sent a signal")


class Pids(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return os.getpid()


def start(_):
    leave_signals_to_the_parent()


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_worker_outlives_a_signal_to_all(monkeypatch):
    loader = DataLoader(Pids(), num_workers=1, prefetch_factor=1, worker_init_fn=start, multiprocessing_context="fork")
    batches = iter(loader)
    worker = int(next(batches))
    assert worker != os.getpid()
    # From another process than the one that it works for, as a batch system's.
    code = f"import os, signal; [os.kill({worker}, s) for s in (signal.SIGTERM, signal.SIGUSR1)]"
    subprocess.run([sys.executable, "-c", code], check=True)
    time.sleep(0.2)
    assert [int(batch) for batch in batches] == [worker] * 5
    process = batches._workers[0] if hasattr(batches, "_workers") else None
    del batches
    assert process is None or not process.is_alive()


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_worker_ends_when_its_process_says_so():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        leave_signals_to_the_parent()
        os.write(write, b"x")
        time.sleep(60)
        os._exit(1)
    os.read(read, 1)
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0

"""The end of a process that worked with others: what is taken down, and what is waited for."""

import ctypes
import hashlib
import sys
import threading
import time
from contextlib import suppress

import pytest
import torch

from speechlmm_train.parallel import leaving
from speechlmm_train.parallel.leaving import leave, own_variables_kept, settle

NAME = "pt_tried"


@pytest.mark.parametrize("ends", ["well", "fault", "later_fault", "well_again"])
def test_a_group_is_taken_down_after_a_run_that_ended_well_alone(monkeypatch, ends):
    """NCCL waits there for the other processes, which a fault may have ended or left elsewhere."""
    left = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append("left"))
    monkeypatch.setattr(leaving, "_last", leaving._Last())
    if ends != "well":
        with suppress(RuntimeError), own_variables_kept():  # one that whoever called `run` has taken
            raise RuntimeError("out of memory")
    if ends != "fault":
        with own_variables_kept():
            leave()
            assert left == [], "a run that a process is ended in, such as by `sys.exit`"
    if ends == "later_fault":
        monkeypatch.setattr(sys, "last_value", RuntimeError("no traceback without it"), raising=False)
    leave()
    assert left == (["left"] if ends.startswith("well") else [])


@pytest.fixture
def thread():
    """Starts a thread under the name of a group's."""
    started = []

    def start(work):
        ready = threading.Event()

        def named():
            ctypes.CDLL(None).prctl(15, NAME.encode())  # PR_SET_NAME: what torch's threads are called by
            ready.set()
            work()

        started.append(threading.Thread(target=named))
        started[-1].start()
        ready.wait()

    yield start
    for one in started:
        one.join()


linux = pytest.mark.skipif(sys.platform != "linux", reason="the system does not list a process's threads")


@linux
def test_a_thread_at_work_is_waited_for(thread):
    """What it computes needs no lock of Python's: it is on a processor, or would be."""
    done = []
    thread(lambda: done.append(hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000)))
    assert not done
    assert settle(60, NAME)
    assert done


@linux
def test_a_thread_that_wants_the_lock_gets_it(thread):
    """It asks for it again and again while others have it, and sleeps between."""
    done = []

    def work():
        for _ in range(200):  # in C, where the lock is let go, and back
            time.sleep(0.001)
        done.append(True)

    thread(work)
    assert settle(60, NAME)
    assert done


@linux
def test_a_thread_at_rest_is_not_waited_for(thread):
    over = threading.Event()
    try:
        thread(over.wait)
        began = time.monotonic()
        assert settle(60, NAME)
        assert settle(60, "pt_nobody")
        assert time.monotonic() - began < 30
    finally:
        over.set()


@linux
def test_a_thread_that_never_rests_is_not_waited_for_without_end(thread):
    over = []

    def work():
        while not over:
            time.sleep(0.001)

    try:
        thread(work)
        assert not settle(0.2, NAME)
    finally:
        over.append(True)


def test_where_threads_are_not_listed_a_moment_has_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(leaving, "TASKS", tmp_path / "gone")
    assert not settle(60, NAME)


@linux
def test_torch_calls_its_threads_by_the_name_that_is_looked_for():
    """One group, whose threads are at rest as soon as its work is done."""
    store = torch.distributed.HashStore()
    group = torch.distributed.ProcessGroupGloo(store, 0, 1)
    group.allreduce([torch.ones(3)]).wait()
    assert leaving._switches(leaving.THREADS)
    assert settle(60)

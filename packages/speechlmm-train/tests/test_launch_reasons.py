"""What is said where ranks fail, and which of them is the reason. The ends of processes are made up here."""

import json
import signal
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from speechlmm_train.launch.processes import Group, run_processes
from speechlmm_train.launch.reasons import reason_of

MISSES = "another process ended (waiting for a value of every rank); its own message says why"
TRACEBACK = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'first'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 12, in <module>
    first() / 0
    ~~~~~~~~^~~
ZeroDivisionError: division by zero
"""


@pytest.fixture
def ranks(tmp_path, monkeypatch, capfd):
    """Ends ranks as told; gives the exit code, what is said besides what rank 0 says, and the reason for the state."""

    def do(*ends, node=0, nodes=1, later=()):
        logs = tmp_path / "logs"

        def launch(*_):
            failures = {}
            for rank, code, said in sorted(ends, key=lambda one: one[0] in later):
                (logs / f"rank-{rank}.err").write_text(said)
                failure = ProcessFailure(rank, 1, code, "")
                failure.timestamp = 1000 + 30 * (rank in later)
                failures[rank] = failure
            raise ChildFailedError("test", failures)

        monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: launch)
        group = Group(node=node, nodes=nodes)
        code = run_processes(["a.py"], processes=2, logs=logs, group=group)
        shown = (logs / "rank-0.err").read_text() if node == 0 else ""
        err = capfd.readouterr().err
        for part in (shown, f"the logs of all ranks are in {logs}\n"):
            assert part in err
            err = err.replace(part, "", 1)
        reason = reason_of(logs, code, range(2 * node, 2 * node + 2))
        return SimpleNamespace(code=code, err=err, reason=reason, logs=logs)

    return do


def misses(rank):
    return rank, 2, f"error: rank {rank}: {MISSES}\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_rank_that_a_signal_ends_is_the_reason_and_not_one_that_misses_it(ranks, number):
    ended = ranks(misses(0), (1, -number, "loading\n"))
    assert ended.code == 128 + number
    assert ended.reason == f"rank 1 was ended by {number.name}; see {ended.logs / 'rank-1.err'}"
    assert ended.err == f"error: {ended.reason}\nerror: loading\n"


def test_a_rank_that_leaves_a_traceback_is_the_reason_by_its_last_line(ranks):
    ended = ranks(misses(0), (1, 1, TRACEBACK))
    assert ended.code == 1
    assert ended.reason == f"rank 1: ZeroDivisionError: division by zero; see {ended.logs / 'rank-1.err'}"
    assert ended.err == f"error: {ended.reason}\n"


def test_the_traceback_of_one_that_misses_another_is_not_the_reason(ranks):
    misses_it = f"{TRACEBACK.rpartition('Zero')[0]}speechlmm_core.errors.SpeechLMMError: rank 0: {MISSES}\n"
    ended = ranks((0, 1, misses_it), (1, 1, TRACEBACK))
    assert ended.reason.startswith("rank 1: ZeroDivisionError")


def test_what_a_rank_says_is_the_reason_with_its_exit_code(ranks):
    ended = ranks(misses(0), (1, 1, "error: the disk is full\n"))
    assert (ended.code, ended.reason) == (1, "the disk is full")
    assert ended.err == "error: rank 1: the disk is full\n"


def test_a_rank_that_says_nothing_is_named_with_its_exit_code(ranks):
    ended = ranks(misses(0), (1, 7, "working\n"))
    assert ended.code == 7
    assert ended.reason == f"rank 1: exit code 7; see {ended.logs / 'rank-1.err'}"
    assert ended.err == "error: rank 1 failed with exit code 7:\nerror: working\n"


def test_what_the_first_rank_has_said_is_not_said_again(ranks):
    ended = ranks((0, 2, "error: rank 1: a wrong row\n"), (1, 2, "error: a wrong row\n"))
    assert (ended.code, ended.err, ended.reason) == (2, "", "rank 1: a wrong row")
    # Another fault is, whatever rank 0 has to say.
    ended = ranks((0, 1, "error: no reply\n"), (1, -signal.SIGKILL, ""), later=[0])
    assert (ended.code, ended.err) == (137, f"error: {ended.reason}\n")


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM])
def test_a_rank_that_the_launcher_ends_is_not_the_reason(ranks, code):
    ended = ranks((0, code, ""), (1, 1, TRACEBACK), later=[0])
    assert (ended.code, ended.reason.partition(":")[0]) == (1, "rank 1")
    ended = ranks((0, code, ""), misses(1), later=[0])  # another node's has failed
    assert (ended.code, ended.reason) == (2, f"rank 1: {MISSES}")


def test_one_that_has_stopped_as_it_was_asked_to_is_not_outdone_by_those_that_are_then_ended(ranks):
    ended = ranks((0, 75, "error: stopped after step 3\n"), (1, -signal.SIGTERM, ""))
    assert (ended.code, ended.reason) == (75, "stopped after step 3")
    ended = ranks(misses(0), (1, -signal.SIGTERM, ""))
    assert ended.code == 143


def test_ranks_of_another_node_do_not_count(ranks):
    ended = ranks(misses(2), (3, 2, f"error: rank 3: {MISSES}\n"), node=1, nodes=2)
    assert (ended.code, ended.reason) == (2, f"rank 2: {MISSES}")
    assert ended.err == f"error: rank 2: {MISSES}\n"


@pytest.mark.parametrize(
    ("wrote", "code", "reason"),
    [
        ([misses(0)[2], "error: the disk is full\n"], 2, "the disk is full"),
        ([misses(0)[2], TRACEBACK], 1, "rank 1: ZeroDivisionError: division by zero; see "),
        ([misses(0)[2], ""], 137, "ended by SIGKILL; see the logs in "),
        ([misses(0)[2], misses(1)[2]], 2, f"rank 0: {MISSES}"),
        (["error: interrupted\n", ""], 130, "interrupted"),
    ],
)
def test_where_the_launcher_has_left_nothing_the_logs_tell(tmp_path, wrote, code, reason):
    for rank, text in enumerate(wrote):
        (tmp_path / f"rank-{rank}.err").write_text(text)
    assert reason_of(tmp_path, code, range(2)).startswith(reason)
    # Nor does it, if it ended in another way than the one that was left.
    (tmp_path / "rank-1.failed").write_text(json.dumps([99, "of old"]))
    assert reason_of(tmp_path, code, range(2)).startswith(reason)

"""Several ranks of one program on this machine, through torch's elastic launcher (what `torchrun` stands on)."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from speechlmm_core.errors import ConfigError
from speechlmm_core.wording import FAULT, INTERRUPTED
from speechlmm_train.launch.tail import Follower, tail

TERMINATED = 143
TIMED_OUT = 124
_SHUTDOWN_S = 60
_STOPPING_S = 600
"""Seconds that ranks have to save a checkpoint after SIGTERM."""
_LOGGERS = ("multiprocessing.api", "multiprocessing.errors", "agent.server.api", "agent.server.local_elastic_agent")


@dataclass(frozen=True)
class Group:
    """How the processes of this machine belong to those of others."""

    node: int = 0
    """Which machine this is."""
    nodes: int = 1
    address: str = "127.0.0.1"
    """Where the first machine is."""
    port: int = 0
    """The first machine's port; 0 for any, where there is one machine alone."""
    name: str = field(default_factory=lambda: f"speechlmm-{os.getpid()}")
    """What all machines of the group know it by."""
    timeout_s: int = 600
    """How long to wait for the others."""


def run_processes(
    arguments: Sequence[str],
    *,
    processes: int,
    logs: Path,
    group: Group | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Runs `python <arguments>` several times, and waits.

    Rank 0's output goes to this process's own. All ranks' goes to `rank-<N>.out` and `rank-<N>.err`. The first that
    fails ends all.

    Args:
        arguments: What follows `python`.
        processes: How many on this machine.
        logs: Folder of the logs; it is made.
        group: Other machines, if any take part.
        timeout: Seconds after which all are ended.
        env: Environment variables for the processes.

    Returns:
        0, or the exit code of the first that failed; 128 and the number if a signal ended it; 130 after Ctrl-C, 143
        after SIGTERM, 124 after the time-out.

    Raises:
        ConfigError: The port is in use.
    """
    group = group or Group()
    if group.port and group.node == 0 and not port_is_free(group.port):
        raise ConfigError(
            f"port {group.port} is in use on this machine; choose another one with --port, or leave that out"
        )
    logs.mkdir(parents=True, exist_ok=True)
    with _environment({**default_environment(processes), **(env or {})}), _alarm(timeout):
        try:
            return _launch(arguments, processes, logs, group)
        except _StoppingError:
            return TERMINATED
        except TimeoutError:
            os.write(2, f"error: not finished after {timeout:.0f} s; ended\n".encode())
            return TIMED_OUT


def _launch(arguments: Sequence[str], processes: int, logs: Path, group: Group) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from speechlmm_train.launch.rank_logs import RankLogs

    for name in _LOGGERS:  # what they tell about a failure is told here, in fewer words
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    first_rank = group.node * processes
    static = group.nodes > 1
    config = LaunchConfig(
        min_nodes=group.nodes,
        max_nodes=group.nodes,
        nproc_per_node=processes,
        logs_specs=RankLogs(logs, first_rank),
        run_id=group.name,
        rdzv_backend="static" if static else "c10d",
        rdzv_endpoint=f"{group.address}:{group.port}",
        rdzv_configs={"timeout": group.timeout_s, **({"rank": group.node} if static else {"is_host": True})},
        local_addr=group.address if not static else None,
        max_restarts=0,
        monitor_interval=0.2,
        shutdown_timeout=_SHUTDOWN_S,
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
    )
    shown = [Follower(logs / f"rank-0.{kind}", stream) for kind, stream in (("out", 1), ("err", 2))]
    try:
        with _following(shown if group.node == 0 else []), _passing_on_sigterm():
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as exc:
        rank, failure = exc.get_first_failure()
        return _tell(rank, failure.exitcode, logs)
    except SignalException as exc:
        return INTERRUPTED if exc.sigval == signal.SIGINT else 128 + exc.sigval
    return 0


def _tell(rank: int, code: int, logs: Path) -> int:
    """Says which rank failed unless rank 0 has said why, and returns the exit code."""
    said = tail(logs / "rank-0.err", 200)
    if code < 0:
        name = signal.Signals(-code).name
        lines = [f"rank {rank} was ended by {name}", *tail(logs / f"rank-{rank}.err", 10)]
    else:
        log = logs / f"rank-{rank}.err"
        faults = [line.removeprefix("error: ") for line in tail(log, 200) if line.startswith("error: ")]
        lines = [f"rank {rank}: {line}" for line in faults] or [
            f"rank {rank} failed with exit code {code}:",
            *tail(log, 20),
        ]
    if rank != 0 and any(line.startswith("error: ") for line in said):
        lines = []
    if rank != 0 or code < 0:
        for line in lines:
            os.write(2, f"error: {line}\n".encode())
    if code:
        os.write(2, f"the logs of all ranks are in {logs}\n".encode())
    return 128 - code if code < 0 else code or FAULT


def default_environment(processes: int) -> dict[str, str]:
    """One thread for each of several processes, as they share the cores; what the user set stays."""
    return {} if processes == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}


def port_is_free(port: int) -> bool:
    """Whether a port of this machine can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError in the block when the time is up."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before: Any = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _StoppingError(Exception):
    """Ranks have not ended long after SIGTERM."""


@contextmanager
def _passing_on_sigterm() -> Iterator[None]:
    """Hands SIGTERM to the ranks, which may save a checkpoint before they end; their exit code is then the run's."""
    import psutil

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise _StoppingError

    def pass_on(_signal: int, _frame: FrameType | None) -> None:
        for rank in psutil.Process().children():
            with suppress(psutil.Error):
                rank.terminate()
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, _STOPPING_S)

    before: Any = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _following(followers: Sequence[Follower]) -> Iterator[None]:
    threads = [threading.Thread(target=follower.run, daemon=True) for follower in followers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for follower in followers:
            follower.stop()
        for thread in threads:
            thread.join()

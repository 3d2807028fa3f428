"""Several ranks of one program on this machine, through torch's elastic launcher (what `torchrun` stands on)."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from speechlmm_core.errors import ConfigError
from speechlmm_core.wording import FAULT, INTERRUPTED
from speechlmm_train.environment import environment
from speechlmm_train.interrupts import interrupted_by
from speechlmm_train.launch.cause import TERMINATED, Failure, first_cause
from speechlmm_train.launch.reasons import failure_of, faults_in, leave, log_of, raised_in, signal_name
from speechlmm_train.launch.surroundings import StoppingError, alarm, following, passing_on
from speechlmm_train.launch.tail import Follower, tail

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

TIMED_OUT = 124
_SHUTDOWN_S = 60
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
    shown = [Follower(logs / f"rank-0.{kind}", stream) for kind, stream in (("out", 1), ("err", 2))]
    variables = {**default_environment(processes), **(env or {})}
    with environment(variables), alarm(timeout), following(shown if group.node == 0 else []):
        try:
            if processes == group.nodes == 1:
                return _alone(arguments, logs)
            return _launch(arguments, processes, logs, group)
        except StoppingError:
            return TERMINATED
        except TimeoutError:
            os.write(2, f"error: not finished after {timeout:.0f} s; ended\n".encode())
            return TIMED_OUT


def _alone(arguments: Sequence[str], logs: Path) -> int:
    """A single process: nothing has to be agreed on, and torch need not be imported to start it."""
    with passing_on([signal.SIGINT, signal.SIGTERM]):
        # In a session of its own, so that each signal reaches it once.
        with (logs / "rank-0.out").open("wb") as out, (logs / "rank-0.err").open("wb") as err:
            process = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=err, start_new_session=True)
        try:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
    if code < 0:
        os.write(2, f"error: the run was ended by {signal_name(-code)}\n".encode())
    return 128 - code if code < 0 else code


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
        signals_to_handle="SIGHUP,SIGQUIT",
    )

    def interrupted() -> SignalException:
        return SignalException("interrupted", sigval=signal.SIGINT)

    try:
        # The launcher's own handler takes a second signal for a reason to end ranks that still say what is left.
        with passing_on([signal.SIGTERM]), interrupted_by(interrupted):
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as exc:
        return _tell(exc.failures, logs)
    except SignalException as exc:
        return INTERRUPTED if exc.sigval == signal.SIGINT else 128 + exc.sigval
    return 0


def _tell(failures: Mapping[int, ProcessFailure], logs: Path) -> int:
    """Says which rank failed, and how, unless rank 0 has said so; returns the exit code.

    Args:
        failures: Of the ranks of this machine, in the order in which they were seen.
        logs: Folder of the logs.
    """
    first = min(one.timestamp for one in failures.values())
    # Those that failed later, the launcher has ended. Times are whole seconds.
    exits = {rank: one.exitcode for rank, one in failures.items() if one.timestamp <= first + 1}
    found = {rank: failure_of(log_of(logs, rank), code, name=f"rank {rank}") for rank, code in exits.items()}
    rank = first_cause(found)
    for line in _lines(rank, exits[rank], found[rank], logs):
        os.write(2, f"error: {line}\n".encode())
    os.write(2, f"the logs of all ranks are in {logs}\n".encode())
    leave(logs, rank, found[rank])
    return found[rank].code or FAULT


def _lines(rank: int, code: int, failure: Failure, logs: Path) -> list[str]:
    """What is to be said of a rank's failure, besides what is shown of rank 0."""
    log = log_of(logs, rank)
    if code < 0 and not failure.tells_of_another:
        return [failure.reason, *tail(log, 10)]
    if rank == 0:
        return []
    said = faults_in(log)
    if not said:
        return [failure.reason] if raised_in(log) else [f"rank {rank} failed with exit code {code}:", *tail(log, 20)]
    shown = faults_in(log_of(logs, 0))
    lines = [f"rank {rank}: {line.removeprefix(f'rank {rank}: ')}" for line in said]
    return [] if any(said[0] in line for line in shown) else lines


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

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

from speechlmm_core.errors import ConfigError
from speechlmm_core.wording import FAULT, INTERRUPTED
from speechlmm_train.environment import environment
from speechlmm_train.launch.surroundings import StoppingError, alarm, following, passing_on
from speechlmm_train.launch.tail import Follower, tail
from speechlmm_train.parallel.ranks import ELSEWHERE

TERMINATED = 143
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
        os.write(2, f"error: the run was ended by {signal.Signals(-code).name}\n".encode())
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
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
    )
    try:
        with passing_on([signal.SIGTERM]):
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as exc:
        rank, failure = exc.get_first_failure()
        return _tell(rank, failure.exitcode, logs)
    except SignalException as exc:
        return INTERRUPTED if exc.sigval == signal.SIGINT else 128 + exc.sigval
    return 0


def _tell(rank: int, code: int, logs: Path) -> int:
    """Says which rank failed unless rank 0 has said why, and not that another has; returns the exit code."""
    said = [line for line in tail(logs / "rank-0.err", 200) if line.startswith("error: ")]
    if said and all(line.endswith(ELSEWHERE) for line in said):
        said = []
        if code > 0:
            rank = next((one for one in _ranks(logs) if _faults(logs, one)), rank)
    if code < 0:
        name = signal.Signals(-code).name
        lines = [f"rank {rank} was ended by {name}", *tail(logs / f"rank-{rank}.err", 10)]
    else:
        lines = [f"rank {rank}: {line}" for line in _faults(logs, rank)] or [
            f"rank {rank} failed with exit code {code}:",
            *tail(logs / f"rank-{rank}.err", 20),
        ]
    if rank != 0 and said:
        lines = []
    if rank != 0 or code < 0:
        for line in lines:
            os.write(2, f"error: {line}\n".encode())
    if code:
        os.write(2, f"the logs of all ranks are in {logs}\n".encode())
    return 128 - code if code < 0 else code or FAULT


def _faults(logs: Path, rank: int) -> list[str]:
    """What a rank says is wrong, but for the end of another."""
    found = [
        line.removeprefix("error: ") for line in tail(logs / f"rank-{rank}.err", 200) if line.startswith("error: ")
    ]
    return [line for line in found if not line.endswith(ELSEWHERE)]


def _ranks(logs: Path) -> list[int]:
    """The ranks of this machine."""
    return sorted(int(log.stem.removeprefix("rank-")) for log in logs.glob("rank-*.err"))


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

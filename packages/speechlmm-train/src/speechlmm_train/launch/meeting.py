"""How the nodes of a job come together before anything starts: through files in the folder that they share.

Each leaves a file with its name; the first one also says on which port its processes are to be found. One that never
comes up is missed by name, where a rendezvous over the network would only wait.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.errors import SpeechLMMError
from speechlmm_core.wording import FAULT
from speechlmm_train.launch.processes import port_is_free

MEETING = "meeting.json"
FIRST_PORT, PORTS = 20_000, 12_000
"""Below what the system gives to outgoing connections."""


class NodeMissingError(SpeechLMMError):
    """A node of the job did not come up in time."""

    exit_code = FAULT


@dataclass(frozen=True)
class Meeting:
    """Where the processes of all nodes find each other."""

    address: str
    port: int


def meet(
    folder: Path, *, node: int, nodes: Sequence[str], job_id: int, port: int | None = None, timeout_s: float = 600
) -> Meeting:
    """Waits until all nodes of a job are up.

    Args:
        folder: A folder that all of them see, and that no other attempt has used.
        node: Which one this is.
        nodes: Their names; the first one's is the address.
        job_id: The job's number, from which the port follows.
        port: The port, in place of that one.
        timeout_s: Seconds to wait.

    Raises:
        NodeMissingError: One did not come up; or the port that was asked for is in use on the first one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if node == 0:
        found = Meeting(nodes[0], choose_port(job_id, port))
        write_text(folder / MEETING, json.dumps({"address": found.address, "port": found.port}) + "\n")
    write_text(folder / f"node-{node}.up", nodes[node] + "\n")
    deadline = time.monotonic() + timeout_s
    missing: list[str] = []
    while True:
        missing = [name for index, name in enumerate(nodes) if not (folder / f"node-{index}.up").exists()]
        if not missing and (folder / MEETING).exists():
            return Meeting(**json.loads((folder / MEETING).read_text(encoding="utf-8")))
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    raise NodeMissingError(
        f"{len(missing)} of {len(nodes)} nodes did not come up within {timeout_s:g} s: {', '.join(missing)}; see "
        "what SLURM says of them (sinfo -R), leave them out (hydra.launcher.exclude), or wait for longer "
        "(hydra.launcher.node_timeout_s)"
    )


def choose_port(job_id: int, port: int | None = None) -> int:
    """A free port of this machine that follows from a job's number, so that jobs on one node choose different ones.

    Raises:
        NodeMissingError: The port that was asked for is in use.
    """
    if port is not None:
        if not port_is_free(port):
            raise NodeMissingError(
                f"port {port} is in use on the first node; choose another hydra.launcher.port, or leave it out"
            )
        return port
    for step in range(PORTS):
        candidate = FIRST_PORT + (job_id * 7 + step) % PORTS
        if port_is_free(candidate):
            return candidate
    raise NodeMissingError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free on the first node")

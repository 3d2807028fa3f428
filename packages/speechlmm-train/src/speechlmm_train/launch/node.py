"""A node's share of a SLURM job: what submitit runs there, once on each node.

It waits for the other nodes, starts a rank for each GPU, and keeps `launch/state.json`. Before the time limit SLURM
sends SIGUSR2: the ranks are then asked to save a checkpoint (SIGUSR1), and the job is queued again. A job that has been
queued again, for whatever reason, resumes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.errors import SpeechLMMError
from speechlmm_core.wording import word
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.meeting import meet
from speechlmm_train.launch.reasons import reason_of
from speechlmm_train.launch.state import JOB, State
from speechlmm_train.preempted import PREEMPTED
from speechlmm_train.trainer.output_folder import LAUNCH

GRACE_S = 20
"""Seconds to wait for what other nodes say of a failure, well below SLURM's `KillWait`."""


@dataclass(frozen=True)
class Place:
    """Where in which job this process is, as SLURM says by environment variables."""

    job_id: int
    restarts: int
    node: int
    nodes: tuple[str, ...]

    @classmethod
    def of_environment(cls) -> Place:
        """This process's place."""
        environ = os.environ
        return cls(
            int(environ["SLURM_JOB_ID"]),
            int(environ.get("SLURM_RESTART_COUNT", "0")),
            int(environ.get("SLURM_PROCID", "0")),
            node_names(environ["SLURM_JOB_NODELIST"]),
        )

    @property
    def attempt(self) -> str:
        """Name of the folder of this attempt."""
        return f"job-{self.job_id}" + (f"-restart-{self.restarts}" if self.restarts else "")


def node_names(nodelist: str) -> tuple[str, ...]:
    """The nodes that a list of SLURM's (`gpu[01-03,7],login`) stands for, in its order."""
    if shutil.which("scontrol"):
        asked = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return tuple(asked.stdout.split())
    from submitit import JobEnvironment

    return tuple(JobEnvironment().hostnames)  # inside a container there may be no scontrol


class NodeTask:
    """What submitit calls on each node of a job.

    Args:
        output_dir: The run's output folder; the job lies in it.
        processes: Ranks on each node.
        port: Port of the first node; one that follows from the job's number by default.
        node_timeout_s: Seconds to wait for the other nodes.
        signal_delay_s: Seconds between SIGUSR2 and the end.
    """

    def __init__(
        self, output_dir: str, *, processes: int, port: int | None, node_timeout_s: int, signal_delay_s: int
    ) -> None:
        self.output_dir = output_dir
        self.processes = processes
        self.port = port
        self.node_timeout_s = node_timeout_s
        self.signal_delay_s = signal_delay_s
        self._agent: int | None = None

    def __call__(self) -> None:
        """Does this node's share; a failure ends the process with the run's exit code."""
        place = Place.of_environment()
        folder = Path(self.output_dir) / LAUNCH
        attempt = folder / place.attempt
        state = self._begin(place, attempt) if place.node == 0 else None
        try:
            code, reason = self._train(place, folder, attempt), ""
        except SpeechLMMError as exc:
            lines, code = word(exc)
            reason = "; ".join(lines)
            for line in lines:
                _say(f"error: {line}")
        if code:
            first = place.node * self.processes
            reason = reason or reason_of(attempt, code, range(first, first + self.processes))
            _note(attempt, place.node, code, reason)
        if place.node == 0:
            if code and code != PREEMPTED and len(place.nodes) > 1:
                code, reason = _first_failure(attempt, len(place.nodes), (code, reason))
            assert state is not None
            state.over(code, reason).write(Path(self.output_dir))
        elif code == PREEMPTED:
            time.sleep(self.signal_delay_s)  # SLURM ends this task when the first one has queued the job again
        if code:
            sys.exit(code)

    def checkpoint(self) -> object:
        """Called by submitit on the first node before the job is queued again: lets the run save first."""
        from submitit.helpers import DelayedSubmission

        _ask_to_stop(self._agent, patience_s=max(1, self.signal_delay_s - GRACE_S))
        if (state := State.read(Path(self.output_dir))) is not None:
            replace(state.over(PREEMPTED), reason="queued again").write(Path(self.output_dir))
        self._agent = None
        return DelayedSubmission(self)

    def _begin(self, place: Place, attempt: Path) -> State:
        output_dir = Path(self.output_dir)
        before = State.read(output_dir) or State("queued")
        state = before.begun(log=attempt / "rank-0.err", nodes=place.nodes, restarts=place.restarts)
        state = replace(state, job_id=str(place.job_id))
        state.write(output_dir)
        return state

    def _train(self, place: Place, folder: Path, attempt: Path) -> int:
        if place.node == 0:
            job = Job.read(folder / JOB)
            again = place.restarts > 0
            job = replace(job, resume=job.resume or again, overwrite=job.overwrite and not again, progress=True)
            job.write(attempt / JOB)
        found = meet(
            attempt,
            node=place.node,
            nodes=place.nodes,
            job_id=place.job_id,
            port=self.port,
            timeout_s=self.node_timeout_s,
        )
        command = [sys.executable, "-m", "speechlmm_train.launch.agent", str(attempt / JOB)]
        command += ["--processes", str(self.processes), "--node", str(place.node), "--nodes", str(len(place.nodes))]
        command += ["--address", found.address, "--port", str(found.port), "--name", place.attempt]
        command += ["--timeout", str(self.node_timeout_s)]
        # Signals go to all processes of a job. SIGUSR2 is for this one alone, and would end the others.
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        try:
            process = subprocess.Popen(command)
        finally:
            signal.signal(signal.SIGUSR2, before)
        self._agent = process.pid
        while (code := process.poll()) is None:
            time.sleep(0.2)
        return 128 - code if code < 0 else code


def _ask_to_stop(agent: int | None, *, patience_s: float) -> None:
    """Sends SIGUSR1 to the ranks that an agent has started, and waits until all have ended."""
    import psutil

    try:
        watched = psutil.Process(agent) if agent else None
        ranks = watched.children() if watched else []
    except psutil.Error:
        return
    for rank in ranks:
        with suppress(psutil.Error):
            rank.send_signal(signal.SIGUSR1)
    psutil.wait_procs(ranks, timeout=patience_s)


def _note(attempt: Path, node: int, code: int, reason: str) -> None:
    write_text(attempt / f"node-{node}.failed", json.dumps([time.time(), code, reason]) + "\n")


def _first_failure(attempt: Path, nodes: int, own: tuple[int, str]) -> tuple[int, str]:
    """What the node that failed first says: when one fails, the others soon do, for want of it."""
    deadline = time.monotonic() + GRACE_S
    notes: list[Path] = []
    while time.monotonic() < deadline and len(notes) < nodes:
        notes = list(attempt.glob("node-*.failed"))
        time.sleep(0.2)
    said = sorted(json.loads(note.read_text(encoding="utf-8")) for note in notes)
    real = [one for one in said if one[1] < 128] or said  # a signal is how the others were ended
    return (int(real[0][1]), str(real[0][2])) if real else own


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())

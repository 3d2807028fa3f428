"""A node's share of a SLURM job: what submitit runs there, once on each node.

It waits for the other nodes, starts a rank for each GPU, and keeps `launch/state.json`. Before the time limit SLURM
sends SIGUSR2: the ranks are then asked to save a checkpoint (SIGUSR1), and submitit queues the job again. Before it
takes the nodes for another job, SLURM sends SIGTERM to all processes: the ranks save, and the batch script is asked to
queue the job again, for one that has ended by itself is not. It sends SIGTERM, too, when one node has failed and the
others are to end; then that node's note says so, and the job has failed. A job that has been queued again, for whatever
reason, resumes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from speechlmm_core.errors import SpeechLMMError
from speechlmm_core.wording import FAULT, word
from speechlmm_train.launch.cause import Failure
from speechlmm_train.launch.claim import written
from speechlmm_train.launch.job import Job
from speechlmm_train.launch.meeting import meet
from speechlmm_train.launch.notes import first_failure, wait_for_notes, write_note
from speechlmm_train.launch.reasons import reason_of
from speechlmm_train.launch.state import JOB, REQUEUE, State
from speechlmm_train.preempted import PREEMPTED
from speechlmm_train.trainer.output_folder import LAUNCH

GRACE_S = 20
"""Seconds to wait for what other nodes say of a failure, well below SLURM's `KillWait`."""
AGAIN = "to be queued again"


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
        self._saved = False

    def __call__(self) -> None:
        """Does this node's share; a failure ends the process with the run's exit code."""
        place = Place.of_environment()
        attempt = Path(self.output_dir) / LAUNCH / place.attempt
        state = self._begin(place, attempt) if place.node == 0 else None
        ended = self._outcome(place, attempt)
        code, reason = ended.code, ended.reason
        if code:
            write_note(attempt, place.node, code, reason, asked=ended.asked)
        if state is None:
            # A failure here would end the first node, which may still have to see to it that the job is queued again.
            if code not in (0, PREEMPTED) and not ended.asked:
                sys.exit(code)
            return
        if code and len(place.nodes) > 1:
            wait_for_notes(attempt, timeout_s=GRACE_S)
        # Ranks that have saved a checkpoint (75) agreed on it. One that was merely ended may have been so because
        # another node has failed, which would do so again and again.
        if code not in (0, PREEMPTED):
            code, reason = first_failure(attempt) or (code, reason)
        if code == PREEMPTED:
            (attempt.parent / REQUEUE).touch()
            reason = "; ".join(part for part in (reason, AGAIN) if part)
        state.over(code, reason).write(Path(self.output_dir))
        if code:
            sys.exit(code)

    def checkpoint(self) -> object:
        """Called by submitit on the first node before the job is queued again: lets the run save first."""
        from submitit.helpers import DelayedSubmission

        _ask_to_stop(self._agent, patience_s=max(1, self.signal_delay_s - GRACE_S))
        if (state := State.read(Path(self.output_dir))) is not None:
            state.over(PREEMPTED, AGAIN).write(Path(self.output_dir))
        self._agent = None
        self._saved = True
        return DelayedSubmission(self)

    def _outcome(self, place: Place, attempt: Path) -> Failure:
        """How this node's ranks ended; a code of 0 is no failure."""
        from submitit.core.utils import UncompletedJobError

        self._saved = False  # submitit hands this object on to the next attempt
        try:
            with _listening() as asked_to_end:
                code = self._train(place, attempt)
        except SpeechLMMError as exc:
            lines, code = word(exc)
            for line in lines:
                _say(f"error: {line}")
            return Failure(code, "; ".join(lines))
        except UncompletedJobError:
            reason = "the time limit was reached more than max_num_timeout times; --resume goes on"
            _say(f"error: not queued again: {reason}")
            return Failure(FAULT, f"not queued again: {reason}")
        except Exception as exc:
            _say("".join(traceback.format_exception(exc)))
            reason = "; ".join(word(exc)[0])
            # In a container there is no scontrol: the batch script will queue the job again, as it is outside.
            return Failure(PREEMPTED) if self._saved else Failure(FAULT, reason)
        if code == 0:
            return Failure(code)
        first = place.node * self.processes
        ended = Failure(code, reason_of(attempt, code, range(first, first + self.processes)))
        # SIGTERM ends ranks that have not begun to listen to it, and others miss those.
        return replace(ended, asked=ended.follows and asked_to_end())

    def _begin(self, place: Place, attempt: Path) -> State:
        output_dir = Path(self.output_dir)
        before = State.read(output_dir) or State("queued")
        state = before.begun(log=attempt / "rank-0.err", nodes=place.nodes, restarts=place.restarts)
        state = replace(state, job_id=str(place.job_id))
        state.write(output_dir)
        return state

    def _job(self, place: Place) -> Job:
        """What this attempt is to do: go on, once what was to be overwritten is gone."""
        output_dir = Path(self.output_dir)
        job = replace(Job.read(output_dir / LAUNCH / JOB), progress=True)
        if place.restarts == 0 or (job.overwrite and written(output_dir) in (None, job.replaces)):
            return job
        return replace(job, resume=True, overwrite=False)

    def _train(self, place: Place, attempt: Path) -> int:
        if place.node == 0:
            self._job(place).write(attempt / JOB)
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
        try:
            while (code := process.poll()) is None:
                time.sleep(0.2)
        except BaseException:  # from submitit's handler of SIGUSR2, which has asked the ranks to stop and waited
            process.kill()
            process.wait()
            raise
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


@contextmanager
def _listening() -> Iterator[Callable[[], bool]]:
    """Notes SIGTERM, besides what submitit does about it; gives a function that says whether it came.

    After the block, SIGUSR2 is ignored: there is nothing left that could be saved.
    """
    came: list[int] = []
    before: Any = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())

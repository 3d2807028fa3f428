"""What is known of a run that was started: `launch/state.json` in its output folder."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_train.trainer.output_folder import LAUNCH

STATE, JOB = "state.json", "job.json"
REQUEUE = "requeue"
"""A file in `launch/` by which the first node asks the batch script to queue the job again."""
Phase = Literal["queued", "running", "finished", "failed", "preempted"]


@dataclass(frozen=True)
class State:
    """How far a run has come, as what started it knows."""

    state: Phase
    name: str = ""
    job_id: str | None = None
    """SLURM's number; None for a run on one machine."""
    host: str | None = None
    """Where the process is that watches over the run."""
    pid: int | None = None
    within: str | None = None
    """SLURM job, with the number of its restarts, that the run was started in by hand; None outside."""
    nodes: tuple[str, ...] = ()
    """Nodes of a SLURM job."""
    restarts: int = 0
    """How often SLURM has queued the job again."""
    exit_code: int | None = None
    reason: str = ""
    """Why it failed."""
    log: str | None = None
    """What the run's first process wrote to standard error; that of others lies beside it."""
    submitted: float | None = None
    """When it was handed to SLURM, or was about to be."""
    started: float | None = None
    ended: float | None = None

    def write(self, output_dir: Path) -> None:
        """Writes the state, atomically."""
        write_text(output_dir / LAUNCH / STATE, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, output_dir: Path) -> State | None:
        """The state in an output folder; None if there is none, or none that this version wrote."""
        try:
            content: dict[str, Any] = json.loads((output_dir / LAUNCH / STATE).read_text(encoding="utf-8"))
            return cls(**{**content, "nodes": tuple(content["nodes"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @staticmethod
    def forget(output_dir: Path) -> None:
        """Removes the state from an output folder."""
        (output_dir / LAUNCH / STATE).unlink(missing_ok=True)

    def submitting(self) -> State:
        """The state of a run that this process is about to submit."""
        return replace(self, host=socket.gethostname(), pid=os.getpid(), submitted=time.time())

    def begun(self, *, log: Path | None = None, nodes: Sequence[str] = (), restarts: int = 0) -> State:
        """The state of a run that starts in this process."""
        return replace(
            self,
            state="running",
            host=socket.gethostname(),
            pid=os.getpid(),
            within=slurm_job(),
            nodes=tuple(nodes),
            restarts=restarts,
            exit_code=None,
            reason="",
            log=str(log) if log else None,
            started=time.time(),
            ended=None,
        )

    def over(self, code: int, reason: str = "") -> State:
        """The state of a run that ended with an exit code."""
        from speechlmm_train.preempted import PREEMPTED

        state: Phase = "finished" if code == 0 else "preempted" if code == PREEMPTED else "failed"
        return replace(self, state=state, exit_code=code, reason=reason, ended=time.time())


def slurm_job() -> str | None:
    """The SLURM job that this process is in, and how often that was queued again."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{job}/{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else None

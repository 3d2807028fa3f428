"""The end of a run that was asked to stop (SIGTERM, SIGUSR1): it saved a checkpoint, and is to go on later.

Imports no torch.
"""

from __future__ import annotations

from speechlmm_core.errors import SpeechLMMError

PREEMPTED = 75
"""The exit code of such a run (`EX_TEMPFAIL` of sysexits.h: try again later)."""


class PreemptedError(SpeechLMMError):
    """The run was asked to stop, and did so after a step; `--resume` goes on from there."""

    exit_code = PREEMPTED

# pyright: strict
"""The typed form of `hydra.launcher`: how a run becomes a SLURM job. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from speechlmm_core.errors import ConfigError
from speechlmm_core.registry import nearest
from speechlmm_train.config_errors import explain
from speechlmm_train.data_config import Positive, Section

ALIASES = {"timeout_min": "time"}
"""Other names of fields."""

_TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<h>\d+)(?::(?P<m>\d+))?(?::(?P<s>\d+))?")


class SlurmLauncherConfig(Section):
    """A SLURM job. What is left out is the cluster's default."""

    type: Literal["slurm"] = "slurm"
    """Kind of launcher."""
    job_name: str | None = None
    """The job's name; the run's by default."""
    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account or grant that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes have to have."""
    nodes: Positive = 1
    """Nodes of one run."""
    gres: str | None = None
    """Generic resources on each node (`gpu:4`, `gpu:a100:8`); as many processes are started there."""
    gpus_per_node: Positive | None = None
    """GPUs on each node, where the cluster does not take them in `gres`."""
    cpus_per_task: Positive | None = None
    """Cores on each node: one task is started there, for all of its processes."""
    mem: str | int | None = None
    """Memory on each node, as SLURM takes it (`64G`; a number is MB)."""
    time: Annotated[int, Field(gt=0)] = 1440
    """Time limit in minutes; or as `HH:MM:SS`, `D-HH`, `D-HH:MM:SS`."""
    nodelist: str | None = None
    """Nodes that have to be among those taken."""
    exclude: str | None = None
    """Nodes not to be taken."""
    exclusive: bool = False
    """Shares nodes with no other job."""
    dependency: str | None = None
    """Jobs to wait for, as SLURM takes them."""
    comment: str | None = None
    """A comment on the job."""
    setup: list[str] = Field(default_factory=list[str])
    """Shell lines before the run: `source /etc/profile`, `module load CUDA`, `export NCCL_DEBUG=WARN`."""
    teardown: list[str] = Field(default_factory=list[str])
    """Shell lines after it. Their last exit code becomes the job's."""
    python: str | None = None
    """Shell command that starts Python on the nodes, where it is not the one of this process: for clusters whose login
    node has another architecture, or for containers."""
    port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    """Port of the first node where processes find each other; by default one that follows from the job's number."""
    node_timeout_s: Positive = 600
    """Seconds to wait for all nodes of a job, and for their processes to find each other."""
    signal_delay_s: Positive = 120
    """Seconds before the time limit at which the run is asked to save a checkpoint and the job is queued again."""
    max_num_timeout: Annotated[int, Field(ge=0)] = 100
    """How often a job that has reached its time limit is queued again."""
    srun_args: list[str] = Field(default_factory=list[str])
    """Further arguments of `srun`."""
    additional_parameters: dict[str, str | int | bool] = Field(default_factory=dict[str, str | int | bool])
    """Further options of `sbatch`, by their long names: `{reservation: teaching}`."""

    @field_validator("time", mode="before")
    @classmethod
    def _minutes(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.isdigit():
            return minutes_of(value)
        return value

    @field_validator("setup", "teardown", "srun_args", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value or []

    @model_validator(mode="after")
    def _time_to_work(self) -> SlurmLauncherConfig:
        if self.signal_delay_s >= self.time * 60:
            raise PydanticCustomError(
                "signal_delay",
                "signal_delay_s ({delay} s) has to be shorter than time ({time} min)",
                {"delay": self.signal_delay_s, "time": self.time},
            )
        return self

    @property
    def processes(self) -> int:
        """Processes on each node: one for each GPU, and one where there is none."""
        return gpus_in(self.gres) or self.gpus_per_node or 1


def minutes_of(text: str) -> int:
    """A time limit as SLURM writes it, in whole minutes, rounded up.

    Raises:
        PydanticCustomError: It is none.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise PydanticCustomError("time", "expected minutes, HH:MM:SS, D-HH or D-HH:MM:SS", {})
    days, first, second, third = (int(match[name] or 0) for name in "dhms")
    if match["d"] is None and match["s"] is None:  # MM:SS; a number alone has been seen to before
        first, second, third = 0, first, second
    return max(1, -(-(days * 86400 + first * 3600 + second * 60 + third) // 60))


def gpus_in(gres: str | None) -> int:
    """How many GPUs `gres` asks for: 4 for `gpu:4`, `gpu:a100:4` and `gpu:a100:4,nvme:1`; 1 for `gpu`."""
    total = 0
    for part in (gres or "").split(","):
        name, *rest = re.sub(r"\(.*\)", "", part).strip().removeprefix("gres/").split(":")
        if name == "gpu":
            total += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return total


def slurm_config(launcher: Mapping[str, Any]) -> SlurmLauncherConfig:
    """Types what `hydra/launcher` composed to.

    Raises:
        ConfigError: Everything that is wrong, a line each.
    """
    kind = launcher.get("type", "slurm")
    if kind != "slurm":
        raise ConfigError(
            f"hydra.launcher.type: unknown launcher {kind!r}{nearest(str(kind), ['slurm'])} (available: slurm)"
        )
    given = {key: value for key, value in launcher.items() if value is not None}
    for alias, name in ALIASES.items():
        if alias in given:
            if name in given:
                raise ConfigError(f"hydra.launcher: give either {name} or {alias}, not both")
            given[name] = given.pop(alias)
    try:
        return SlurmLauncherConfig.model_validate(given)
    except ValidationError as exc:
        lines = explain(exc, SlurmLauncherConfig, given)
        place = "hydra.launcher"
        raise ConfigError(
            "\n".join(
                f"{place}: {line}" if line.startswith("signal_delay_s (") else f"{place}.{line}" for line in lines
            )
        ) from exc

"""Whether the micro-batches of a step can be shared by the processes of a run."""

from __future__ import annotations

from speechlmm_core.errors import ConfigError
from speechlmm_train.config import RunConfig

_SHOWN = 4


def check_shares(config: RunConfig, *, processes: int, nodes: int = 1) -> None:
    """Checks that every process gets as many micro-batches of a step as the others.

    Args:
        config: The run.
        processes: How many on each node.
        nodes: How many nodes.

    Raises:
        ConfigError: A stage has micro-batches that cannot be shared evenly; with numbers that can.
    """
    total = processes * nodes
    stages = config.resolved_stages()
    faults: dict[int, list[str]] = {}
    for stage in stages:
        if (number := stage.training.micro_batches_per_step) % total:
            faults.setdefault(number, []).append(stage.name)
    lines: list[str] = []
    for number, names in faults.items():
        place = f"stage {', '.join(map(repr, names))}: " if len(stages) > 1 else ""
        of = f" ({nodes} nodes with {processes} each)" if nodes > 1 else ""
        lines.append(
            f"{place}training.micro_batches_per_step: got {number}; expected a multiple of the {total} processes{of}: "
            f"set it to {_either(_multiples(number, total))}, or take {_fewer(number, processes, nodes)}"
        )
    if lines:
        raise ConfigError("\n".join(lines))


def _multiples(number: int, total: int) -> list[int]:
    """The multiples beside a number."""
    below = number // total * total
    return [one for one in (below, below + total) if one]


def _fewer(number: int, processes: int, nodes: int) -> str:
    """Numbers of nodes, or of processes where no number of nodes helps, that can share a step."""
    if nodes > 1 and number % processes == 0:
        fitting = [one for one in range(1, number // processes + 1) if number // processes % one == 0]
        near = sorted(sorted(fitting, key=lambda one: abs(one - nodes))[:_SHOWN])
        return f"{_either(near)} node{'' if near == [1] else 's'}"
    fitting = [one for one in range(1, processes + 1) if number % (one * nodes) == 0] or [
        one for one in range(1, processes + 1) if number % one == 0
    ]
    where = " on each node" if nodes > 1 and number % (fitting[-1] * nodes) == 0 else " on one node" * (nodes > 1)
    return f"{_either(fitting[-_SHOWN:])} process{'' if fitting == [1] else 'es'}{where}"


def _either(values: list[int]) -> str:
    return " or ".join(part for part in (", ".join(map(str, values[:-1])), str(values[-1])) if part)

"""Starts a node's ranks and watches over them: `python -m speechlmm_train.launch.agent job.json …`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from speechlmm_core.wording import word
from speechlmm_train.launch.local import WORKER
from speechlmm_train.launch.processes import Group, run_processes


@click.command()
@click.argument("job", type=click.Path(path_type=Path), metavar="JOB.JSON")
@click.option("--processes", type=int, default=1)
@click.option("--node", type=int, default=0)
@click.option("--nodes", type=int, default=1)
@click.option("--address", default="127.0.0.1")
@click.option("--port", type=int, default=0)
@click.option("--name", default="job")
@click.option("--timeout", type=int, default=600)
def agent(*, job: Path, processes: int, node: int, nodes: int, address: str, port: int, name: str, timeout: int) -> int:
    """Run this node's ranks of a job; the logs go beside it."""
    # The ranks are asked to stop one by one, by number; a signal to all of the job's processes is not for this one.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if nodes == 1:
        address = "127.0.0.1"  # whatever the node's name stands for
    group = Group(node=node, nodes=nodes, address=address, port=port, name=name, timeout_s=timeout)
    try:
        return run_processes(["-m", WORKER, str(job), "--attached"], processes=processes, logs=job.parent, group=group)
    except Exception as exc:
        lines, code = word(exc)
        for line in lines:
            click.echo(f"error: {line}", err=True)
        return code


if __name__ == "__main__":
    sys.exit(agent.main(standalone_mode=False, prog_name="speechlmm_train.launch.agent"))

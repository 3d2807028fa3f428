"""A SLURM cluster of two nodes on this one machine, for tests of how runs are launched.

    python tools/slurm_cluster.py FOLDER [-- COMMAND …]

starts a controller, the daemons of the nodes `n0` and `n1` and an authentication service of its own, all of which keep
everything in FOLDER, and runs COMMAND (a shell by default) with `SLURM_CONF` set; when that ends, so does the cluster.
Needs root, and Debian's slurm-wlm and munge. Nothing of the system is changed but for two lines in /etc/hosts, which go
with the cluster.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

NODES = ("n0", "n1")
CPUS = 2
MEMORY_MB = 4000
GRACE_S = 60
PARTITIONS = {
    "main": f"Default=YES PriorityTier=1 GraceTime={GRACE_S}",
    "urgent": "PriorityTier=2 PreemptMode=OFF",
}
"""Jobs of `urgent` take the nodes of those in `main`, which are queued again, and have the time of grace to prepare."""
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol")
HOSTS = Path("/etc/hosts")
MARK = "# speechlmm's test cluster"
_PATIENCE_S = 60


class ClusterError(Exception):
    """The cluster cannot be started; the message says why."""


def why_not() -> str | None:
    """Why no cluster can be started here; None if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    return None if os.geteuid() == 0 else "needs root"


class Cluster:
    """The cluster; a context manager that starts and stops it.

    Args:
        folder: For configuration, state and logs. Its path has to be short, for it holds sockets.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.env = {**os.environ, "SLURM_CONF": str(self.conf)}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts all daemons, and waits until both nodes are idle.

        Raises:
            ClusterError: Something is missing, or does not start.
        """
        if (reason := why_not()) is not None:
            raise ClusterError(reason)
        for name in ("state", "log", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._authentication()
        self._configuration()
        _name_nodes()
        self._daemon(["slurmctld", "-D", "-f", str(self.conf)], "slurmctld")
        for node in NODES:
            self._daemon(["slurmd", "-D", "-f", str(self.conf), "-N", node], f"slurmd.{node}")
        self._wait_for_nodes()

    def stop(self) -> None:
        """Ends all jobs and daemons, and takes the nodes' names out of /etc/hosts."""
        if self.conf.exists() and self._daemons and self._daemons[-1].poll() is None:
            for _ in range(2):  # what was queued again by the first is ended by the second
                self.run(["scancel", "--full", "--user=root"])
            deadline = time.monotonic() + _PATIENCE_S
            while self.run(["squeue", "--noheader"]).strip() and time.monotonic() < deadline:
                time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        _forget_nodes()

    def run(self, command: Sequence[str]) -> str:
        """Runs a command against the cluster, and returns what it prints."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=60).stdout

    def _authentication(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"socket": "munge.sock", "key-file": key.name, "pid-file": "munged.pid", "log-file": "munged.log"}
        options = [f"--{option}={self.folder / name}" for option, name in {**files, "seed-file": "munged.seed"}.items()]
        self._daemon(["munged", "--foreground", "--force", *options], "munged")
        self._wait_for((self.folder / "munge.sock").exists, "munged does not start")

    def _configuration(self) -> None:
        host = socket.gethostname()
        port, *node_ports = _free_ports(1 + len(NODES))
        settings = {
            "ClusterName": "speechlmm",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": port,
            "SlurmUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder / 'munge.sock'}",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool.%n",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": self.folder / "slurmd.%n.pid",
            "SlurmctldLogFile": self.folder / "log" / "slurmctld.log",
            "SlurmdLogFile": self.folder / "log" / "slurmd.%n.log",
            "SlurmdParameters": "config_overrides",
            "MailProg": "/bin/true",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
            "ReturnToService": 2,
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "KillWait": 20,
            "MpiDefault": "none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        for node, node_port in zip(NODES, node_ports, strict=True):
            where = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port}"
            lines.append(f"NodeName={node} {where} CPUs={CPUS} RealMemory={MEMORY_MB} State=UNKNOWN")
        for name, more in PARTITIONS.items():
            lines.append(f"PartitionName={name} Nodes={','.join(NODES)} MaxTime=INFINITE State=UP {more}")
        self.conf.write_text("\n".join(lines) + "\n")

    def _daemon(self, command: Sequence[str], name: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("wb") as log:
            daemon = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._daemons.append(daemon)

    def _wait_for_nodes(self) -> None:
        def idle() -> bool:
            states = self.run(["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"]).split()
            return states == ["idle"] * len(NODES)

        self._wait_for(idle, "the nodes do not come up")

    def _wait_for(self, there: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not there():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
                logs = [log for log in sorted((self.folder / "log").iterdir()) if log.stat().st_size]
                ends = [f"{log.name}: {line}" for log in logs for line in log.read_text().splitlines()[-5:]]
                raise ClusterError("\n".join([otherwise, *ends]))
            time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _name_nodes() -> None:
    """Lets the nodes' names stand for this machine, unless they do already."""
    for node in NODES:
        try:
            socket.gethostbyname(node)
        except OSError:
            with HOSTS.open("a") as hosts:
                hosts.write(f"127.0.0.1 {node} {MARK}\n")


def _forget_nodes() -> None:
    lines = HOSTS.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.rstrip().endswith(MARK)]
    if kept != lines:  # in place: in a container the file may be a mount, which cannot be replaced
        HOSTS.write_text("".join(kept))


def main() -> int:
    """Starts the cluster, runs a command, and stops it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("command", nargs="*", default=[os.environ.get("SHELL", "/bin/sh")])
    given = parser.parse_args()
    try:
        with Cluster(given.folder.absolute()) as cluster:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            return subprocess.run(given.command, env=cluster.env, check=False).returncode
    except ClusterError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""Where torch's elastic launcher puts the output of ranks: one file each, by the rank's number."""

from __future__ import annotations

from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs


class RankLogs(LogsSpecs):
    """Files `rank-<N>.out` and `rank-<N>.err` in one folder.

    Args:
        folder: The folder.
        first_rank: Rank of the first process on this machine.
    """

    def __init__(self, folder: Path, first_rank: int = 0) -> None:
        super().__init__(log_dir=str(folder))
        self._folder = folder
        self._first_rank = first_rank

    @property
    def root_log_dir(self) -> str:
        """The folder."""
        return str(self._folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """The files of each process, by its number on this machine."""
        names = {local: f"rank-{self._first_rank + local}" for local in envs}
        empty = dict.fromkeys(envs, "")
        return LogsDest(
            stdouts={local: str(self._folder / f"{name}.out") for local, name in names.items()},
            stderrs={local: str(self._folder / f"{name}.err") for local, name in names.items()},
            tee_stdouts=empty,
            tee_stderrs=empty,
            error_files={local: str(self._folder / f"{name}.error.json") for local, name in names.items()},
        )

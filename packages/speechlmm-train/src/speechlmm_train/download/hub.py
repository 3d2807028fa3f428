"""The Hugging Face hub: what a model repository holds, and files from it, resumed and verified."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from speechlmm_core.checkpoint.hub_errors import first_line, hub_refusal
from speechlmm_core.errors import CheckpointError, SpeechLMMError
from speechlmm_train.download.tensors import file_sha256, git_sha1

RETRIES = 4
"""How often to try again without a byte coming in."""

PAUSE_S = 1.0
"""Before trying again; longer each time."""

TIMEOUT_S = 30.0
"""How long to wait for the next bytes."""

PARTIAL, SERVER_FAULT = 206, 500
"""Status codes of HTTP: a part of the file, and the first that is the server's own fault."""

AGAIN = "run the same command again to go on from there"


@dataclass(frozen=True)
class RemoteFile:
    """A file in a repository, with the hash that the hub knows it by."""

    name: str
    size: int
    sha256: str | None
    """Of large files."""
    git_sha1: str
    """Of small ones; of large ones it is their pointer's."""

    @property
    def key(self) -> str:
        """The hash that tells its content from another."""
        return self.sha256 or self.git_sha1

    def check(self, path: Path) -> str:
        """Compares a downloaded file with what the hub says, and returns its SHA-256.

        Raises:
            CheckpointError: Size or hash differ; the file is removed, so that it is fetched anew.
        """
        size = path.stat().st_size
        found = file_sha256(path)
        got, expected = (found, self.sha256) if self.sha256 else (git_sha1(path), self.git_sha1)
        if size != self.size or got != expected:
            path.unlink()
            raise CheckpointError(
                f"{self.name!r} arrived with {size} bytes and the hash {got}, but the hub has {self.size} bytes with "
                f"the hash {expected}; it was removed, run the same command again to fetch it anew"
            )
        return found


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit."""

    name: str
    commit: str
    files: dict[str, RemoteFile]


def list_repository(name: str) -> Repository:
    """Asks the hub what ``<repository>[@<revision>]`` holds.

    Raises:
        HubOfflineError: $HF_HUB_OFFLINE is set.
        CheckpointError: There is no such model or revision, or it may not be read.
        ConnectionError: The hub does not answer.
    """
    repo, _, revision = name.partition("@")
    with explained(name):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=_endpoint())
        info = api.model_info(repo, revision=revision or None, files_metadata=True, timeout=TIMEOUT_S)
    files: dict[str, RemoteFile] = {}
    for one in info.siblings or []:
        sha256 = one.lfs.sha256 if one.lfs is not None else None
        size = one.lfs.size if one.lfs is not None else one.size
        files[one.rfilename] = RemoteFile(one.rfilename, size or 0, sha256, one.blob_id or "")
    if info.sha is None:
        raise ConnectionError(f"the hub names no commit of {name!r}; is $HF_ENDPOINT a hub?")
    return Repository(repo, info.sha, files)


def fetch(repository: Repository, file: RemoteFile, folder: Path, *, progress: bool) -> tuple[Path, str]:
    """Downloads a file, going on where an earlier try stopped, in this process or in another.

    Returns:
        Where it is, and its SHA-256.

    Raises:
        CheckpointError: It may not be read, or arrived damaged.
        ConnectionError: The connection broke again and again.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        with explained(repository.name):
            failures = 0
            while (held := _held(part)) < file.size or not part.exists():
                try:
                    _receive(repository, file, part, progress=progress)
                except Exception as exc:
                    failures = 1 if _held(part) > held else failures + 1
                    if failures > RETRIES or not _is_transient(exc):
                        raise
                    time.sleep(failures * PAUSE_S)
        os.replace(part, target)
    return target, file.check(target)


def _held(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _receive(repository: Repository, file: RemoteFile, part: Path, *, progress: bool) -> None:
    """Appends to ``part`` what it lacks, as far as the connection holds."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
    from tqdm import tqdm

    held = _held(part)
    url = hf_hub_url(repository.name, file.name, revision=repository.commit, endpoint=_endpoint())
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if held:
        headers["Range"] = f"bytes={held}-"
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S) as response:
        hf_raise_for_status(response)
        # A server that knows no ranges sends all of it.
        held = held if response.status_code == PARTIAL else 0
        bar = tqdm(total=file.size, initial=held, desc=file.name, unit="B", unit_scale=True, disable=not progress)
        # Without a buffer, so that a process that is killed leaves all that it received.
        with bar, part.open("ab" if held else "wb", buffering=0) as output:
            for chunk in response.iter_bytes():
                output.write(chunk)
                bar.update(len(chunk))
    if _held(part) != file.size:
        size = _held(part)
        if size > file.size:
            part.unlink()
        raise ConnectionError(f"{size} of {file.size} bytes arrived")


def _is_transient(exc: Exception) -> bool:
    """Whether to try again: what broke is the connection, and not the disk, and the hub did not refuse."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(exc, HfHubHTTPError):
        return exc.response.status_code in (408, 429) or exc.response.status_code >= SERVER_FAULT
    return not (isinstance(exc, OSError) and exc.errno is not None and exc.filename is not None)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns the hub client's errors into words that say what to do."""
    try:
        yield
    except SpeechLMMError:
        raise
    except Exception as exc:  # the client's errors come from several libraries
        if isinstance(exc, OSError) and exc.errno is not None and exc.filename is not None:
            raise  # the disk's, not the network's
        refusal = hub_refusal(exc, name)
        if refusal is not None:
            raise refusal from exc
        repo = name.partition("@")[0]
        code = getattr(getattr(exc, "response", None), "status_code", None)
        reason = (
            f"the hub answers {code} for {repo!r}"
            if code
            else f"the download of {repo!r} broke off ({first_line(exc)})"
        )
        raise ConnectionError(f"{reason}; {AGAIN}") from exc


def _endpoint() -> str | None:
    # The client reads it once, when it is imported.
    return os.environ.get("HF_ENDPOINT") or None

"""The manifest of a checkpoint: its files with their sizes and SHA-256, by which a damaged one is known.

SHA-256 is what processors have instructions for (1 to 2 GB/s on a core; files are read by several threads), and what
`sha256sum` can check. A checkpoint is read whole before a run goes on from it; when old ones are removed, only those
files are read that have been touched since they were written.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
THREADS = 4


def write_manifest(folder: Path) -> None:
    """Notes all files of a folder; the last thing that is written there.

    Raises:
        OSError: The disk is full or read-only.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(THREADS) as pool:
        sums = list(pool.map(lambda name: _sha256(folder / name), names))
    files = {name: {**_stat(folder / name), "sha256": found} for name, found in zip(names, sums, strict=True)}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path, *, thorough: bool) -> str | None:
    """What is wrong with a checkpoint, in words; None if nothing is.

    Args:
        folder: The checkpoint.
        thorough: Whether every file is read; otherwise only those that were touched after they were written.
    """
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: (int(one["size"]), int(one["mtime_ns"]), str(one["sha256"])) for name, one in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was not written to its end, or by an older version"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        return f"{MANIFEST} cannot be read ({' '.join(str(exc).split())})"
    sums: dict[str, str] = {}
    for name, (size, mtime, expected_sum) in expected.items():
        try:
            now = _stat(folder / name)
        except OSError:
            return f"{name} is missing"
        if now["size"] != size:
            return f"{name} has {now['size']} bytes in place of {size}"
        if thorough or now["mtime_ns"] != mtime:
            sums[name] = expected_sum
    return _changed(folder, sums)


def _changed(folder: Path, sums: dict[str, str]) -> str | None:
    """Which file has another content than it had."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda name: _sha256_or_none(folder / name), sums))
    for (name, expected), now in zip(sums.items(), found, strict=True):
        if now != expected:
            return f"{name} {'cannot be read' if now is None else 'has other content than was written'}"
    return None


def _stat(file: Path) -> dict[str, int]:
    found = file.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sha256_or_none(file: Path) -> str | None:
    try:
        return _sha256(file)
    except OSError:
        return None

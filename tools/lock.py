"""Keep `uv.lock` index-neutral in git.

What git holds names versions, not addresses: packages from an index have `source = { registry = "." }` and neither
`sdist` nor `wheels`, and the `[package.metadata]` tables are left out. On first use uv takes the versions as they are
and fills in the addresses of whatever index it is set up with, mirror or not. That filled-in working file is never
committed.

    python tools/lock.py update [--upgrade] [--upgrade-package NAME]   resolve, then strip
    python tools/lock.py strip                                         strip the working file (pre-commit)
    python tools/lock.py check [--offline]                             judge what git holds
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LOCK = "uv.lock"
NEUTRAL_SOURCE = {"registry": "."}
# What lets a host name or a machine's folder into the lock.
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"']*", re.IGNORECASE)


class LockError(Exception):
    """The lock cannot be judged or rewritten; the message says why."""


def strip(text: str) -> str:
    """Return the index-neutral form of a lock file. A neutral one is returned unchanged.

    Raises:
        LockError: the text is not laid out as uv writes it, so that something would be lost.
    """
    lines: list[str] = []
    skip_until: str | None = None
    in_metadata = False
    for line in text.splitlines():
        if skip_until is not None:
            skip_until = None if line == skip_until else skip_until
            continue
        if line.startswith("["):
            in_metadata = line == "[package.metadata]" or line.startswith("[package.metadata.")
        if in_metadata or line.startswith("sdist = "):
            continue
        if line.startswith("wheels = ["):
            skip_until = None if line.endswith("]") else "]"
            continue
        lines.append(re.sub(r'\{ registry = "[^"]*" \}', '{ registry = "." }', line))
    stripped = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"
    if tomllib.loads(stripped) != _neutral(tomllib.loads(text)):
        raise LockError(f"{LOCK} is not laid out as expected; this version of uv may write it differently")
    return stripped


def _neutral(value: Any) -> Any:
    """The same on parsed TOML: the independent statement that `strip` is held against."""
    if isinstance(value, list):
        return [_neutral(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"registry"}:
        return dict(NEUTRAL_SOURCE)
    dropped = {"sdist", "wheels", "metadata"} if {"name", "source"} <= value.keys() else set[str]()
    return {key: _neutral(item) for key, item in value.items() if key not in dropped}


def problems(text: str) -> Iterator[str]:
    """Yield one line for everything in a lock file that ties it to an index or a machine."""
    try:
        lock = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        yield f"not TOML: {error}"
        return
    for number, line in enumerate(text.splitlines(), start=1):
        for address in _ADDRESS.findall(line):
            yield f"line {number}: an address: {address}"
    for package in lock.get("package", []):
        name = f"{package.get('name')} {package.get('version', '')}".strip()
        for key in ("sdist", "wheels", "metadata"):
            if key in package:
                yield f"{name}: has `{key}`"
        for source in _sources(package):
            if "registry" in source and source != NEUTRAL_SOURCE:
                yield f"{name}: comes from registry {source['registry']!r}, expected '.'"


def _sources(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every `source` table at any depth: of the package and of the dependencies that name theirs."""
    if isinstance(value, list):
        for item in value:
            yield from _sources(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "source" and isinstance(item, dict):
                yield item
            else:
                yield from _sources(item)


def differences(expected: str, got: str) -> list[str]:
    """One line for each package whose entry differs between two neutral locks."""
    before, after = _entries(expected), _entries(got)
    lines: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            old, new = _versions(before.get(name)), _versions(after.get(name))
            lines.append(f"{name}: {old} in git, resolves to {new}" if old != new else f"{name}: dependencies differ")
    return lines


def _entries(text: str) -> dict[str, list[Any]]:
    entries: dict[str, list[Any]] = {}
    for package in tomllib.loads(text).get("package", []):
        entries.setdefault(package["name"], []).append(package)
    return entries


def _versions(packages: Sequence[Mapping[str, Any]] | None) -> str:
    return ", ".join(str(package.get("version", "unversioned")) for package in packages or []) or "absent"


def _run(command: Sequence[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LockError(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        raise LockError(f"`{' '.join(command)}` failed:\n{done.stderr.strip()}")
    return done.stdout


def _uv() -> str:
    # Under `uv run`, uv names itself here; it need not be on the path.
    return os.environ.get("UV") or shutil.which("uv") or "uv"


def in_git(root: Path, name: str) -> str:
    """What the index holds of one file, which is HEAD's where nothing is staged."""
    return _run(["git", "show", f":{name}"], root)


def resolve_copy(root: Path) -> str:
    """Lock a copy of what git holds and return the result, stripped. The working tree is left alone."""
    names = [n for n in _run(["git", "ls-files", "*pyproject.toml", LOCK], root).splitlines() if "examples/" not in n]
    with tempfile.TemporaryDirectory(prefix="lock-check-") as folder:
        for name in names:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(in_git(root, name), encoding="utf-8")
        _run([_uv(), "lock", "--quiet"], Path(folder))
        return strip(Path(folder, LOCK).read_text(encoding="utf-8"))


def check(root: Path, *, offline: bool = False) -> list[str]:
    """Return what is wrong with the lock that git holds; nothing, if it is neutral and agrees with the projects."""
    text = in_git(root, LOCK)
    found = list(problems(text))
    if found or offline:
        return found
    return differences(text, resolve_copy(root))


def update_lock(root: Path, moving: Sequence[str]) -> None:
    """Resolve and strip, until resolving what was stripped gives the same again, which `check` asks for."""
    for arguments in ([*moving], [], []):  # uv may word its markers otherwise when it starts from a lock
        before = (root / LOCK).read_text(encoding="utf-8") if (root / LOCK).exists() else ""
        _run([_uv(), "lock", *arguments], root)
        strip_file(root)
        if not arguments and (root / LOCK).read_text(encoding="utf-8") == before:
            return


def strip_file(root: Path) -> bool:
    """Strip the working file in place. Return whether that changed it."""
    path = root / LOCK
    text = path.read_text(encoding="utf-8")
    stripped = strip(text)
    if stripped == text:
        return False
    temporary = path.with_suffix(".lock.tmp")
    temporary.write_text(stripped, encoding="utf-8")
    temporary.replace(path)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands. Return the exit code: 1 if `check` found something, 2 if it could not be done."""
    parser = argparse.ArgumentParser(description="Keep uv.lock index-neutral in git.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the repository")
    commands = parser.add_subparsers(dest="command", required=True)
    update = commands.add_parser("update", help="resolve, then strip")
    update.add_argument("--upgrade", action="store_true", help="let every version move")
    update.add_argument("--upgrade-package", action="append", default=[], metavar="NAME", help="let this one move")
    commands.add_parser("strip", help="strip the working file")
    judge = commands.add_parser("check", help="judge what git holds")
    judge.add_argument("--offline", action="store_true", help="leave out the re-resolution, which asks the index")
    options = parser.parse_args(arguments)
    try:
        if options.command == "update":
            moving = ["--upgrade"] if options.upgrade else []
            moving += [part for name in options.upgrade_package for part in ("--upgrade-package", name)]
            update_lock(options.root, moving)
            return 0
        if options.command == "strip":
            strip_file(options.root)
            return 0
        found = check(options.root, offline=options.offline)
    except LockError as error:
        print(f"lock: {error}", file=sys.stderr)
        return 2
    for line in found:
        print(f"{LOCK}: {line}", file=sys.stderr)
    if found:
        print("`python tools/lock.py update` makes it right", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

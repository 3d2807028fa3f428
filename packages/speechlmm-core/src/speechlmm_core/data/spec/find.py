"""Finds the file of a dataset specification. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from speechlmm_core.data.shipped import shipped_specs
from speechlmm_core.errors import DataError
from speechlmm_core.registry import nearest

FOLDER = Path("conf/datasets")
"""Where specifications are looked for by name, below the working folder or below `--config-dir`."""


def find_spec(name: str | Path, base: Path, config_dir: Path | None = None) -> Path:
    """The file of a specification; the user's own come before those that packages ship.

    Args:
        name: A path, or one below `conf/datasets`; `.yaml` may be left out there.
        base: Folder where relative paths start.
        config_dir: The user's folder of configuration; it, its `datasets` and its `conf/datasets` are searched as well.

    Raises:
        DataError: There is no such file.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # `~` and what is no user
        path = Path(name)
    folders = [base, base / FOLDER]
    if config_dir is not None:
        folders += [config_dir / FOLDER, config_dir / "datasets", config_dir]
    for folder in folders:
        for file in (folder / path, *((folder / f"{path}.yaml",) if path.suffix not in (".yaml", ".yml") else ())):
            if _is_file(file):
                return file
    shipped = shipped_specs()
    if path.suffix in ("", ".yaml") and (found := shipped.get(path.with_suffix("").as_posix())) is not None:
        return found
    known = sorted(
        str(file.relative_to(folder).with_suffix(""))
        for folder in folders[1:]
        if folder.is_dir()
        for file in folder.rglob("*.yaml")
    )
    hint = nearest(str(path.with_suffix("")), [*known, *shipped]) if path.name else ""
    places = ", ".join(f"{str(folder)!r}" for folder in folders)
    raise DataError(f"there is no dataset specification {str(name)!r}{hint} (looked in {places})")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False

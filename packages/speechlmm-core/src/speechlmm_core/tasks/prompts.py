"""Reads the wordings of a task's prompt from YAML files. Imports no torch."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from speechlmm_core.errors import ConfigError


def read_prompts(
    package: str,
    language: str,
    prompts_path: str | None = None,
    fields: tuple[str, ...] = (),
    folder: str = "prompts",
) -> list[str]:
    """The wordings of a task's prompt in a language, the user's own after the package's.

    Args:
        package: Package of the task, with a folder that holds `<language>.yaml`.
        language: Code of the language in which the model is asked.
        prompts_path: The user's own YAML list, or a folder of `<language>.yaml` files.
        fields: What a wording may hold in braces; where there are any, every wording must hold all of them.
        folder: The folder's name.

    Raises:
        ConfigError: There are no prompts in that language, or a file is not as expected.
    """
    return list(_read(package, language, prompts_path, fields, folder))


@lru_cache(maxsize=1024)
def has_prompts(package: str, language: str, prompts_path: str | None = None, folder: str = "prompts") -> bool:
    """Whether there are wordings in a language, the user's own included."""
    if language in _shipped(package, folder):
        return True
    path = None if prompts_path is None else Path(prompts_path).expanduser()
    return path is not None and (not path.is_dir() or (path / f"{language}.yaml").is_file())


@lru_cache(maxsize=256)
def _shipped(package: str, folder: str) -> tuple[str, ...]:
    found = resources.files(package).joinpath(folder)
    if not found.is_dir():
        return ()
    return tuple(sorted(e.name.removesuffix(".yaml") for e in found.iterdir() if e.name.endswith(".yaml")))


@lru_cache(maxsize=1024)
def _read(
    package: str, language: str, prompts_path: str | None, fields: tuple[str, ...], folder: str
) -> tuple[str, ...]:
    shipped = _shipped(package, folder)
    found: list[str] = []
    if language in shipped:
        file = resources.files(package).joinpath(folder, f"{language}.yaml")
        found += _parse(file.read_text(encoding="utf-8"), f"{language}.yaml", fields)
    if prompts_path is not None:
        path = Path(prompts_path).expanduser()
        one = path / f"{language}.yaml" if path.is_dir() else path
        try:
            if one == path or one.is_file() or not found:
                found += _parse(one.read_text(encoding="utf-8"), str(one), fields)
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"cannot read the prompts in {str(one)!r}: {exc}") from exc
    if not found:
        raise ConfigError(
            f"no prompts in the language {language!r} (available: {', '.join(shipped) or 'none'}); "
            "give your own by the task's option `prompts_path`"
        )
    return tuple(found)


def _parse(text: str, name: str, fields: tuple[str, ...]) -> list[str]:
    try:
        found: Any = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigError(f"prompts {name!r} are not valid YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(found, list) or not found or not all(isinstance(line, str) and line.strip() for line in found):
        raise ConfigError(f"expected a YAML list of wordings in {name!r}, got {found!r}")
    for line in found if fields else ():
        try:
            parts = [part for part in Formatter().parse(line) if part[1] is not None]
        except ValueError as exc:
            raise ConfigError(f"the wording {line!r} in {name!r} has a stray brace: {exc}") from exc
        held = {field for _, field, _, _ in parts}
        if held != set(fields) or any(spec or conversion for _, _, spec, conversion in parts):
            names = " and ".join(f"{{{field}}}" for field in fields)
            shown = ", ".join(_in_braces(*part[1:]) for part in parts) or "none"
            raise ConfigError(f"the wording {line!r} in {name!r} must hold {names}, as they stand here, got {shown}")
    return [line.strip() for line in found]


def _in_braces(field: str | None, spec: str | None, conversion: str | None) -> str:
    """A field as it stands in a wording."""
    return f"{{{field}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"

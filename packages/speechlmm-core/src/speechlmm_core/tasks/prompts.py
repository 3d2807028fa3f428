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
    package: str, language: str, prompts_path: str | None = None, fields: tuple[str, ...] = ()
) -> list[str]:
    """The wordings of a task's prompt in a language, the user's own after the package's.

    Args:
        package: Package of the task, with a folder `prompts` that holds `<language>.yaml`.
        language: Code of the language in which the model is asked.
        prompts_path: The user's own YAML list, or a folder of `<language>.yaml` files.
        fields: What a wording may hold in braces; where there are any, every wording must hold all of them.

    Raises:
        ConfigError: There are no prompts in that language, or a file is not as expected.
    """
    return list(_read(package, language, prompts_path, fields))


@lru_cache(maxsize=64)
def _read(package: str, language: str, prompts_path: str | None, fields: tuple[str, ...]) -> tuple[str, ...]:
    folder = resources.files(package).joinpath("prompts")
    shipped = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    found: list[str] = []
    if language in shipped:
        found += _parse(folder.joinpath(f"{language}.yaml").read_text(encoding="utf-8"), f"{language}.yaml", fields)
    if prompts_path is not None:
        path = Path(prompts_path).expanduser()
        path = path / f"{language}.yaml" if path.is_dir() else path
        try:
            found += _parse(path.read_text(encoding="utf-8"), str(path), fields)
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"cannot read the prompts in {str(path)!r}: {exc}") from exc
    if not found:
        raise ConfigError(
            f"no prompts in the language {language!r} (available: {', '.join(shipped)}); "
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
            held = {field for _, field, _, _ in Formatter().parse(line) if field is not None}
        except ValueError as exc:
            raise ConfigError(f"the wording {line!r} in {name!r} has a stray brace: {exc}") from exc
        if held != set(fields):
            names = " and ".join(f"{{{field}}}" for field in fields)
            raise ConfigError(f"the wording {line!r} in {name!r} must hold {names}, got {sorted(held)}")
    return [line.strip() for line in found]

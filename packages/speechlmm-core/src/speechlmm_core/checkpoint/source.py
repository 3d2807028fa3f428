"""Where base checkpoints come from: a folder, `$PRETRAINED_COMPONENTS/<name>`, or the Hugging Face hub.

Imports neither torch nor transformers; `huggingface_hub` is imported only for names on the hub.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechlmm_core.checkpoint.hub_errors import first_line, hub_refusal
from speechlmm_core.errors import CheckpointError

ROOT_VARIABLE = "PRETRAINED_COMPONENTS"

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""How the names of single files of weights end."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


def resolve_pretrained(name: str) -> Path | str:
    """The folder that ``name`` stands for, or the name itself where it is one on the hub.

    A folder of that name comes first, then one below `$PRETRAINED_COMPONENTS`. A name on the hub may end in
    ``@<revision>``.

    Raises:
        CheckpointError: The name is a path, and there is no such folder, or it is one of a file.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    root = os.environ.get(ROOT_VARIABLE)
    if root:
        below = Path(root).expanduser() / name
        if name and below.is_dir():
            return below
    if name and pretrained_file(name) is not None:
        raise CheckpointError(f"{name!r} is a file, expected the folder of a checkpoint with its `config.json`")
    if name.endswith(WEIGHT_SUFFIXES):
        raise CheckpointError(
            f"no file {name!r}{f' (nor one below {root!r})' if root else ''}; give its path, or put it below "
            f"${ROOT_VARIABLE}"
        )
    if name.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(name):
        raise CheckpointError(
            f"no folder {name!r}{f' (nor one below {root!r})' if root else ''}; give the path of a checkpoint folder, "
            f"a name below ${ROOT_VARIABLE}, or a name on the Hugging Face hub (<organisation>/<model>)"
        )
    return name


def pretrained_file(name: str) -> Path | None:
    """The file that ``name`` stands for, by its path or below `$PRETRAINED_COMPONENTS`; None where it is no file."""
    roots = [Path(), *(Path(root).expanduser() for root in [os.environ.get(ROOT_VARIABLE)] if root)]
    found = (root / Path(name).expanduser() for root in roots)
    return next((path for path in found if path.is_file()), None)


def read_json_config(name: str, filename: str = "config.json") -> dict[str, Any]:
    """Reads a checkpoint's `config.json` (or another JSON file of it) as it is.

    Raises:
        CheckpointError: The file is missing, cannot be fetched, or holds no JSON object.
    """
    source = resolve_pretrained(name)
    path = source / filename if isinstance(source, Path) else _fetch_file(source, filename)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(f"{str(source)!r} has no {filename}; is it the folder of a checkpoint?") from exc
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"cannot read {str(path)!r}: {exc}") from exc
    if not isinstance(found, dict):
        raise CheckpointError(f"{str(path)!r} holds {type(found).__name__}, expected a JSON object")
    return found


def fetch_pretrained(name: str, patterns: Sequence[str]) -> Path:
    """A local folder with the files of a checkpoint, downloaded from the hub where ``name`` is a name there.

    Args:
        name: What `resolve_pretrained` takes.
        patterns: Which files are wanted from the hub (``*.safetensors``, …).

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be fetched.
    """
    source = resolve_pretrained(name)
    if isinstance(source, Path):
        return source
    repo, revision = _split_revision(source)
    with _hub_errors(source):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))


def _fetch_file(source: str, filename: str) -> Path:
    repo, revision = _split_revision(source)
    with _hub_errors(source):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repo, filename, revision=revision))


def _split_revision(source: str) -> tuple[str, str | None]:
    repo, _, revision = source.partition("@")
    return repo, revision or None


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as exc:  # the hub's client raises errors of several libraries
        raise hub_refusal(exc, source) or CheckpointError(
            f"cannot get {source!r} from the Hugging Face hub: {first_line(exc)} (without a network, download it "
            f"beforehand and put the checkpoint's folder below ${ROOT_VARIABLE}, or give its path)"
        ) from exc

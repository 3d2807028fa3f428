"""Checkpoints that commands write from others: apart from those, in folders that keep what else lies in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from speechlmm_core.checkpoint.load import read_config
from speechlmm_core.checkpoint.source import pretrained_file, resolve_pretrained
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_train.trainer.guarded_save import guarded_save

NOTE = "averaged.json"
"""Beside averaged weights: what they are the mean of."""
_STALE = (
    NOTE,
    "generation_config.json",
    "chat_template*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)
"""What belongs to the checkpoint that is replaced, beside its weights; a tokenizer is read from all files it finds."""


def check_apart(output: Path, sources: Iterable[str | Path]) -> None:
    """Checks that what is written takes nothing from what it is made of.

    Args:
        output: The folder to write to.
        sources: Checkpoints and base checkpoints, as a configuration names them (by path, or below
            `$PRETRAINED_COMPONENTS`); names of what is not on this machine are passed over.

    Raises:
        ConfigError: The output is one of them, holds one or lies in one.
    """
    target = output.expanduser().resolve()
    for source in sources:
        found = _found(source)
        if found is None:
            continue
        if target == found:
            place = "is"
        elif target in found.parents:
            place = "holds"
        elif found in target.parents:
            place = "lies in"
        else:
            continue
        raise ConfigError(
            f"the output {str(output)!r} {place} {str(source)!r}, which is read; choose a folder beside it"
        )


def _found(source: str | Path) -> Path | None:
    """The folder or file that is read; None where there is none here."""
    try:
        found = resolve_pretrained(str(source))
    except CheckpointError:  # a file of weights, or nothing: whatever reads it says so
        found = pretrained_file(str(source))
    return found.resolve() if isinstance(found, Path) else None


def bases_of(folder: Path) -> list[str]:
    """The base checkpoints without which a checkpoint cannot be loaded."""
    return [base["pretrained"] for base in (read_config(folder).get("bases") or {}).values()]


@contextmanager
def replaced(output: Path) -> Iterator[Path]:
    """Yields a temporary folder whose checkpoint takes the place of the one in ``output``; other files there stay.

    Raises:
        CheckpointError: The disk is full or read-only; what was there still is.
    """
    from speechlmm_core.checkpoint.save import staged

    with guarded_save(output), staged(output, stale=_STALE) as temporary:
        yield temporary

"""Loads a tokenizer from a folder exactly as its `tokenizer.json` describes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speechlmm_core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads a folder's tokenizer.

    Where there is a `tokenizer.json` it is taken as it is: the model-specific classes of transformers 5 build their
    own normaliser and pre-tokenizer, which need not be those of the file.

    Raises:
        CheckpointError: The folder holds no tokenizer, or a broken one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loader = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    try:
        return loader.from_pretrained(str(folder))
    except Exception as exc:  # tokenizers raises bare exceptions for broken files
        raise CheckpointError(f"cannot load a tokenizer from {str(folder)!r}: {exc}") from exc

"""Saves a model that is spread over processes as one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from speechlmm_core.checkpoint.atomic import atomic_folder
from speechlmm_core.checkpoint.save import raise_if, save_model, write_weights
from speechlmm_core.errors import CheckpointError
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.parallel.gather import gather
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.trainer.guarded_save import guarded_save


def save_final(
    model: SpeechLMM,
    processor: SpeechLMMProcessor,
    folder: Path,
    *,
    save: Literal["full", "trainable"],
    ranks: Ranks,
    spread: bool,
) -> None:
    """Saves a model with its processor, written by the first rank.

    Args:
        model: The model.
        processor: Its processor.
        folder: Where to.
        save: See `save_model`.
        ranks: The processes.
        spread: Whether each of them has a part of the weights.

    Raises:
        CheckpointError: It cannot be written.
    """

    def write() -> None:
        taken_part = not spread
        try:
            with guarded_save(folder), atomic_folder(folder) as temporary:
                if not spread:
                    save_model(model, processor, temporary, save=save)
                    return
                taken_part = True
                raise_if(write_weights(model, temporary, save=save, gather=gather))
                processor.save_pretrained(temporary)
        except CheckpointError:
            if not taken_part:  # the other processes would wait for this one
                raise_if(write_weights(model, None, save=save, gather=gather))
            raise

    with ranks.named("saving the model"):
        if not spread:
            ranks.on_main(write)
        elif ranks.is_main:
            ranks.together(write)
        else:
            ranks.together(lambda: raise_if(write_weights(model, None, save=save, gather=gather)))

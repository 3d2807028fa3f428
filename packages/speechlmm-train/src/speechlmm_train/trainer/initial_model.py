"""The model that a training starts from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch

from speechlmm_core.checkpoint.coverage import Coverage, cover, load_covered
from speechlmm_core.checkpoint.load import read_adapters, resolve_model_path, restore
from speechlmm_core.errors import ConfigError
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.lora.inject import inject
from speechlmm_core.model.describe import meta_model
from speechlmm_core.model.quantise import quantise_decoder, quantised_weights, require_bitsandbytes
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.config import RunConfig
from speechlmm_train.parallel.arguments import use_bf16
from speechlmm_train.trainer.arguments import can_flash
from speechlmm_train.trainer.checkpoints import Checkpoint
from speechlmm_train.trainer.notes import note
from speechlmm_train.trainer.seeding import seed_step

logger = logging.getLogger(__name__)

WEIGHTS_STAGE = 2**31
"""Stands for the stage number where the seed of the initial weights is drawn."""


def build_model(config: RunConfig, checkpoint: Checkpoint | None) -> SpeechLMM:
    """The model at the start of training: new weights, base checkpoints, `pretrained_checkpoint`, or the checkpoint's.

    Adapters are put on last: on the weights of a fine-tuned checkpoint as on those of base checkpoints.

    Raises:
        CheckpointError: A checkpoint is missing or does not fit.
        ConfigError: An adapter does not fit the model, or quantised weights could not be saved.
    """
    training = config.training
    seed_step(training.seed, WEIGHTS_STAGE, 0, 0)
    quantise = _quantisation(
        config,
        "training.pretrained_checkpoint" if checkpoint is None else f"the checkpoint to go on from ({checkpoint.path})",
    )
    pretrained = training.pretrained_checkpoint if checkpoint is None else None
    model = SpeechLMM.from_model_config(
        config.model,
        load_base_weights=checkpoint is None and pretrained is None,
        flash_attention=can_flash(training),
        decoder_follows=checkpoint is not None or (pretrained is not None and not training.new_components),
    )
    after = partial(quantise, model) if quantise is not None else None
    if checkpoint is not None:
        restore(model, checkpoint.path, after_weights=after)
    elif pretrained is not None:
        folder = resolve_model_path(pretrained)
        check_adapters(training.lora_adapters, read_adapters(folder), pretrained)
        coverage = cover(model, folder, new_components=training.new_components)
        for line in coverage.lines():
            note(line)
        load_covered(model, coverage, after_weights=after)
    elif after is not None:
        after()
    seed_step(training.seed, WEIGHTS_STAGE, 1, 0)  # however much was drawn for weights that were loaded afterwards
    put_on(model, training.lora_adapters)
    return model


def put_on(model: SpeechLMM, adapters: Sequence[LoraAdapterConfig]) -> None:
    """Puts on a model the adapters that it lacks; those that are not among them stay, and are not trained.

    Raises:
        ConfigError: An adapter does not fit the model.
    """
    there = {adapter.name: adapter for adapter in model.lora_adapters}
    check_adapters(adapters, list(there.values()), "the checkpoint")
    inject(model, [adapter for adapter in adapters if adapter.name not in there])
    model.frozen_adapters = frozenset(there) - {adapter.name for adapter in adapters}
    if model.frozen_adapters:
        kept = ", ".join(sorted(model.frozen_adapters))
        note(f"adapters that training.lora_adapters does not name stay as they are, and what lies beneath: {kept}")


def check_adapters(wanted: Sequence[LoraAdapterConfig], there: Sequence[LoraAdapterConfig], source: str) -> None:
    """Checks that adapters with the names of a checkpoint's are the same ones.

    Raises:
        ConfigError: They are not.
    """
    saved = {adapter.name: adapter.model_dump() for adapter in there}
    for adapter in wanted:
        ours, theirs = adapter.model_dump(), saved.get(adapter.name)
        if theirs is None or ours == theirs:
            continue
        keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
        shown = ", ".join(f"{key} {theirs.get(key)!r} there and {ours.get(key)!r} here" for key in keys)
        raise ConfigError(
            f"training.lora_adapters: {source} has an adapter {adapter.name!r} already, with {shown}; leave it as it "
            "is to go on with it, give the new one another name, or merge the old one first: speechlmm-train "
            "merge-lora"
        )


def initial_coverage(config: RunConfig) -> Coverage | None:
    """What `pretrained_checkpoint` has for the model; None without one. No weight is loaded.

    Raises:
        CheckpointError: It is missing or does not fit.
        ConfigError: An adapter is another than the checkpoint's of its name.
    """
    training = config.training
    if training.pretrained_checkpoint is None:
        return None
    folder = resolve_model_path(training.pretrained_checkpoint)
    check_adapters(training.lora_adapters, read_adapters(folder), training.pretrained_checkpoint)
    return cover(meta_model(config.model), folder, new_components=training.new_components)


def planned_model(config: RunConfig, *, flash_attention: bool | None = None) -> SpeechLMM:
    """The model on the meta device with all the adapters that it will have, the checkpoint's and new ones.

    Args:
        config: The run.
        flash_attention: Whether FlashAttention can run where the model will; by default what is so here.

    Raises:
        CheckpointError: The checkpoint is missing.
        ConfigError: The components do not fit together, or an adapter does not fit them.
    """
    training = config.training
    there: list[LoraAdapterConfig] = []
    if training.pretrained_checkpoint is not None:
        there = read_adapters(resolve_model_path(training.pretrained_checkpoint))
    found = {adapter.name: adapter for adapter in (*there, *training.lora_adapters)}
    flash_attention = can_flash(training) if flash_attention is None else flash_attention
    model = meta_model(config.model, adapters=list(found.values()), flash_attention=flash_attention)
    model.frozen_adapters = frozenset(found) - {adapter.name for adapter in training.lora_adapters}
    return model


def _quantisation(config: RunConfig, source: str) -> Callable[[SpeechLMM], None] | None:
    """What quantises the language model; None where nothing does.

    Args:
        config: The run.
        source: Where the model's weights come from, for a message.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    training = config.training
    if not (training.load_in_4bit or training.load_in_8bit):
        return None
    require_bitsandbytes()

    def quantise(model: SpeechLMM) -> None:
        own = model.ever_trainable & quantised_weights(model)
        if "text_decoder" not in model.base_sources or own:
            raise ConfigError(
                "training.load_in_4bit and load_in_8bit quantise weights of a base checkpoint only, but "
                f"{source} holds the language model's own; train without them"
            )
        on_gpu = torch.cuda.is_available() and not training.extras.get("use_cpu")
        quantise_decoder(
            model,
            bits=4 if training.load_in_4bit else 8,
            compute_dtype=torch.bfloat16 if use_bf16(training.bf16) else torch.float32,
            device=torch.device("cuda", torch.cuda.current_device()) if on_gpu else None,
            gradients=True,
        )

    return quantise

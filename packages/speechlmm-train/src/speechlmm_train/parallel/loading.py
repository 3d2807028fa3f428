"""Building a model whose text decoder is spread over the processes from its first parameter on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from speechlmm_train.parallel_names import stage_of
from speechlmm_train.training_config import TrainingConfig


@contextmanager
def spread_while_loading(training: TrainingConfig, *, loaded: bool) -> Iterator[None]:
    """With ZeRO's stage 3, has transformers build language models in parts, so that no process holds a whole one.

    Random weights are made whole, and are the same as in one process.

    Encoders are built and loaded whole: weights that a parametrisation makes of others (HuBERT's convolution) cannot
    be made of parts. They are spread when training begins.

    Args:
        training: The settings.
        loaded: Whether the language model's weights come from a checkpoint.
    """
    if stage_of(training.parallel) != 3 or not loaded:
        yield
        return
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    from speechlmm_train.parallel.deepspeed_config import preset

    deepspeed.init_distributed()
    zero = preset(training.parallel)["zero_optimization"]
    # Only what the building needs; that it exists is what transformers looks at.
    kept = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero})
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del kept

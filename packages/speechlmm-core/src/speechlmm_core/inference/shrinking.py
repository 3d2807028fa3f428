"""Greedy decoding of a batch that gets smaller as its answers end.

In transformers' own loop a batch keeps all its rows until the longest answer ends, and rows whose answer has ended go
on as padding. Here they are left out, so that a step costs what the answers that are still open cost. The texts are
the same: rows do not see each other.

Shapes: B rows of the batch, A rows that are open, N positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from speechlmm_core.model.penalties import TextOnly

CHECK_EVERY = {"cpu": 1, "cuda": 8}
"""Steps between two looks at what has ended, by device; a look makes the host wait for the device."""
WORTH = 0.9
"""Rows are left out once so few of them are open: it copies the cache of the others."""


def generate_shrinking(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Tensor:
    """A `custom_generate` of transformers for greedy search.

    Args:
        model: The language model.
        input_ids: (B, N) prompts, padded on the left.
        logits_processor: Changes the scores.
        stopping_criteria: Which answers have ended.
        generation_config: The options; only greedy search is done.
        **model_kwargs: What `generate` prepared: the prompt's embeddings, its mask, an empty cache.

    Returns:
        (B, N + new tokens) ids, padded on the right.
    """
    prompt = input_ids.shape[1]
    most = (generation_config.max_length or prompt + 1) - prompt
    out = input_ids.new_full((len(input_ids), most), _pad(generation_config))  # (B, new tokens)
    rows = torch.arange(len(input_ids), device=input_ids.device)  # (A,)
    ended = torch.zeros_like(rows, dtype=torch.bool)  # (A,)
    every = CHECK_EVERY.get(input_ids.device.type, 8)
    full = input_ids
    count = 0
    fresh = 1 if model_kwargs.get("use_cache", True) else None
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    while True:
        outputs: Any = model(**inputs, return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
        scores = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)  # (A, V)
        del outputs
        tokens = logits_processor(input_ids, scores).argmax(-1)  # pyright: ignore[reportArgumentType]  # (A,)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)  # (A, N)
        out[rows, count] = torch.where(ended, out[rows, count], tokens)
        ended = ended | stopping_criteria(input_ids, scores).to(ended.device)  # pyright: ignore[reportArgumentType]
        count += 1
        if count == out.shape[1]:
            break
        if count % every == 0:
            open_rows = (~ended).nonzero().flatten()  # (A,)
            if not len(open_rows):
                break
            if len(open_rows) <= WORTH * len(rows) and _select(model_kwargs, logits_processor, open_rows, len(rows)):
                rows, ended, input_ids = rows[open_rows], ended[open_rows], input_ids[open_rows]
        inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=fresh, **model_kwargs)
    return torch.cat([full, out[:, :count]], dim=-1)


def _select(model_kwargs: dict[str, Any], processors: LogitsProcessorList, kept: Tensor, count: int) -> bool:
    """Leaves rows out of everything that has them; false where that is not possible."""
    cache = model_kwargs.get("past_key_values")
    layers = getattr(cache, "layers", None)
    # Exactly these: a hybrid layer inherits the method, which leaves its recurrent state as it is.
    if not isinstance(cache, Cache) or not layers or not all(type(one) in _PLAIN_LAYERS for one in layers):
        return False
    tensors = {key: value for key, value in model_kwargs.items() if isinstance(value, Tensor)}
    if any(key not in _KNOWN or len(value) != count for key, value in tensors.items()):
        return False
    cache.batch_select_indices(kept)
    model_kwargs.update({key: value[kept] for key, value in tensors.items()})
    for processor in processors:
        if isinstance(processor, TextOnly):
            processor.select(kept)
    return True


_PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that hold keys and values and nothing else."""
_KNOWN = ("attention_mask", "position_ids", "inputs_embeds", "token_type_ids")
"""What of the prepared inputs has a row for each of the batch, in its first dimension."""


def _pad(config: GenerationConfig) -> int:
    pad = config.pad_token_id
    return pad[0] if isinstance(pad, list) else pad or 0

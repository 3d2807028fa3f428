"""Decoding without the rows that have ended, against transformers' own loop."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    cache_utils,
)

from speechlmm_core.inference import shrinking
from speechlmm_core.inference.shrinking import generate_shrinking
from speechlmm_core.model.penalties import TextOnly

STOP, PAD = 3, 0
NUMBERS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen3": {},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "qwen3_next": {
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "num_experts": 0,
        "mlp_only_layers": [0, 1],
        "layer_types": ["linear_attention", "full_attention"],
    },
}


def made_model(family):
    """A random model that ends its answers after different numbers of tokens."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **NUMBERS, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
        model.get_output_embeddings().weight[STOP] *= 1.6
    return model


def prompts(rows=12):
    """Prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 11, (rows,), generator=generator)
    ids = torch.randint(4, 50, (rows, 10), generator=generator)
    mask = (torch.arange(10) >= 10 - lengths[:, None]).long()
    return ids * mask, mask


def cut(ids):
    """Answers up to their end."""
    rows = [row.tolist() for row in ids]
    return [row[: row.index(STOP) + 1] if STOP in row else row for row in rows]


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_generate(family, every, embedded, monkeypatch):
    model = made_model(family)
    ids, mask = prompts()
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(
            len(kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"])
        ),
        with_kwargs=True,
    )
    monkeypatch.setitem(shrinking.CHECK_EVERY, "cpu", every)
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": [STOP], "pad_token_id": PAD}
    with torch.no_grad():
        # As the engine asks: by embeddings, so that only new tokens come back.
        given = {"inputs_embeds": model.get_input_embeddings()(ids)} if embedded else {"input_ids": ids}
        given |= {"attention_mask": mask, **options}
        start = 0 if embedded else 10
        expected = cut(model.generate(**given)[:, start:])
        seen.clear()
        found = cut(model.generate(**given, custom_generate=generate_shrinking)[:, start:])
    lengths = [len(row) for row in expected]
    assert len(set(lengths)) > 2, "the made model ends its answers at different steps"
    assert [row[:length] for row, length in zip(found, lengths, strict=True)] == expected
    if family != "qwen3_next":  # its recurrent states stay as they are
        assert seen[-1] < 12
        assert seen == sorted(seen, reverse=True)
    else:
        assert set(seen) == {12}


def test_a_layer_that_holds_more_than_keys_and_values_keeps_its_rows():
    keys = torch.randn(4, 2, 3, 8)
    for layer, selects in (
        (cache_utils.DynamicLayer(), True),
        (cache_utils.DynamicSlidingWindowLayer(sliding_window=2), True),
        (cache_utils.LinearAttentionAndFullAttentionLayer(), False),
        (cache_utils.LinearAttentionAndSlidingWindowAttentionLayer(sliding_window=2), False),
    ):
        cache = DynamicCache()
        cache.layers = [layer]
        layer.update(keys, keys)
        given = {"past_key_values": cache, "attention_mask": torch.ones(4, 3)}
        before = len(layer.keys)
        assert shrinking._select(given, LogitsProcessorList(), torch.tensor([0, 2]), 4) is selects
        assert len(layer.keys) == len(given["attention_mask"]) == (2 if selects else before)


def test_without_a_cache_all_rows_stay():
    model = made_model("llama")
    ids, mask = prompts()
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": [STOP], "pad_token_id": PAD, "use_cache": False}
    with torch.no_grad():
        expected = model.generate(ids, attention_mask=mask, **options)
        found = model.generate(ids, attention_mask=mask, **options, custom_generate=generate_shrinking)
    assert cut(found[:, 10:]) == cut(expected[:, 10:])


def test_penalties_follow_their_rows():
    model = made_model("llama")
    ids, mask = prompts()
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": [STOP], "pad_token_id": PAD}

    def run(**more):
        inner = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.4)])
        penalty = LogitsProcessorList([TextOnly(inner, mask.bool())])
        with torch.no_grad():
            return cut(model.generate(ids, attention_mask=mask, logits_processor=penalty, **options, **more)[:, 10:])

    expected = run()
    assert len({len(row) for row in expected}) > 2
    assert run(custom_generate=generate_shrinking) == expected

"""Penalties on repetition: of text only, and the same for any batch."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from speechlmm_core.model.penalties import TextOnly, text_penalties


def test_only_text_is_penalised():
    ids = torch.tensor([[0, 0, 3, 0, 4, 5], [2, 2, 0, 0, 3, 6]])
    text = torch.tensor([[False, False, True, False, True], [True, True, False, False, True]])
    scores = torch.full((2, 8), 2.0)
    processor = TextOnly(LogitsProcessorList([RepetitionPenaltyLogitsProcessor(2.0)]), text)
    assert processor(ids, scores.clone()).tolist() == [[2, 2, 2, 1, 1, 1, 2, 2], [2, 2, 1, 1, 2, 2, 1, 2]]
    beams = processor(ids.repeat_interleave(2, dim=0), scores.repeat_interleave(2, dim=0))
    assert torch.equal(beams[::2], processor(ids, scores))


def test_nothing_is_replaced_where_nothing_is_asked_for():
    text = torch.ones(1, 1, dtype=torch.bool)
    assert text_penalties({"top_k": 3}, GenerationConfig(), text) == {"top_k": 3}
    for kwargs, defaults in (
        ({"no_repeat_ngram_size": 2}, GenerationConfig()),
        ({}, GenerationConfig(repetition_penalty=1.3)),
        ({"generation_config": GenerationConfig(repetition_penalty=1.3)}, GenerationConfig()),
    ):
        replaced = text_penalties(dict(kwargs), defaults, text)
        assert (replaced["repetition_penalty"], replaced["no_repeat_ngram_size"]) == (1.0, 0)
        assert len(replaced["logits_processor"]) == 1
    off = text_penalties({"repetition_penalty": 1.0}, GenerationConfig(repetition_penalty=1.3), text)
    assert "logits_processor" not in off


@pytest.mark.parametrize("options", [{"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}])
def test_the_answer_does_not_depend_on_the_batch_and_may_end(tiny_model, tiny_processor, conversation, options):
    """The head is made to prefer the padding token, with which shorter rows are filled up."""
    chats = [conversation(4_000, "a", seed=1)[:1], conversation(20_000, "b", seed=2)[:1]]
    samples = [tiny_processor.sample(chat, with_answer=False) for chat in chats]
    pad = tiny_processor.tokenizer.pad_token_id
    kwargs = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 299, "pad_token_id": pad, **options}
    together = tiny_model.generate(tiny_processor.collate(samples, padding_side="left"), **kwargs)
    for row, sample in zip(together, samples, strict=True):
        alone = tiny_model.generate(tiny_processor.collate([sample], padding_side="left"), **kwargs)
        assert row.tolist() == alone[0].tolist()

    first = {}
    tiny_model.text_decoder.model.lm_head.register_forward_hook(
        lambda module, args, out: out + 50 * torch.nn.functional.one_hot(torch.tensor(pad), out.shape[-1])
    )
    for name, more in (("plain", {}), ("penalised", options)):
        ids = tiny_model.generate(tiny_processor.collate(samples, padding_side="left"), **{**kwargs, **more})
        first[name] = ids[:, 0].tolist()
    assert not any(pad in sample.layout.input_ids[sample.layout.medium < 0] for sample in samples)
    assert first["penalised"] == first["plain"] == [pad, pad]

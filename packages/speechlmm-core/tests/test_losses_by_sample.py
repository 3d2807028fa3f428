"""Each sample's share of a loss is its loss when it is computed alone; so are the units that it is a sum over."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from speechlmm_core.losses.chunked_ce import chunked_cross_entropies, chunked_cross_entropy


@pytest.fixture
def samples(tiny_processor, conversation):
    text = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "so"}]
    chats = [
        conversation(8_000, "hello there", seed=1),
        text,
        conversation(4_100, "no", seed=2, speaker=3_000),
        conversation(12_345, "what is it", seed=3),
    ]
    return [tiny_processor.sample(chat, with_answer=True) for chat in chats]


@pytest.mark.parametrize("packed", [True, False])
def test_shares_are_the_losses_of_single_samples(tiny_model, tiny_processor, samples, packed):
    batch = tiny_processor.collate(samples, packed=packed)
    together = tiny_model(**batch).losses
    assert together.keys() == {"lm", "ctc"}
    for place, sample in enumerate(samples):
        own = tiny_processor.collate([sample])
        alone = tiny_model(**own).losses
        for name, loss in together.items():
            assert not loss.by_sample.requires_grad
            expected = alone[name].sum.detach() if name in alone else torch.tensor(0.0)
            torch.testing.assert_close(loss.by_sample[place], expected, rtol=1e-5, atol=1e-4)
        counted = {unit: int(counts[place]) for unit, counts in batch["items_by_sample"].items()}
        assert counted == {unit: count for unit, count in own["num_items"].items() if unit in counted}
    assert batch["items_by_sample"].keys() == {u for u in batch["num_items"] if not u.endswith("_infeasible")}


def test_a_loss_that_is_not_a_number_is_its_own_samples(tiny_model, tiny_processor, samples):
    next(medium for name, medium in samples[2].media if name == "audio").values[:] = float("nan")
    losses = tiny_model(**tiny_processor.collate(samples, packed=True)).losses
    for name, loss in losses.items():
        assert loss.sum.isnan()
        assert loss.by_sample.isnan().tolist() == [False, False, True, False], name


@pytest.mark.parametrize("told", [True, False])
def test_without_any_transcript_each_share_is_known_to_be_nothing(tiny_model, tiny_processor, conversation, told):
    chats = [conversation(8_000, "hello", seed=1), conversation(4_100, "no", seed=2)]
    for number, chat in enumerate(chats):
        for item in chat[0]["content"]:
            if item["type"] == "audio" and not (told and number):
                item.pop("transcript", None)
    batch = tiny_processor.collate([tiny_processor.sample(chat, with_answer=True) for chat in chats])
    loss = tiny_model(**batch).losses["ctc"]
    assert loss.by_sample.shape == (2,)
    assert loss.by_sample[0] == 0
    assert (loss.by_sample[1] > 0) == told
    torch.testing.assert_close(loss.by_sample.sum(), loss.sum.detach())


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"label_smoothing": 0.2}], ids=str)
def test_positions_add_up_to_the_sum(options):
    hidden, weight = torch.randn(11, 8, dtype=torch.float64), torch.randn(17, 8, dtype=torch.float64)
    targets = torch.randint(17, (11,))
    targets[3] = -100
    total, losses = chunked_cross_entropies(hidden, weight, targets, chunk_size=4, **options)
    logits = hidden @ weight.T
    if "softcap" in options:
        logits = 3 * torch.tanh(logits / 3)
    smoothing = options.get("label_smoothing", 0.0)
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing))
    assert total == chunked_cross_entropy(hidden, weight, targets, chunk_size=4, **options)
    torch.testing.assert_close(total, losses.sum())

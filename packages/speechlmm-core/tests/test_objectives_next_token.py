"""Next-token prediction against the loss that transformers computes itself."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, PhiConfig

from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.interfaces.modules import TextDecoder
from speechlmm_core.objectives.next_token.config import NextTokenObjectiveConfig

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Decoder(TextDecoder):
    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()

    def embed(self, input_ids):
        return self.model.get_input_embeddings()(input_ids)

    @property
    def embedding_weight(self):
        return self.model.get_input_embeddings().weight

    @property
    def output_weight(self):
        return self.model.get_output_embeddings().weight

    def forward(self, inputs_embeds, **kwargs):
        return self.model.get_decoder()(inputs_embeds=inputs_embeds, use_cache=False, **kwargs).last_hidden_state


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5),
        GraniteConfig(**SIZES, logits_scaling=4.0),
        CohereConfig(**SIZES, logit_scale=0.25),
    ],
    ids=lambda config: config.model_type,
)
def test_loss_equals_the_stock_one(config):
    decoder = Decoder(config)
    ids = torch.randint(3, 61, (2, 9))
    labels = ids.clone()
    labels[0, :4] = labels[1, :6] = -100
    logits = decoder.model(input_ids=ids).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()

    target = (labels != -100).flatten().nonzero()[:, 0]
    batch = {"supervised": {"positions": target - 1, "ids": ids.flatten()[target]}}
    stages = {"text_decoder": Features(decoder(decoder.embed(ids)), torch.tensor([9, 9]))}
    objective = NextTokenObjectiveConfig().build(BuildContext())
    loss = objective(stages, batch, decoder)
    assert loss.unit == "supervised_tokens"
    torch.testing.assert_close(loss.sum, expected)
    loss.sum.backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(decoder.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-5)


def test_label_smoothing():
    decoder = Decoder(LlamaConfig(**SIZES))
    hidden = torch.randn(1, 5, 32)
    batch = {"supervised": {"positions": torch.tensor([0, 3]), "ids": torch.tensor([7, 9])}}
    objective = NextTokenObjectiveConfig(label_smoothing=0.2).build(BuildContext())
    loss = objective({"text_decoder": Features(hidden, torch.tensor([5]))}, batch, decoder).sum
    logits = hidden[0, [0, 3]] @ decoder.output_weight.T
    torch.testing.assert_close(
        loss, F.cross_entropy(logits, torch.tensor([7, 9]), reduction="sum", label_smoothing=0.2)
    )


def test_a_head_with_a_bias_is_refused():
    decoder = Decoder(PhiConfig(**SIZES))
    batch = {"supervised": {"positions": torch.tensor([0]), "ids": torch.tensor([1])}}
    with pytest.raises(ConfigError, match="PhiForCausalLM has a bias"):
        NextTokenObjectiveConfig().build(BuildContext())(
            {"text_decoder": Features(torch.zeros(1, 2, 32), torch.tensor([2]))}, batch, decoder
        )

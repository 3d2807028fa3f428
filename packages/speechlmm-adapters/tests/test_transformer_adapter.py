"""The transformer adapter against torch's own encoder layers, and rotary positions against transformers' Llama."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from speechlmm_adapters.transformer.adapter import angles, rotate
from speechlmm_adapters.transformer.config import TransformerAdapterConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.features import Features
from speechlmm_core.interfaces.context import BuildContext

SMALL = {"hidden_size": 12, "num_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}


def build(width_in: int = 6, width_out: int = 5, **options):
    torch.manual_seed(0)
    context = BuildContext(input_size=width_in, output_size=width_out, frame_rate=Fraction(50))
    adapter = TransformerAdapterConfig(**SMALL | options).build(context).eval()
    for name, parameter in adapter.named_parameters():  # biases and norms that do something
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.1)
        else:
            nn.init.normal_(parameter, 0.0, 0.3)
    return adapter


def features(*lengths: int, width: int = 6) -> Features:
    generator = torch.Generator().manual_seed(sum(lengths))
    values = torch.randn(len(lengths), max(lengths, default=0), width, generator=generator)
    return Features(values, torch.tensor(lengths, dtype=torch.long))


def torch_layer(layer) -> nn.TransformerEncoderLayer:
    """The layer with the same weights, as torch ships it."""
    twin = nn.TransformerEncoderLayer(12, 3, 20, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    own = layer.attention
    with torch.no_grad():
        twin.self_attn.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        twin.self_attn.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
    twin.self_attn.out_proj.load_state_dict(own.output.state_dict())
    twin.linear1.load_state_dict(layer.feed_forward.up.state_dict())
    twin.linear2.load_state_dict(layer.feed_forward.down.state_dict())
    twin.norm1.load_state_dict(layer.attention_norm.state_dict())
    twin.norm2.load_state_dict(layer.feed_forward_norm.state_dict())
    return twin


@pytest.mark.parametrize("width_in", [6, 12])
def test_equals_torchs_encoder_layers(width_in):
    adapter = build(width_in)
    given = features(9, 4, 7, width=width_in)
    out = adapter(given)
    for row, length in enumerate(given.lengths.tolist()):
        hidden = given.values[row : row + 1, :length]
        hidden = adapter.input_norm(adapter.input(hidden) if width_in != 12 else hidden)
        place = [[t / 10_000 ** (2 * i / 12) for i in range(6)] for t in range(length)]
        hidden = hidden + torch.cat([torch.tensor(place).sin(), torch.tensor(place).cos()], dim=1)
        for layer in adapter.model:
            hidden = torch_layer(layer)(hidden)
        expected = adapter.output(adapter.output_norm(hidden))[0]
        torch.testing.assert_close(out.values[row, :length], expected, atol=1e-5, rtol=1e-5)
        assert not out.values[row, length:].any()


def test_rotary_positions_equal_those_of_transformers():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 3, 7, 8, generator=generator)  # (B, H, T, D / H) each
    table = angles(7, 8, torch.device("cpu"))
    doubled = torch.cat([table, table], dim=1)[None]
    expected = apply_rotary_pos_emb(query, key, doubled.cos(), doubled.sin())
    for values, wanted in zip((query, key), expected, strict=True):
        torch.testing.assert_close(rotate(values, table.cos(), table.sin()), wanted, atol=1e-6, rtol=1e-6)
    frequencies = [1 / 10_000 ** (i / 4) for i in range(4)]
    torch.testing.assert_close(table[3], torch.tensor([3 * f for f in frequencies]))


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_frames_know_their_places(positions):
    adapter = build(positions=positions, num_attention_heads=2)
    given = features(6)
    turned = Features(given.values.flip(1), given.lengths)
    assert not torch.allclose(adapter(given).values.flip(1), adapter(turned).values, atol=1e-3)


def test_works_where_all_widths_match():
    adapter = build(12, 12)
    given = features(5, width=12)
    out = adapter(given).values
    assert not torch.allclose(out, given.values, atol=1e-2)
    changed = given.values.clone()
    changed[0, 4, 0] += 1  # of one feature: the norm would take away what is added to all
    assert not torch.allclose(adapter(Features(changed, given.lengths)).values[0, 0], out[0, 0], atol=1e-4)


@pytest.mark.parametrize("width", [8, 2048, 4096, 5120])
def test_reaches_the_width_of_any_language_model(width):
    assert build(6, width)(features(2)).values.shape == (1, 2, width)


def test_defaults_are_those_of_the_first_speechlmm():
    config = TransformerAdapterConfig()
    numbers = (config.hidden_size, config.num_layers, config.num_attention_heads, config.intermediate_size)
    assert numbers == (768, 4, 12, 3072)
    assert (config.dropout, config.attention_dropout, config.activation) == (0.1, 0.1, "gelu")


def test_dropout_is_for_training():
    adapter = build(dropout=0.5, attention_dropout=0.5)
    given = features(6)
    assert torch.equal(adapter(given).values, adapter(given).values)
    adapter.train()
    assert not torch.equal(adapter(given).values, adapter(given).values)


def test_bad_numbers():
    with pytest.raises(ValidationError, match="`num_attention_heads: 5` does not divide `hidden_size: 768`"):
        TransformerAdapterConfig(num_attention_heads=5)
    with pytest.raises(ValidationError, match="rotary positions come in pairs, but a head is 3 wide"):
        TransformerAdapterConfig(hidden_size=12, num_attention_heads=4, positions="rotary")
    with pytest.raises(ValidationError, match="sinusoidal positions come in pairs, but `hidden_size` is 9 wide"):
        TransformerAdapterConfig(hidden_size=9, num_attention_heads=3)
    with pytest.raises(ConfigError, match="unknown activation 'gleu'"):
        build(activation="gleu")

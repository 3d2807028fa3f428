"""Packed rows against padded batches of the stock implementation: logits, loss and gradients, by family."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
    SmolLM3Config,
)

from speechlmm_core.attention import varlen
from speechlmm_core.attention.packed import NAME, check_family, packed_attention, packed_attention_forward, register
from speechlmm_core.attention.segments import MIN_BLOCK, attend_segments
from speechlmm_core.errors import ConfigError
from speechlmm_core.testing.reads import CountedReads

LENGTHS = [7, 3, 12, 7, 1]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
LOCAL_GLOBAL = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=4),
    "qwen3": Qwen3Config(**GROUPED),
    "qwen3_window": Qwen3Config(**GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "smollm3": SmolLM3Config(**GROUPED, no_rope_layers=[1, 0]),
    "smollm3_window": SmolLM3Config(**GROUPED, no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=4),
    "gemma3": Gemma3TextConfig(**GROUPED, **LOCAL_GLOBAL, query_pre_attn_scalar=20),
    "gemma2": Gemma2Config(**GROUPED, **LOCAL_GLOBAL, attn_logit_softcapping=1.0),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "gpt_oss": GptOssConfig(**GROUPED, **LOCAL_GLOBAL, num_local_experts=4, num_experts_per_tok=2),
}


def tiny(config, implementation):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


def segments(lengths=LENGTHS):
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {"cu_seqlens": bounds, "lengths": lengths}


def packed_logits(model, embeds):
    """Logits of all segments, one after the other."""
    position_ids = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    with packed_attention(model) as row:
        given = {"position_ids": position_ids, "attention_mask": row.mask(embeds), "segments": segments()}
        return model(inputs_embeds=embeds, use_cache=False, **given).logits[0]


def padded_logits(model, embeds):
    rows = embeds[0].split(LENGTHS)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0.3)
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    position_ids = (mask.long().cumsum(1) - 1).clamp(min=0)
    logits = model(inputs_embeds=padded, attention_mask=mask.long(), position_ids=position_ids, use_cache=False).logits
    return logits[mask]


def loss_and_gradients(logits_of, model, embeds):
    model.zero_grad()
    embeds = embeds.clone().requires_grad_()
    logits = logits_of(model, embeds)
    labels = torch.arange(sum(LENGTHS)) % 61
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), loss.detach(), {"embeds": embeds.grad, **gradients}


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded(family):
    model = tiny(FAMILIES[family], "eager")  # the one stock implementation that every option works with
    embeds = torch.randn(1, sum(LENGTHS), 32)
    expected = loss_and_gradients(padded_logits, model, embeds)
    got = loss_and_gradients(packed_logits, model, embeds)
    assert model.config._attn_implementation == "eager"
    for one, other in zip(got[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert got[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        torch.testing.assert_close(got[2][name], gradient, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "smollm3", "gpt_neox"])
def test_single_samples_agree_with_the_stock_sdpa_forward(family):
    model = tiny(FAMILIES[family], "sdpa")
    embeds = torch.randn(1, sum(LENGTHS), 32)
    alone = [model(inputs_embeds=part, use_cache=False).logits[0] for part in embeds.split(LENGTHS, dim=1)]
    torch.testing.assert_close(packed_logits(model, embeds), torch.cat(alone), rtol=0, atol=1e-5)


def test_samples_do_not_see_each_other():
    model = tiny(FAMILIES["mistral"], "sdpa")
    embeds = torch.randn(1, sum(LENGTHS), 32)
    changed = embeds.clone()
    changed[0, 7:10] += 5
    difference = (packed_logits(model, embeds) - packed_logits(model, changed)).abs().amax(1)
    assert (difference[7:10] > 0).all()
    assert (difference[:7] == 0).all()
    assert (difference[10:] == 0).all()


def test_no_mask_is_built(monkeypatch):
    import transformers.masking_utils as masking

    def build(*args, **kwargs):
        raise AssertionError("a dense mask was built")

    model = tiny(FAMILIES["llama"], "sdpa")
    embeds = torch.randn(1, sum(LENGTHS), 32)
    for name in ("sdpa", "eager"):
        monkeypatch.setitem(masking.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, name, build)
    assert packed_logits(model, embeds).shape == (sum(LENGTHS), 61)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt_oss"}))  # whose router reads counts of its experts
def test_the_host_reads_nothing_back(family):
    model = tiny(FAMILIES[family], "eager")
    embeds = torch.randn(1, sum(LENGTHS), 32)
    with CountedReads() as counted:
        packed_logits(model, embeds)
    assert counted.reads == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_are_packed_too(reentrant):
    model = tiny(FAMILIES["mistral"], "sdpa").train()
    embeds = torch.randn(1, sum(LENGTHS), 32)
    expected = loss_and_gradients(packed_logits, model, embeds)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    function = model.model.layers[0]._gradient_checkpointing_func
    got = loss_and_gradients(packed_logits, model, embeds)
    assert model.model.layers[0]._gradient_checkpointing_func is function
    for name, gradient in expected[2].items():
        torch.testing.assert_close(got[2][name], gradient, rtol=0, atol=1e-6)


def test_the_implementation_is_restored_after_an_error():
    model = tiny(FAMILIES["gemma3"], "sdpa")

    def interrupted():
        with packed_attention(model):
            assert model.config._attn_implementation == NAME
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        interrupted()
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=61),
        MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=61),
    ],
    ids=["bloom", "mamba"],
)
def test_families_outside_the_interface_are_refused(config):
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match="cannot take packed batches"):
        check_family(model)


def test_layers_that_mix_positions_otherwise_are_refused():
    model = tiny(FAMILIES["llama"], "sdpa")
    model.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ConfigError, match="chunked_attention"), packed_attention(model):
        pass
    del model.config.layer_types


def test_a_window_that_is_not_passed_on_is_noticed(monkeypatch):
    model = tiny(FAMILIES["mistral"], "sdpa")
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    register()

    def forgetful(*args, sliding_window=None, **kwargs):
        return packed_attention_forward(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, NAME, forgetful)
    with pytest.raises(ConfigError, match="sliding window of 4 positions"):
        packed_logits(model, torch.randn(1, sum(LENGTHS), 32))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "cannot honour attention_mask"),
        ({"position_bias": torch.ones(1, 1, 4, 4)}, "cannot honour position_bias"),
        ({"is_causal": False}, "cannot honour is_causal=False"),
        ({"segments": None}, "did not hand the segments on"),
        ({"segments": segments([2, 3])}, "segments of 5 positions"),
    ],
)
def test_what_cannot_be_honoured_is_refused(extra, message):
    qkv = torch.randn(1, 2, 4, 8)
    arguments = {"attention_mask": None, "segments": segments([1, 3]), **extra}
    with pytest.raises(ConfigError, match=message):
        packed_attention_forward(torch.nn.Identity(), qkv, qkv, qkv, **arguments)


def naive(query, key, value, lengths, window, softcap, sinks, scale):
    """Attention by one dense matrix over the row."""
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    at = torch.arange(sum(lengths))
    visible = (sample[:, None] == sample[None]) & (at[:, None] >= at[None])
    if window is not None:
        visible &= at[:, None] - at[None] < window
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~visible, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.exp()[None, :, None, None]
    return (weights / total @ value).transpose(1, 2)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 1, 5, 300])
def test_segments_equal_one_dense_matrix(window, sinks, softcap):
    lengths = [4, 2 * MIN_BLOCK + 90, 6, 6, 0]
    torch.manual_seed(0)
    query = torch.randn(1, 4, sum(lengths), 8)
    key, value = torch.randn(2, 1, 2, sum(lengths), 8)
    options = {"window": window, "softcap": softcap, "sinks": torch.randn(4) if sinks else None, "scale": 0.3}
    got = attend_segments(query, key, value, lengths, **options)
    torch.testing.assert_close(got, naive(query, key, value, lengths, **options), rtol=0, atol=1e-5)


def kernel_for_half_precision(given):
    """Stands for flash-attn's kernel on the CPU; notes what it is given."""

    def attend(query, key, value, cu_seqlens, *_, softmax_scale, window_size, softcap, **options):
        given.append([query.dtype, key.dtype, value.dtype])
        assert options["causal"]
        lengths = cu_seqlens.diff().tolist()
        window = None if window_size[0] < 0 else window_size[0] + 1
        rows = (tensor.float().transpose(0, 1)[None] for tensor in (query, key, value))
        return naive(*rows, lengths, window, softcap or None, None, softmax_scale)[0].to(query.dtype)

    return attend


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3", "gemma2", "gpt_neox", "smollm3"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_under_autocast_kernels_get_half_precision(family, recomputed, monkeypatch):
    """Rotary embeddings in fp32 must not keep queries and keys from kernels that take half precision alone."""
    given = []
    kernel = kernel_for_half_precision(given)
    monkeypatch.setattr(varlen, "_flash_attn", lambda device, dtype: kernel if dtype == torch.bfloat16 else None)
    model = tiny(FAMILIES[family], "eager")
    embeds = torch.randn(1, sum(LENGTHS), 32)
    exact = loss_and_gradients(padded_logits, model, embeds)
    with torch.autocast("cpu", torch.bfloat16):
        padded = loss_and_gradients(padded_logits, model, embeds)
        if recomputed:
            model.train().activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        packed = loss_and_gradients(packed_logits, model, embeds)
    assert given == [[torch.bfloat16] * 3] * 2 * (2 if recomputed else 1)
    assert packed[2].keys() == exact[2].keys()
    flat = [
        torch.cat([found[0].flatten(), *(g.flatten() for g in found[2].values())]) for found in (exact, padded, packed)
    ]
    rounding = (flat[1] - flat[0]).norm()
    assert 0 < (flat[2] - flat[0]).norm() < 1.5 * rounding  # no further from fp32 than the padded way is
    torch.testing.assert_close(packed[1], padded[1], rtol=2e-3, atol=0)


def test_under_autocast_segments_equal_padded():
    model = tiny(FAMILIES["llama"], "sdpa")
    embeds = torch.randn(1, sum(LENGTHS), 32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(packed_logits(model, embeds), padded_logits(model, embeds), rtol=2e-2, atol=1e-2)


def test_dropout_is_applied():
    qkv = torch.randn(1, 2, 9, 8)
    for softcap in (None, 5.0):
        clean, dropped = (
            attend_segments(qkv, qkv, qkv, [4, 5], scale=0.3, dropout=p, softcap=softcap) for p in (0.0, 0.5)
        )
        assert not torch.allclose(clean, dropped)

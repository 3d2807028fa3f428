"""The text decoder's module against transformers: hidden states, strict loading, buffers, what is refused.

Shapes: R rows, N positions, D hidden.
"""

import json
from importlib import resources

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.text_decoder.config import CausalLMConfig
from speechlmm_core.text_decoder.logit_check import check_logits

PRESETS = resources.files("speechlmm_core.presets.model.text_decoder")
TINY = ("tiny_llama", "tiny_mistral", "tiny_qwen3", "tiny_gemma3", "tiny_smollm3")


def preset(name):
    return CausalLMConfig.model_validate(yaml.safe_load(PRESETS.joinpath(f"{name}.yaml").read_text()))


def build(config, **kwargs):
    torch.manual_seed(0)
    return config.build(BuildContext(**kwargs))


@pytest.mark.parametrize("name", TINY)
def test_hidden_states_and_head_give_the_logits_of_transformers(name):
    decoder = build(preset(name))
    ids = torch.randint(0, 256, (2, 7))  # (R, N)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    with torch.no_grad():
        hidden = decoder(decoder.embed(ids), attention_mask=mask)  # (R, N, D)
        logits = decoder.model(input_ids=ids, attention_mask=mask).logits
    assert hidden.shape == (2, 7, decoder.config.hidden_size)
    torch.testing.assert_close(hidden @ decoder.output_weight.T, logits)
    assert decoder.embedding_weight.shape == (decoder.config.vocab_size, decoder.config.hidden_size)
    assert decoder.output_weight is decoder.embedding_weight


@pytest.mark.parametrize("name", TINY)
def test_packed_samples_see_only_themselves(name):
    plain = yaml.safe_load(PRESETS.joinpath(f"{name}.yaml").read_text())
    if "sliding_window" in plain["model"]:
        plain["model"]["sliding_window"] = 3  # shorter than the samples
    decoder = build(CausalLMConfig.model_validate(plain))
    ids = torch.randint(0, 256, (1, 11))
    segments = {"cu_seqlens": torch.tensor([0, 4, 11], dtype=torch.int32), "lengths": [4, 7]}
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]])
    weights = torch.randn(1, 11, decoder.config.hidden_size)

    def results(run):
        embeds = decoder.embed(ids).detach().requires_grad_()
        hidden = run(embeds)
        decoder.zero_grad()
        (hidden * weights).sum().backward()
        return [hidden, embeds.grad, *(p.grad for p in decoder.parameters() if p.grad is not None)]

    packed = results(lambda embeds: decoder(embeds, position_ids=positions, segments=segments))
    alone = results(lambda embeds: torch.cat([decoder(embeds[:, :4]), decoder(embeds[:, 4:])], dim=1))
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_random_weights_are_those_of_transformers(name):
    decoder = build(preset(name))
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(decoder.model.config, attn_implementation="sdpa")
    assert all(torch.equal(a, b) for a, b in zip(decoder.model.parameters(), theirs.parameters(), strict=True))
    assert 0.015 < decoder.embedding_weight.std() < 0.025


@pytest.mark.parametrize("name", TINY)
def test_buffers_that_are_not_saved_can_be_restored(name):
    decoder, fresh = build(preset(name)), build(preset(name))
    for module in decoder.modules():
        for buffer in module._non_persistent_buffers_set:
            getattr(module, buffer).fill_(float("nan"))
    decoder.reset_buffers()
    for ours, theirs in zip(decoder.buffers(), fresh.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(decoder.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", TINY)
def test_weights_that_follow_are_not_drawn(name, tmp_path):
    drawn = build(preset(name))
    drawn.model.save_pretrained(tmp_path)
    plain = preset(name).model_dump(mode="json") | {"pretrained": str(tmp_path)}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = CausalLMConfig.model_validate(plain).build(BuildContext(weights_follow=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert loaded.output_weight is loaded.embedding_weight
    assert not torch.equal(loaded.embedding_weight, drawn.embedding_weight)
    loaded.load_base_weights()
    ids = torch.arange(1, 8)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, drawn.model(ids).logits)
    for ours, theirs in zip(
        (*loaded.parameters(), *loaded.buffers()), (*drawn.parameters(), *drawn.buffers()), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad == theirs.requires_grad


def test_the_preset_of_a_published_checkpoint_builds_without_weights():
    with torch.device("meta"):
        decoder = build(preset("llama_3_1b"))
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 1_235_814_400
    rope = decoder.model.config.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"], rope["factor"]) == ("llama3", 500000.0, 32.0)


def test_dtype_follows_the_surroundings():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert build(CausalLMConfig()).embedding_weight.dtype == torch.bfloat16
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("asked", ["eager", "sdpa"])
def test_attention_implementation(asked):
    assert build(CausalLMConfig(), attn_implementation=asked).model.config._attn_implementation == asked
    assert build(CausalLMConfig(), attn_implementation="auto").model.config._attn_implementation == "sdpa"


NARROW = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "pad_token_id": 0, "bos_token_id": 1}
USUAL = {**NARROW, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2}


@pytest.mark.parametrize(
    "model",
    [
        {**USUAL, "model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 30.0},
        {**USUAL, "model_type": "granite", "logits_scaling": 4.0},
        {**USUAL, "model_type": "cohere", "logit_scale": 0.25},
        {**USUAL, "model_type": "mixtral"},
        {"model_type": "gpt2", "vocab_size": 61, "n_embd": 32, "n_layer": 1, "n_head": 4},
    ],
    ids=lambda model: model["model_type"],
)
def test_families_whose_logits_the_loss_knows(model):
    with torch.device("meta"):
        build(CausalLMConfig(model=model, tokenizer="none"))
    decoder = build(CausalLMConfig(model=model, tokenizer="none"))
    state = torch.get_rng_state()
    check_logits(decoder)
    assert torch.equal(torch.get_rng_state(), state), "the model's other weights would depend on the check"
    assert "forward" not in vars(decoder.model.get_decoder())


@pytest.mark.parametrize(
    "model",
    [
        {**USUAL, "model_type": "hyperclovax", "logits_scaling": 4.0},
        {**NARROW, "model_type": "recurrent_gemma", "num_attention_heads": 4, "logits_soft_cap": 30.0},
    ],
    ids=lambda model: model["model_type"],
)
def test_families_whose_logits_the_loss_does_not_know_are_refused(model):
    """The one multiplies by what others divide by, the other caps under another name."""
    with pytest.raises(ConfigError, match="changes its logits in a way that the chunked loss does not know"):
        build(CausalLMConfig(model=model, tokenizer="none"))


class OnAGpu(TorchFunctionMode):
    """Refuses what `with torch.device("cuda")` refuses: a generator of the host, and no device beside it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = kwargs or {}
        if given.get("generator") is not None and given.get("device") is None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return func(*args, **given)


def test_random_numbers_of_the_host_say_so():
    with OnAGpu():
        with pytest.raises(RuntimeError, match="for generator"):
            torch.randn(2, generator=torch.Generator())
        build(CausalLMConfig())


@pytest.mark.gpu
def test_built_on_a_gpu_from_the_start():
    with torch.device("cuda"):
        decoder = build(CausalLMConfig())
    assert {parameter.device.type for parameter in decoder.parameters()} == {"cuda"}


# ---- checkpoints ----

NUMBERS = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(params=["tied", "untied"])
def saved(request, tmp_path):
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**NUMBERS, tie_word_embeddings=request.param == "tied"))
    model.save_pretrained(tmp_path)
    return tmp_path, model


def load(folder):
    decoder = build(CausalLMConfig(pretrained=str(folder), tokenizer="bytes"))
    decoder.load_base_weights()
    return decoder


def assert_equal(decoder, model):
    theirs = model.state_dict()
    assert set(decoder.model.state_dict()) == set(theirs)
    for key, value in decoder.model.state_dict().items():
        assert torch.equal(value, theirs[key]), key


def test_loading(saved):
    folder, model = saved
    assert_equal(load(folder), model)


def test_loading_shards(saved, tmp_path):
    _, model = saved
    folder = tmp_path / "shards"
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_equal(load(folder), model)
    next(folder.glob("model-00001-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="lacks model-00001"):
        load(folder)


def test_loading_a_pickle_of_tensors(saved):
    folder, model = saved
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert_equal(load(folder), model)


def test_loading_a_body_without_its_head(tmp_path):
    model = LlamaForCausalLM(LlamaConfig(**NUMBERS, tie_word_embeddings=True))
    model.model.save_pretrained(tmp_path)
    assert_equal(load(tmp_path), model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"missing \(model\.layers\.1\.mlp\.up_proj\.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), r"unexpected \(extra"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(31)}),
            r"norm\.weight is \(31,\), expected \(32,\)",
        ),
    ],
)
def test_every_misfit_is_named(saved, change, message):
    folder, _ = saved
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_tied_weights_that_differ_are_refused(tmp_path):
    model = LlamaForCausalLM(LlamaConfig(**NUMBERS, tie_word_embeddings=False))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match="to which the model ties it"):
        load(tmp_path)


def test_buffers_of_old_checkpoints_are_passed_over(saved):
    folder, model = saved
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_equal(load(folder), model)


def test_a_truncated_file_is_refused(saved):
    folder, _ = saved
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(folder)


def test_a_base_with_other_numbers_is_refused(saved):
    """Numbers that nobody gave, and that shapes do not show, must be the checkpoint's all the same."""
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").rename(folder / "away")
    given = {key: config[key] for key in (*NUMBERS, "model_type", "tie_word_embeddings")}
    decoder = build(CausalLMConfig.model_validate({"pretrained": str(folder), "tokenizer": "bytes", "model": given}))
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(ConfigError, match=r"'rms_norm_eps' is 1e-06, but the checkpoint .* has 0\.5"):
        decoder.load_base_weights()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_type": "lama"}, r"no causal language model of the type 'lama'; did you mean 'llama'\?"),
        ({"model_type": "whisper"}, "'whisper' is an encoder-decoder"),
        ({"model_type": "llama", "hidden_sise": 8}, r"unknown key 'hidden_sise'.*did you mean 'hidden_size'\?"),
        ({"model_type": "qwen3", "mlp_bias": False}, r"unknown key 'mlp_bias' under the text decoder's `model:` for"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}, "makes no 'llama': "),
        (
            {"model_type": "falcon_h1", "num_hidden_layers": 1, "lm_head_multiplier": 2.0},
            "changes its logits by lm_head",
        ),
    ],
)
def test_what_makes_no_model_is_refused(model, message):
    small = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8} if model["model_type"] == "gemma2" else {}
    with pytest.raises(ConfigError, match=message):
        build(CausalLMConfig(model={**small, **model}))

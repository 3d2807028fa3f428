"""The text decoders' presets: each builds without network and weights, with the published number of parameters."""

import json
from importlib import resources

import pytest
import torch
import yaml
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from speechlmm_core.chat.template import BUILT_IN
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.context import BuildContext
from speechlmm_core.text_decoder.config import CausalLMConfig
from speechlmm_core.text_decoder.decoder import build_hf_config, check_base

PRESETS = resources.files("speechlmm_core.presets.model.text_decoder")
NAMES = sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))

# Parameters by the hub's safetensors metadata of the checkpoint; tied embeddings, which Qwen3's two smallest
# checkpoints hold twice (751,632,384 and 2,031,739,904), are counted once. Vicuna has those of Llama 2 7B, Qwen3 14B
# those of its model card (14.8 billion, of which 13.2 are no embedding).
PARAMETERS = {
    "llama_3_1b": 1_235_814_400,
    "llama_3_3b": 3_212_749_824,
    "llama_3_8b": 8_030_261_248,
    "llama_3_8b_base": 8_030_261_248,
    "llama_3_70b": 70_553_706_496,
    "mistral": 7_248_023_552,
    "vicuna": 6_738_415_616,
    "qwen3_0_6b": 751_632_384 - 151_936 * 1024,
    "qwen3_1_7b": 2_031_739_904 - 151_936 * 2048,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "smollm3_3b": 3_075_098_624,
}
TINY = sorted(name for name in NAMES if name.startswith("tiny_"))


def read(name):
    text = PRESETS.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# @package model.text_decoder\n")
    return yaml.safe_load(text)


@pytest.fixture(autouse=True)
def no_checkpoints(monkeypatch):
    monkeypatch.delenv("PRETRAINED_COMPONENTS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_there_is_a_tiny_one_of_each_architecture():
    assert set(NAMES) == {*PARAMETERS, *TINY}
    assert {read(name)["model"]["model_type"] for name in TINY} == {
        read(name)["model"]["model_type"] for name in PARAMETERS
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_model_builds_without_network_and_weights(name):
    config = CausalLMConfig.model_validate(read(name))
    assert config.chat_template in BUILT_IN
    with torch.device("meta"):
        decoder = config.build(BuildContext())
    assert sum(parameter.numel() for parameter in decoder.parameters()) == PARAMETERS[name]
    hf_config = decoder.model.config
    windows = getattr(hf_config, "layer_types", None) or []
    windowed = [kind for kind in windows if kind == "sliding_attention"]
    assert len(windowed) == {"gemma3_270m": 15, "gemma3_1b": 22}.get(name, 0)
    if name == "mistral":
        assert hf_config.sliding_window is None
    if name == "smollm3_3b":
        assert [layer for layer in range(36) if not hf_config.no_rope_layers[layer]] == list(range(3, 36, 4))


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_builds_with_its_tokenizer(name):
    config = CausalLMConfig.model_validate(read(name))
    decoder = config.build(BuildContext())
    assert sum(parameter.numel() for parameter in decoder.parameters()) < 150_000
    assert len(config.build_tokenizer()) == decoder.embedding_weight.shape[0]


# What the published files of the families hold beside the numbers of their presets.
AS_PUBLISHED = {
    "llama_3_1b": {"architectures": ["LlamaForCausalLM"], "pretraining_tp": 1, "torch_dtype": "bfloat16"},
    "llama_3_8b_base": {"eos_token_id": 128001},
    "mistral": {"torch_dtype": "bfloat16", "use_cache": True},
    "vicuna": {"rope_scaling": None, "pretraining_tp": 1, "torch_dtype": "float16"},
    "qwen3_0_6b": {"max_window_layers": 28, "rope_scaling": None},
    "gemma3_1b": {"cache_implementation": "hybrid", "eos_token_id": [1, 106], "sliding_window_pattern": 6},
    "smollm3_3b": {"pretraining_tp": 2, "max_window_layers": 28, "layer_types": ["full_attention"] * 36},
}


def published(name):
    """A `config.json` in the layout of the preset's checkpoint, which older versions of transformers wrote."""
    numbers = {**read(name)["model"], **AS_PUBLISHED[name]}
    rope = numbers.pop("rope_parameters", None)
    if rope is not None:
        numbers["rope_theta"] = rope["full_attention"]["rope_theta"]
        numbers["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    return numbers


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_a_checkpoint_that_is_there_has_to_agree(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(tmp_path))
    folder = tmp_path / read(name)["pretrained"]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(published(name)))
    config = CausalLMConfig.model_validate(read(name))
    assert config.published is not None
    built = build_hf_config(config)
    check_base(config, built)
    theirs = published(name)
    reference = CONFIG_MAPPING[theirs.pop("model_type")](**theirs)
    assert built.rope_parameters == reference.rope_parameters
    for key, wrong in (("num_hidden_layers", 3), ("hidden_size", 7), ("num_key_value_heads", 2), ("vocab_size", 9)):
        (folder / "config.json").write_text(json.dumps({**published(name), key: wrong}))
        with pytest.raises(ConfigError, match=r"but the checkpoint '.*' has "):
            _ = CausalLMConfig.model_validate(read(name)).hidden_size


def test_a_checkpoint_of_gemma_is_loaded_whole(tmp_path):
    torch.manual_seed(0)
    numbers = {**read("tiny_gemma3")["model"], "vocab_size": 300}
    model_type = numbers.pop("model_type")
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**numbers))
    model.save_pretrained(tmp_path)
    given = {"type": "causal_lm", "pretrained": str(tmp_path), "tokenizer": "bytes", "chat_template": "gemma3"}
    decoder = CausalLMConfig.model_validate({**given, "model": {"model_type": model_type, **numbers}}).build(
        BuildContext()
    )
    decoder.load_base_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(decoder.model.state_dict()[key], value), key


def test_a_model_of_several_modalities_is_refused(tmp_path):
    numbers = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560}}
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    config = CausalLMConfig.model_validate({"type": "causal_lm", "pretrained": str(tmp_path)})
    with pytest.raises(ConfigError, match="holds a model of several modalities"):
        _ = config.hidden_size

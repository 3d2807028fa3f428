"""The text decoder's configuration: wired numbers, checkpoints, presets, and what is refused."""

import json
import subprocess
import sys
from importlib import resources

import pytest
import sentencepiece
import yaml
from pydantic import ValidationError

from speechlmm_core.chat.messages import Message
from speechlmm_core.chat.template import BUILT_IN
from speechlmm_core.checkpoint.source import fetch_pretrained, read_json_config, resolve_pretrained
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.interfaces.decoder import decoders
from speechlmm_core.text_decoder.config import CausalLMConfig, with_rope_parameters

PRESETS = resources.files("speechlmm_core.presets.model.text_decoder")


def preset(name):
    return CausalLMConfig.model_validate(yaml.safe_load(PRESETS.joinpath(name).read_text()))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(tmp_path))
    folder = tmp_path / "acme" / "tiny"
    folder.mkdir(parents=True)
    numbers = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "vocab_size": 300,
        "rope_theta": 500000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rms_norm_eps": 1e-05,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(numbers))
    return folder


def test_without_arguments_it_is_a_tiny_llama_over_bytes():
    config = CausalLMConfig()
    assert (config.model_type, config.hidden_size, config.vocab_size) == ("llama", 64, 259)
    assert len(config.build_tokenizer()) == 259
    assert CausalLMConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("template", BUILT_IN)
def test_the_byte_tokenizer_fits_the_table_and_keeps_every_text(template):
    config = CausalLMConfig(tokenizer="bytes", chat_template=template)
    chat = config.build_tokenizer()
    assert len(chat) == config.vocab_size
    text = "".join(map(chr, range(1, 300))) + "世界 🙂 <s></s><|im_end|>"
    assert len(chat.encode(text)) == len(text.encode())
    assert chat.decode(chat.encode(text)) == text
    assert config.numbers["pad_token_id"] == chat.pad_token_id
    assert config.numbers["eos_token_id"] == chat.tokenizer.eos_token_id
    assert config.numbers["bos_token_id"] == chat.tokenizer.bos_token_id


def test_the_numbers_come_from_the_checkpoint(checkpoint):
    for name in ("acme/tiny", str(checkpoint)):
        config = CausalLMConfig(pretrained=name)
        assert config.model == {}
        assert (config.model_type, config.hidden_size, config.vocab_size) == ("llama", 32, 300)
    assert config.numbers["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000.0}
    assert "torch_dtype" not in config.numbers


def test_numbers_that_contradict_the_checkpoint_are_refused(checkpoint):
    agreeing = {"model_type": "llama", "hidden_size": 32, "vocab_size": 300, "rms_norm_eps": 0.00001}
    assert CausalLMConfig(pretrained="acme/tiny", model=agreeing).hidden_size == 32
    wrong = CausalLMConfig(pretrained="acme/tiny", model={**agreeing, "hidden_size": 64})
    with pytest.raises(ConfigError, match=r"model\.hidden_size` is 64, but the checkpoint 'acme/tiny' has 32"):
        _ = wrong.hidden_size
    wrong = CausalLMConfig(pretrained="acme/tiny", model={**agreeing, "rope_theta": 10000.0})
    with pytest.raises(ConfigError, match=r"model\.rope_parameters"):
        _ = wrong.hidden_size


def test_a_checkpoint_on_the_hub_is_not_needed_where_the_numbers_are_given(monkeypatch):
    monkeypatch.delenv("PRETRAINED_COMPONENTS", raising=False)
    config = preset("llama_3_1b.yaml")
    assert (config.hidden_size, config.vocab_size, config.pretrained) == (
        2048,
        128256,
        "meta-llama/Llama-3.2-1B-Instruct",
    )


def test_a_saved_configuration_needs_the_checkpoint_no_more(checkpoint):
    for model in ({}, {"model_type": "llama", "hidden_size": 32, "vocab_size": 300, "num_hidden_layers": 3}):
        config = CausalLMConfig.model_validate({"pretrained": str(checkpoint), "model": model})
        plain = json.loads(config.model_dump_json())
        (checkpoint / "config.json").rename(checkpoint / "away")
        again = CausalLMConfig.model_validate(plain)
        assert again == config
        assert again.numbers == config.numbers
        (checkpoint / "away").rename(checkpoint / "config.json")


def test_missing_numbers_say_what_to_give():
    with pytest.raises(ConfigError, match="expected a positive 'hidden_size'"):
        _ = CausalLMConfig(model={"model_type": "llama"}).hidden_size
    with pytest.raises(ConfigError, match="expected a `model_type`"):
        _ = CausalLMConfig(model={"hidden_size": 64}).model_type
    with pytest.raises(ValidationError, match="chat_templat"):
        decoders.validate({"type": "causal_lm", "chat_templat": "llama_3"})


def test_a_table_smaller_than_the_tokenizer_is_refused():
    config = CausalLMConfig(model={"model_type": "llama", "hidden_size": 64, "vocab_size": 256})
    with pytest.raises(ConfigError, match=r"tokenizer needs 259 rows.*table has 256; take a smaller tokenizer"):
        config.build_tokenizer()


def test_a_saved_template_wins_over_the_name(tmp_path):
    chat = CausalLMConfig().build_tokenizer()
    chat.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(chat.template.replace("<|im_end|>", "<|im_end|>!"))
    again = CausalLMConfig().build_tokenizer(str(tmp_path))
    (piece,) = again.encode_chat([Message(role="user", content="a")])
    assert again.tokenizer.decode(piece.ids) == "<|im_start|>user\na<|im_end|>!\n"


def test_sources(tmp_path, monkeypatch):
    monkeypatch.delenv("PRETRAINED_COMPONENTS", raising=False)
    assert resolve_pretrained(str(tmp_path)) == tmp_path
    assert resolve_pretrained("acme/tiny@main") == "acme/tiny@main"
    for name in ("./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere", ""):
        with pytest.raises(CheckpointError, match="no folder"):
            resolve_pretrained(name)
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(tmp_path))
    (tmp_path / "tiny").mkdir()
    assert resolve_pretrained("tiny") == tmp_path / "tiny"
    assert fetch_pretrained("tiny", ["*"]) == tmp_path / "tiny"


def test_names_on_the_hub_may_end_in_a_revision(monkeypatch, tmp_path):
    asked = []

    def download(repo, filename, *, revision):
        asked.append((repo, filename, revision))
        (tmp_path / filename).write_text('{"model_type": "llama", "hidden_size": 8}')
        return str(tmp_path / filename)

    monkeypatch.delenv("PRETRAINED_COMPONENTS", raising=False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert CausalLMConfig(pretrained="acme/tiny@v1").hidden_size == 8
    assert asked == [("acme/tiny", "config.json", "v1")]


def test_a_tokenizer_that_is_only_a_sentencepiece_model(tmp_path):
    (tmp_path / "corpus.txt").write_text("hello world, turn the light on\nthis is a test of the audio\n" * 40)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **names}))
    model = {"model_type": "llama", "hidden_size": 64, "vocab_size": 320}
    chat = CausalLMConfig(model=model, tokenizer=str(tmp_path), chat_template="vicuna").build_tokenizer()
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("hello", "turn the light on, please 世", "</s>"):
        assert chat.encode(text) == theirs.encode(text)
        assert chat.decode(theirs.encode(text)) == text
    assert chat.stop_token_ids == [theirs.eos_id()]


def test_a_broken_checkpoint_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_json_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_json_config(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="holds list"):
        read_json_config(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    config = CausalLMConfig(tokenizer=str(tmp_path))
    with pytest.raises(CheckpointError, match="cannot load a tokenizer"):
        config.build_tokenizer()


def test_the_hub_without_a_network_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host\nmore")

    monkeypatch.delenv("PRETRAINED_COMPONENTS", raising=False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(CheckpointError, match=r"cannot get 'acme/tiny'.*no route to host \(.*PRETRAINED_COMPONENTS"):
        _ = CausalLMConfig(pretrained="acme/tiny").hidden_size


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"rope_theta": 1.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1.0}}),
        ({"rope_scaling": None}, {}),
        ({"rope_scaling": None, "rope_theta": 2.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 2.0}}),
        ({"rope_parameters": {"a": 1}, "x": 2}, {"rope_parameters": {"a": 1}, "x": 2}),
    ],
)
def test_layouts_of_rotary_embeddings(numbers, expected):
    assert with_rope_parameters(numbers) == expected


def test_validating_imports_neither_torch_nor_transformers():
    code = (
        "import sys\n"
        "from speechlmm_core.interfaces.decoder import decoders\n"
        "from speechlmm_core.interfaces.task import get_task\n"
        "config = decoders.validate({'type': 'causal_lm'})\n"
        "config.hidden_size, config.vocab_size, get_task('asr').prompts(), get_task('st').prompts()\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Taking over checkpoints of the first SpeechLMM, which are written here in its layout."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM, WhisperConfig
from transformers.models.bert.modeling_bert import BertAttention, BertIntermediate, BertOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.features import Features
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.text_decoder.byte_tokenizer import build_byte_tokenizer
from speechlmm_train.cli.main import main
from speechlmm_train.import_checkpoint.files import plain_name
from speechlmm_train.import_checkpoint.importing import import_checkpoint, plan_import
from speechlmm_train.import_checkpoint.rules import place, rules_of

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, HIDDEN, OUT = 32, 48, 64
ADDED = 2
"""Tokens around the audio that the first SpeechLMM adds to the vocabulary."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The base checkpoints: an encoder and a language model with its tokenizer."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    sizes = {"d_model": WIDTH, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    WhisperEncoder(WhisperConfig(**sizes, num_mel_bins=16, max_source_positions=100)).save_pretrained(root / "whisper")
    tokenizer = build_byte_tokenizer("llama_3")
    tokenizer.save_pretrained(root / "llama")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "tie_word_embeddings": False}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=OUT, intermediate_size=96, **heads)
    ).save_pretrained(root / "llama")
    return root


def blocks(*sizes):
    """The stated layout: Linear, LayerNorm, ReLU for each width but the last, which has no activation."""
    layers = []
    for number, (size_in, size_out) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU()] if number else []
        layers += [nn.Linear(size_in, size_out), nn.LayerNorm(size_out)]
    return nn.Sequential(*layers)


class FirstMlp(nn.Module):
    """A perceptron in the first one's layout: `layers`, and `residual_projector` where that is linear."""

    def __init__(self, residual="interpolation", hidden_layers=2, width=WIDTH, out=OUT):
        super().__init__()
        self.layers = blocks(width, *[HIDDEN] * (hidden_layers + 1), out)
        self.residual = residual
        if residual == "linear":
            self.residual_projector = nn.Linear(width, out)
        shake(self)
        sizes = {"input_dim": width, "output_dim": out, "hidden_size": HIDDEN, "hidden_layers": hidden_layers}
        self.section = {"model_type": "mlp", "residual_type": residual, **sizes}

    def forward(self, frames):
        out = self.layers(frames)
        if self.residual == "linear":
            return out + self.residual_projector(frames)
        if self.residual == "interpolation":
            return out + nn.functional.interpolate(frames, size=out.shape[-1], mode="linear", align_corners=False)
        return out


class FirstConv(nn.Module):
    """Strided convolutions in the first one's layout."""

    def __init__(self, hidden_layers, width=WIDTH, hidden=40, out=OUT):
        super().__init__()
        self.conv1d_in = nn.Conv1d(width, hidden, 3, 2, 1)
        self.layer_norm_in = nn.LayerNorm(hidden)
        self.residual_conv1d_hidden_layers = nn.ModuleList(
            nn.Conv1d(hidden, hidden, 3, 1, 1) for _ in range(hidden_layers)
        )
        self.layer_norm_hidden_layers = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(hidden_layers))
        self.conv1d_out = nn.Conv1d(hidden, out, 3, 2, 1)
        self.layer_norm_out = nn.LayerNorm(out)
        shake(self)
        sizes = {"input_dim": width, "output_dim": out, "hidden_size": hidden, "hidden_layers": hidden_layers}
        self.section = {"model_type": "conv", **sizes}

    def forward(self, frames):
        def apply(conv, norm, values):
            return norm(conv(values.transpose(1, 2)).transpose(1, 2))

        values = apply(self.conv1d_in, self.layer_norm_in, frames).relu()
        for conv, norm in zip(self.residual_conv1d_hidden_layers, self.layer_norm_hidden_layers, strict=True):
            values = apply(conv, norm, values).relu() + values
        return apply(self.conv1d_out, self.layer_norm_out, values)


class FirstQFormer(nn.Module):
    """Queries over windows in the first one's layout; the layers are transformers' own of BERT."""

    def __init__(self, window=4, queries=2, hidden=24):
        super().__init__()
        numbers = {"num_attention_heads": 2, "intermediate_size": 40, "layer_norm_eps": 1e-12}
        own = BertConfig(hidden_size=hidden, attn_implementation="eager", **numbers)
        self.window = window
        self.pre_qformer_layer_norm = nn.LayerNorm(WIDTH)
        self.query_embeds = nn.Parameter(torch.randn(1, queries, hidden))
        self.qformer = nn.Module()
        self.qformer.embeddings, self.qformer.encoder = nn.Module(), nn.Module()
        self.qformer.embeddings.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)
        self.qformer.encoder.layer = nn.ModuleList()
        for number in range(3):
            layer = nn.Module()
            layer.attention = BertAttention(own)
            if number % 2 == 0:
                layer.crossattention = BertAttention(own)
                for name in ("key", "value"):
                    setattr(layer.crossattention.self, name, nn.Linear(WIDTH, hidden))
            layer.intermediate_query, layer.output_query = BertIntermediate(own), BertOutput(own)
            self.qformer.encoder.layer.append(layer)
        self.output_projector = nn.Linear(hidden, OUT)
        shake(self)
        self.eval()
        sizes = {"input_dim": WIDTH, "output_dim": OUT, "hidden_size": hidden, "num_hidden_layers": 3, **numbers}
        windows = {"compress_factor": window, "num_queries": queries, "cross_attention_every_n_layers": 2}
        self.section = {"model_type": "qformer", "hop_size": 0, **sizes, **windows}

    def attend(self, attention, queries, frames):
        """(Q, D) of one window; the softmax is written out."""
        own, size = attention.self, attention.self.attention_head_size
        query, key, value = own.query(queries), own.key(frames), own.value(frames)
        heads = [
            torch.softmax(query[:, at : at + size] @ key[:, at : at + size].T / size**0.5, -1)
            @ value[:, at : at + size]
            for at in range(0, query.shape[1], size)
        ]
        return attention.output(torch.cat(heads, -1), queries)

    def forward(self, frames):
        rows = []
        for clip in self.pre_qformer_layer_norm(frames):
            windows = []
            for window in clip.split(self.window):
                values = self.qformer.embeddings.LayerNorm(self.query_embeds[0])
                for layer in self.qformer.encoder.layer:
                    values = self.attend(layer.attention, values, values)
                    if hasattr(layer, "crossattention"):
                        values = self.attend(layer.crossattention, values, window)
                    values = layer.output_query(layer.intermediate_query(values), values)
                windows.append(self.output_projector(values))
            rows.append(torch.cat(windows))
        return torch.stack(rows)


class FirstTwoStage(nn.Module):
    """A perceptron, convolutions, and another perceptron."""

    def __init__(self):
        super().__init__()
        self.modality_adapter_before = FirstMlp("none", 1, WIDTH, HIDDEN)
        self.length_adapter = FirstConv(1, HIDDEN, 40, HIDDEN)
        self.modality_adapter_after = FirstMlp("linear", 0, HIDDEN, OUT)
        parts = {name: part.section for name, part in self.named_children()}
        self.section = {"model_type": "cmlp", "input_dim": WIDTH, "output_dim": OUT, **parts}

    def forward(self, frames):
        return self.modality_adapter_after(self.length_adapter(self.modality_adapter_before(frames)))


def shake(module):
    """Gives every parameter values of its own, layer norms too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))


class First(nn.Module):
    """The first SpeechLMM's names around its parts."""

    def __init__(self, bases, adapter):
        super().__init__()
        self.audio_encoder, self.text_decoder = nn.Module(), nn.Module()
        self.audio_encoder.model = WhisperEncoder.from_pretrained(bases / "whisper")
        self.text_decoder.model = LlamaForCausalLM.from_pretrained(bases / "llama")
        self.audio_adapter = adapter
        table = self.text_decoder.model
        table.resize_token_embeddings(table.config.vocab_size + ADDED, mean_resizing=False)


def config(bases, adapter, **changes):
    decoder = {"model_type": "llama", "_name_or_path": str(bases / "llama"), "conversation_version": "llama_3_1"}
    return {
        "model_type": "speechlmm",
        "torch_dtype": "float32",
        "audio_encoder": {"model_type": "whisper-unrestricted", "_name_or_path": str(bases / "whisper")},
        "audio_adapter": adapter.section,
        "text_decoder": decoder,
        **changes,
    }


def write(folder, bases, adapter, *, trained=("audio_adapter",), more=None, **changes):
    """A checkpoint as the first SpeechLMM's trainer leaves it: the trained tensors and the configuration."""
    torch.manual_seed(1)
    first = First(bases, adapter)
    shake(first.text_decoder)
    kept = {n: p.detach().clone() for n, p in first.named_parameters() if n.startswith(tuple(trained))}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**kept, **(more or {})}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(bases, adapter, **changes)))
    return first


def take_over(folder, output, *overrides, **options):
    coverage = import_checkpoint(folder, output, plan_import(folder, overrides), **options)
    return SpeechLMM.from_pretrained(output), coverage


def adapt(model, frames):
    lengths = torch.full((frames.shape[0],), frames.shape[1])
    return model.audio_adapter(Features(frames, lengths)).values


ADAPTERS = {
    "mlp": FirstMlp,
    "mlp_linear": lambda: FirstMlp("linear"),
    "mlp_none": lambda: FirstMlp("none", hidden_layers=0),
    "conv": lambda: FirstConv(0),
    "conv_residual": lambda: FirstConv(2),
    "qformer": FirstQFormer,
    "two_stage": FirstTwoStage,
}


@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_adapters_compute_what_they_did(bases, tmp_path, kind):
    torch.manual_seed(0)
    adapter = ADAPTERS[kind]()
    write(tmp_path / "first", bases, adapter)
    model, coverage = take_over(tmp_path / "first", tmp_path / "ours")
    frames = torch.randn(3, 13, WIDTH)
    # The first one's norm before a Q-Former adds 1e-5 to variances, ours what BERT adds.
    tolerance = 1e-4 if kind == "qformer" else 1e-5
    torch.testing.assert_close(adapt(model, frames), adapter(frames), rtol=tolerance, atol=tolerance)
    assert coverage.table["audio_adapter"].new == []
    assert coverage.table["text_decoder"].loaded == 0
    base = load_file(bases / "llama" / "model.safetensors")
    got = model.text_decoder.model.state_dict()
    assert all(torch.equal(got[name], value) for name, value in base.items())


def test_the_language_model_computes_what_it_did(bases, tmp_path):
    first = write(tmp_path / "first", bases, FirstMlp(), trained=("audio_adapter", "text_decoder"))
    model, coverage = take_over(tmp_path / "first", tmp_path / "ours")
    ids = torch.arange(30)[None]
    vocabulary = model.text_decoder.model.config.vocab_size
    with torch.no_grad():
        ours, theirs = model.text_decoder.model(ids).logits, first.text_decoder.model(ids).logits
    torch.testing.assert_close(ours, theirs[..., :vocabulary], rtol=1e-5, atol=1e-5)
    assert set(coverage.rows.values()) == {ADDED}
    assert "2 rows of added tokens left out" in "\n".join(coverage.lines({}))
    frozen = load_file(bases / "whisper" / "model.safetensors")
    assert all(torch.equal(model.audio_encoder.model.state_dict()[name], value) for name, value in frozen.items())


def test_a_reference_to_the_bases_is_enough(bases, tmp_path):
    write(tmp_path / "first", bases, FirstMlp())
    whole, _ = take_over(tmp_path / "first", tmp_path / "whole")
    partly, _ = take_over(tmp_path / "first", tmp_path / "partly", save="trainable")
    assert all(name.startswith("audio_adapter.") for name in load_file(tmp_path / "partly" / "model.safetensors"))
    state = partly.state_dict()
    assert all(torch.equal(state[name], value) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("use_rslora", [False, True])
def test_low_rank_adapters_are_merged(bases, tmp_path, use_rslora):
    adapter = FirstMlp()
    write(tmp_path / "first", bases, adapter)
    (tmp_path / "first" / "model.safetensors").unlink()
    first = First(bases, adapter)
    linear = [n for n, m in first.named_modules() if isinstance(m, nn.Linear) and n.startswith("text_decoder.model.")]
    linear = [name for name in linear if not name.endswith("lm_head")]
    name = "text_decoder_peft_adapter"
    peft = get_peft_model(
        first, LoraConfig(r=4, lora_alpha=6, target_modules=linear, use_rslora=use_rslora), adapter_name=name
    )
    peft.add_adapter(
        "other_modules", LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=["audio_adapter"])
    )
    peft.base_model.set_adapter([name, "other_modules"])
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter_name, parameter in peft.named_parameters():
            if "lora_B" in parameter_name or "modules_to_save" in parameter_name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    peft.save_pretrained(tmp_path / "first")
    model, coverage = take_over(tmp_path / "first", tmp_path / "ours")
    state = model.state_dict()
    base = load_file(bases / "llama" / "model.safetensors")
    for path in linear:
        delta = peft.base_model.model.get_submodule(path).get_delta_weight(name)  # PEFT's own
        expected = base[f"{path.removeprefix('text_decoder.model.')}.weight"] + delta
        torch.testing.assert_close(state[f"{path}.weight"], expected, rtol=1e-6, atol=1e-6)
    assert len(coverage.added) == len(linear)
    trained = peft.base_model.model.audio_adapter.modules_to_save["other_modules"]
    frames = torch.randn(2, 7, WIDTH)
    torch.testing.assert_close(adapt(model, frames), trained(frames), rtol=1e-5, atol=1e-5)


def decoder_adapter(peft, name):
    """What an adapter of the PEFT model adds, by our name of the matrix."""
    modules = {
        path: module for path, module in peft.base_model.model.named_modules() if name in getattr(module, "r", ())
    }
    return {f"{path}.weight": module.get_delta_weight(name) for path, module in modules.items()}


def adapted(first, **targets):
    """The model with adapters on the matrices of the text decoder that end so."""
    peft = None
    for name, target in targets.items():
        options = LoraConfig(r=4, lora_alpha=6, target_modules=rf"text_decoder\.model\..*{target}")
        peft = get_peft_model(first, options, adapter_name=name) if peft is None else peft
        if name not in peft.peft_config:
            peft.add_adapter(name, options)
    assert peft is not None
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return peft


def test_only_the_checkpoint_s_own_adapters_are_merged(bases, tmp_path, caplog):
    """A run's folder holds its checkpoints, with the adapters of their steps."""
    adapter = FirstMlp()
    folder = tmp_path / "first"
    write(folder, bases, adapter)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{i + 1}-of-00002.safetensors": dict(list(state.items())[i::2]) for i in range(2)}
    for name, part in parts.items():
        save_file(part, folder / name)
    places = {key: name for name, part in parts.items() for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    # Both lie on q_proj, where they add up.
    peft = adapted(First(bases, adapter), attention=r"(q|k)_proj", more=r"(q|up)_proj")
    peft.save_pretrained(folder)
    for name in ("checkpoint-1", "checkpoint-20"):
        peft.save_pretrained(folder / name)
    (folder / "checkpoint-20" / "config.json").write_text("{}")
    (folder / "old").mkdir()
    shutil.copytree(folder / "more", folder / "old" / "more")
    model, coverage = take_over(folder, tmp_path / "ours")
    expected = {
        f"text_decoder.model.{name}": value for name, value in load_file(bases / "llama" / "model.safetensors").items()
    }
    for name in ("attention", "more"):
        for path, delta in decoder_adapter(peft, name).items():
            expected[path] = expected[path] + delta.detach()
    got = model.state_dict()
    for path, value in expected.items():
        torch.testing.assert_close(got[path], value, rtol=1e-6, atol=1e-6)
    assert len(coverage.added) == 2 * 4
    assert coverage.table["audio_adapter"].loaded == len(state)
    assert f"adapters in {folder / 'old' / 'more'} are not this checkpoint's, and left out" in caplog.text
    assert "checkpoint-" not in caplog.text


def test_an_adapter_that_is_there_twice_is_refused(bases, tmp_path):
    adapter = FirstMlp()
    folder = tmp_path / "first"
    write(folder, bases, adapter)
    peft = adapted(First(bases, adapter), attention="q_proj")
    peft.save_pretrained(folder)
    file = folder / "attention" / "adapter_model.safetensors"
    state = load_file(file)
    more = {key.replace(".weight", ".more.weight"): value.clone() for key, value in state.items()}
    save_file({**state, **more}, file)
    with pytest.raises(CheckpointError, match=r"'attention' is there twice for 'text_decoder.*q_proj.weight'"):
        take_over(folder, tmp_path / "ours")
    save_file(state, file)
    folder = folder.rename(tmp_path / "attention")  # the folder itself is PEFT's for an adapter, too
    for one in (folder / "attention").iterdir():
        shutil.copy(one, folder)
    with pytest.raises(CheckpointError, match=r"'attention' is there twice for 'text_decoder.*q_proj.weight'"):
        take_over(folder, tmp_path / "ours")


def test_what_has_no_place_is_an_error_unless_it_is_allowed(bases, tmp_path):
    head = {"model_type": "moshi_bert"}
    more = {"talking_head.heads.0.weight": torch.zeros(2), "audio_adapter.layers.99.scale": torch.zeros(1)}
    write(tmp_path / "first", bases, FirstMlp(), more=more, talking_head=head)
    with pytest.raises(CheckpointError, match=r"2 tensors have no place here.*--allow-partial"):
        take_over(tmp_path / "first", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    _, coverage = take_over(tmp_path / "first", tmp_path / "ours", allow_partial=True)
    assert sorted(coverage.unexpected) == sorted(more)


def test_a_component_at_random_is_an_error(bases, tmp_path):
    adapter = FirstMlp()
    write(tmp_path / "first", bases, adapter)
    state = load_file(tmp_path / "first" / "model.safetensors")
    state.pop("audio_adapter.layers.3.weight")
    save_file(state, tmp_path / "first" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors would be left at random \(audio_adapter\.model\.4\.weight\)"):
        take_over(tmp_path / "first", tmp_path / "ours")


def test_another_shape_is_never_allowed(bases, tmp_path):
    write(tmp_path / "first", bases, FirstMlp())
    state = load_file(tmp_path / "first" / "model.safetensors")
    state["audio_adapter.layers.0.weight"] = torch.zeros(HIDDEN, WIDTH + 1)
    save_file(state, tmp_path / "first" / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 of another shape"):
        take_over(tmp_path / "first", tmp_path / "ours", allow_partial=True)


def test_an_adapter_that_computes_something_else_is_refused(bases, tmp_path):
    write(tmp_path / "first", bases, FirstMlp())
    given = ["model/audio_adapter=mlp", f"model.audio_adapter.hidden_size={HIDDEN}"]
    take_over(tmp_path / "first", tmp_path / "ours", *given)
    with pytest.raises(ConfigError, match=r"audio_adapter\.residual: got 'none', but .* 'interpolation'"):
        plan_import(tmp_path / "first", [*given, "model.audio_adapter.residual=none"])
    with pytest.raises(ConfigError, match="takes components only"):
        plan_import(tmp_path / "first", ["training.max_steps=3"])


def test_parts_without_a_counterpart_are_named(bases, tmp_path):
    adapter = FirstMlp()
    for section, reason in (
        ({"model_type": "cformer"}, "norms behind them"),
        ({"model_type": "cif"}, "a layer norm follows its projection"),
        ({"model_type": "qformer", "compress_factor": 4, "hop_size": 0.25}, "hop_size"),
        ({"model_type": "sorcery"}, "it is not known"),
    ):
        write(tmp_path / "first", bases, adapter, audio_adapter=section)
        with pytest.raises(CheckpointError, match=f"audio_adapter: .*{reason}.*give one as model/audio_adapter"):
            plan_import(tmp_path / "first", [])
    other = {"model_type": "llama", "_name_or_path": "x", "conversation_version": "v7"}
    write(tmp_path / "first", bases, adapter, text_decoder=other)
    with pytest.raises(CheckpointError, match="conversation_version 'v7' is not known"):
        plan_import(tmp_path / "first", [])


def test_files_that_are_something_else_are_refused(bases, tmp_path):
    with pytest.raises(CheckpointError, match="cannot read"):
        plan_import(tmp_path, [])
    write(tmp_path / "first", bases, FirstMlp())
    take_over(tmp_path / "first", tmp_path / "ours")
    with pytest.raises(CheckpointError, match="of this SpeechLMM already"):
        plan_import(tmp_path / "ours", [])
    plan = plan_import(tmp_path / "first", [])
    torch.save({"a": torch.zeros(2)}, tmp_path / "first" / "model.safetensors")  # as its averaging left them
    with pytest.raises(CheckpointError, match="no safetensors file"):
        import_checkpoint(tmp_path / "first", tmp_path / "again", plan)
    (tmp_path / "first" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        import_checkpoint(tmp_path / "first", tmp_path / "again", plan)


def test_the_qformer_s_names():
    rules = {"audio_adapter": rules_of("audio_adapter", {"model_type": "qformer"})}
    expected = {
        "pre_qformer_layer_norm.weight": "input_norm.weight",
        "query_embeds": "model.queries",
        "qformer.embeddings.LayerNorm.bias": "model.query_norm.bias",
        "qformer.encoder.layer.3.attention.self.query.weight": "model.layers.3.attention.query.weight",
        "qformer.encoder.layer.3.attention.output.LayerNorm.bias": "model.layers.3.attention_norm.bias",
        "qformer.encoder.layer.10.crossattention.self.key.bias": "model.layers.10.cross_attention.key.bias",
        "qformer.encoder.layer.0.crossattention.output.dense.weight": "model.layers.0.cross_attention.output.weight",
        "qformer.encoder.layer.0.output_query.LayerNorm.weight": "model.layers.0.feed_forward_norm.weight",
        "output_projector.bias": "output.bias",
    }
    for old, new in expected.items():
        found = place(f"audio_adapter.{old}", rules)
        assert found is not None
        assert found.name == f"audio_adapter.{new}"
    assert place("audio_adapter.qformer.encoder.layer.0.intermediate.dense.weight", rules) is None


def test_names_that_wrappers_and_older_versions_left():
    assert plain_name("base_model.model.audio_adapter.modules_to_save.other_modules.layers.0.bias") == (
        "audio_adapter.layers.0.bias"
    )
    assert plain_name("base_model.model.text_decoder.model.lm_head.base_layer.weight") == (
        "text_decoder.model.lm_head.weight"
    )
    assert plain_name("module.audio_adapter.layers.0.bias") == "audio_adapter.layers.0.bias"
    rules = {name: rules_of(name, {}) for name in ("audio_encoder", "text_decoder")}
    for old, new in (("weight_g", "parametrizations.weight.original0"), ("conv.bias", "conv.bias")):
        found = place(f"audio_encoder.model.encoder.pos_conv_embed.conv.{old}", rules)
        assert found is not None
        assert found.name == f"audio_encoder.model.encoder.pos_conv_embed.conv.{new}"
    constant = place("text_decoder.model.model.layers.0.self_attn.rotary_emb.inv_freq", rules)
    assert constant is not None
    assert constant.how == "leave_out"
    assert place("codec_encoder.model.x", rules) is None


def test_the_command(bases, tmp_path, capsys):
    write(tmp_path / "first", bases, FirstMlp())
    arguments = ["import-checkpoint", str(tmp_path / "first"), str(tmp_path / "ours")]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    said = capsys.readouterr()
    assert exit_.value.code == 0, said.err
    row = next(line.split() for line in said.out.splitlines() if line.startswith("audio_adapter"))
    tensors = load_file(tmp_path / "first" / "model.safetensors")
    assert row[1:] == [str(len(tensors)), f"{sum(t.numel() for t in tensors.values()):,}", "0", "0", "0"]
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["first", "", "first/ours", "bases/llama"])
def test_nothing_that_is_read_is_written_over(bases, tmp_path, capsys, place):
    root = tmp_path / "root"
    shutil.copytree(bases, root / "bases")
    write(root / "first", root / "bases", FirstMlp())
    (root / place).mkdir(exist_ok=True)
    (root / place / "config.json").touch()
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as exit_:
        main(["import-checkpoint", str(root / "first"), str(root / place), "--overwrite"])
    assert exit_.value.code == 2
    assert "which is read; choose a folder beside it" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before

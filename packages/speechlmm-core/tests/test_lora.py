"""Adapters on a model: where they go, what stays trainable, what PEFT makes of their folders, and merging."""

import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from speechlmm_core.checkpoint.load import restore
from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import CheckpointError, ConfigError, MissingDependencyError
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.lora.inject import adapters_of, inject
from speechlmm_core.lora.merge import merge
from speechlmm_core.lora.parameters import matrices
from speechlmm_core.lora.plain import plain_names, plain_state
from speechlmm_core.model.describe import meta_model
from speechlmm_core.model.freezing import freeze, set_trainable
from speechlmm_core.model.speechlmm import SpeechLMM

DECODER = "text_decoder.model"


def adapter(name="x", target_module=DECODER, **fields):
    return LoraAdapterConfig(name=name, target_module=target_module, **{"r": 4, **fields})


def shake(model, std=0.1):
    """Gives the adapters values, as training does."""
    generator = torch.Generator().manual_seed(5)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name in matrices(model):
            own[name].add_(std * torch.randn(own[name].shape, generator=generator))


@pytest.fixture
def batch(tiny_processor, conversation):
    chats = [conversation(4000 + 900 * i, "red green", seed=i, speaker=1600) for i in range(2)]
    return tiny_processor.collate([tiny_processor.sample(chat, with_answer=True) for chat in chats], packed=False)


def hidden(model, batch):
    with torch.no_grad():
        return model(**batch).stages["text_decoder"].values


def test_a_new_adapter_changes_nothing_and_the_base_keeps_its_names(tiny_model, batch):
    before, names = hidden(tiny_model, batch), list(tiny_model.state_dict())
    inject(tiny_model, [adapter(), adapter("y", "audio_encoder.model"), adapter("z", "audio_adapter")])
    torch.testing.assert_close(hidden(tiny_model, batch), before, rtol=0, atol=0)
    assert list(plain_names(tiny_model).values()) == names
    assert list(plain_state(tiny_model)) == names
    assert [one.name for one in adapters_of(tiny_model)] == ["x", "y", "z"]


def test_every_linear_layer_of_the_target_but_the_head_gets_one(tiny_model):
    linear = {n for n, m in tiny_model.text_decoder.model.named_modules() if isinstance(m, torch.nn.Linear)}
    inject(tiny_model, [adapter()])
    got = {name.split(".lora_")[0].removeprefix(f"{DECODER}.") for name in matrices(tiny_model)}
    assert got == linear - {"lm_head"}


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, 4),
        ({"target_modules": r".*\.0\..*_proj"}, 7),
        ({"target_modules": "all-linear"}, 14),
        ({"layers_to_transform": [1]}, 7),
        ({"exclude_modules": ["down_proj"]}, 12),
        ({"target_module": f"{DECODER}.model.layers.1"}, 7),
        ({"target_module": f"{DECODER}.model.layers.1.mlp.up_proj"}, 1),
        ({"target_modules": ["lm_head", "embed_tokens"]}, 2),
    ],
)
def test_targets_are_chosen_by_peft_s_fields(tiny_model, fields, layers):
    inject(tiny_model, [adapter(**fields)])
    assert len({name.split(".lora_")[0] for name in matrices(tiny_model)}) == layers


def test_several_adapters_on_one_part_add_up(tiny_model, batch):
    """All stay active, as a naive sum of the products has it, one of them on a part of the other's target."""
    layer = tiny_model.text_decoder.model.model.layers[0].mlp.up_proj
    weight = layer.weight.detach().clone()
    inject(tiny_model, [adapter(), adapter("y", f"{DECODER}.model.layers.0", lora_alpha=3, use_rslora=True)])
    inject(tiny_model, [adapter("z", target_modules=["up_proj"], r=2)])
    shake(tiny_model)
    layer = tiny_model.text_decoder.model.model.layers[0].mlp.up_proj
    values = torch.randn(3, 32)
    scales = {"x": 16 / 4, "y": 3 / 2, "z": 16 / 2}  # alpha / r, or alpha / sqrt(r)
    expected = values @ weight.T
    for name, scale in scales.items():
        expected = expected + scale * (values @ layer.lora_A[name].weight.T) @ layer.lora_B[name].weight.T
    torch.testing.assert_close(layer(values), expected, rtol=1e-5, atol=1e-5)


def test_what_peft_alone_makes_of_the_fields_is_the_same(tiny_config, tiny_model, batch):
    """Adapters of one seed, put on by us and by PEFT with the same fields."""
    fields = {"r": 3, "lora_alpha": 5, "use_rslora": True, "init_lora_weights": False}
    theirs = SpeechLMM.from_model_config(tiny_config).eval()
    theirs.load_state_dict(tiny_model.state_dict())
    torch.manual_seed(3)
    inject(tiny_model, [adapter("one", **fields, target_modules=["q_proj", "o_proj"])])
    torch.manual_seed(3)
    config = LoraConfig(**fields, target_modules=["q_proj", "o_proj"])
    inject_adapter_in_model(config, theirs.text_decoder.model, adapter_name="one")
    torch.testing.assert_close(hidden(tiny_model, batch), hidden(theirs, batch), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"target_module": "text_decodr.model"}, "no module 'text_decodr.model'; did you mean 'text_decoder.model'"),
        ({"target_module": f"{DECODER}.model.norm"}, "it holds no linear layer"),
        ({"target_modules": ["k_prj"]}, "target_modules .'k_prj'. name none of its modules"),
        ({"target_modules": "("}, "adapter 'x': "),
        ({"use_dora": "yes"}, "use_dora: got 'yes': input should be a valid boolean"),
        ({"rank_pattern": [1]}, "rank_pattern: got .1.: "),
        ({"task_type": "TALKING"}, "Invalid task type"),
        ({"target_modules": ["norm"]}, "is not supported"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_the_model_alone(tiny_model, fields, fault):
    with pytest.raises(ConfigError, match=fault):
        inject(tiny_model, [adapter("fine", "audio_adapter"), adapter(**fields)][1:])
    assert not tiny_model.lora_adapters


@pytest.mark.parametrize("target", [DECODER, f"{DECODER}.model.layers.0", "audio_adapter"])
def test_one_name_twice_is_refused(tiny_model, target):
    with pytest.raises(ConfigError, match=r"two adapters are called 'x', one on .* give each a name of its own"):
        inject(tiny_model, [adapter(), adapter(target_module=target)])
    assert not matrices(tiny_model)
    inject(tiny_model, [adapter()])
    with pytest.raises(ConfigError, match="two adapters are called 'x'"):
        inject(tiny_model, [adapter(target_module=target)])


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"use_rslorra": True}, "unknown key 'use_rslorra'; did you mean 'use_rslora'"),
        ({"lora_dropot": 0.1}, "did you mean 'lora_dropout'"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save' cannot be set: leave what is to be trained"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: got 'pissa', expected one of true, false, gaussian"),
        ({"r": 0}, "greater than 0"),
        ({"name": "a/b"}, "should match pattern"),
    ],
)
def test_fields_are_checked_before_anything_is_imported(fields, fault):
    with pytest.raises(ValidationError, match=fault):
        adapter(**fields)


def test_keys_that_are_no_text_are_told_beside_other_faults():
    """As YAML's bare `on:` is."""
    given = {"name": "x", "target_module": "text_decoder", True: 1, "rank": 4}
    with pytest.raises(ValidationError, match="unknown key 'rank'; did you mean 'r'") as caught:
        LoraAdapterConfig.model_validate(given)
    assert "Keys should be strings" in str(caught.value)


def test_checking_fields_imports_neither_torch_nor_peft():
    code = (
        "import sys; from speechlmm_core.lora.config import LoraAdapterConfig as L; L(name='x', target_module='y', "
        "use_dora=True); sys.exit(any(m in sys.modules for m in ('torch', 'peft', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_biases_of_adapters_need_layers_with_biases(tiny_model):
    """PEFT takes them, trains them, and cannot merge them."""
    with pytest.raises(ConfigError, match=r"'x' cannot be put on .*q_proj' with lora_bias: the layer has no bias"):
        inject(tiny_model, [adapter(lora_bias=True)])
    assert not tiny_model.lora_adapters
    tiny_model.text_decoder.model.requires_grad_(False)
    inject(tiny_model, [adapter("y", "audio_adapter", lora_bias=True)])
    shake(tiny_model)
    merge(tiny_model)
    assert not matrices(tiny_model)


def test_what_peft_cannot_merge_is_a_fault_with_the_layer_s_name(tiny_model):
    inject(tiny_model, [adapter()])
    layer = tiny_model.text_decoder.model.model.layers[0].self_attn.q_proj
    layer.lora_bias["x"] = True  # as in folders that PEFT wrote
    with pytest.raises(CheckpointError, match=r"cannot merge the adapters of text_decoder.*q_proj: .*no bias"):
        merge(tiny_model)


def test_what_stays_awake_is_sought_once_and_anew_with_each_freezing(tiny_model, monkeypatch):
    inject(tiny_model, [adapter(lora_dropout=0.5)])
    freeze(tiny_model, ["text_decoder"])
    tiny_model.train()
    walked = []
    walk = type(tiny_model).named_modules
    monkeypatch.setattr(
        type(tiny_model), "named_modules", lambda self, *a, **k: walked.append(1) or walk(self, *a, **k)
    )
    for _ in range(3):
        tiny_model.eval()
        tiny_model.train()
    assert not walked
    awake = {name.split(".")[-1] for name, one in walk(tiny_model) if "lora_dropout" in name and one.training}
    assert awake == {"x"}
    inject(tiny_model, [adapter("y", "audio_encoder.model", lora_dropout=0.5)])
    freeze(tiny_model, ["audio_encoder", "*.lora_*.x"])
    tiny_model.train()
    awake = {name.split(".")[-1] for name, one in walk(tiny_model) if "lora_dropout." in name and one.training}
    assert awake == {"y"}


def test_without_peft_it_is_named(tiny_model, monkeypatch):
    monkeypatch.setattr("speechlmm_core.lora.inject.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"speechlmm-core\[lora\]"):
        inject(tiny_model, [adapter()])


def test_tied_tables_take_none(tiny_config):
    plain = tiny_config.model_dump(mode="json")
    plain["text_decoder"]["model"]["tie_word_embeddings"] = True
    model = SpeechLMM.from_model_config(ModelConfig.model_validate(plain))
    with pytest.raises(ConfigError, match="the embedding table and the head of this text decoder are one"):
        inject(model, [adapter(target_modules=["embed_tokens"])])


def trained(model):
    return {name for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("names", [["text_decoder", "speaker_*"], ["text_decoder.model", "speaker_*"], ["speaker_*"]])
def test_adapters_train_in_a_frozen_tower_beside_a_module_that_trains_whole(tiny_model, names):
    inject(tiny_model, [adapter()])
    freeze(tiny_model, names)
    whole = {n for n, _ in tiny_model.named_parameters() if n.startswith(("audio_", "objectives."))}
    assert trained(tiny_model) == whole | set(matrices(tiny_model))
    assert tiny_model.ever_trainable == whole  # what adapters train is saved with them


def test_adapters_are_frozen_by_names_of_their_own(tiny_model):
    inject(tiny_model, [adapter(), adapter("y", "audio_encoder")])
    freeze(tiny_model, ["audio_adapter", "*.lora_?.x"])
    assert not any("text_decoder" in name for name in trained(tiny_model))
    assert {name for name in trained(tiny_model) if "audio_encoder" in name} == {
        name for name, own in matrices(tiny_model).items() if own == "y"
    }


def test_trainable_modules_choose_among_adapters(tiny_model):
    inject(tiny_model, [adapter(), adapter("y", "audio_encoder")])
    set_trainable(tiny_model, ["audio_adapter", "audio_encoder"])
    own = {name for name, one in matrices(tiny_model).items() if one == "y"}
    assert trained(tiny_model) == own | {n for n, _ in tiny_model.named_parameters() if n.startswith("audio_adapter")}
    set_trainable(tiny_model, ["text_decoder"])
    assert trained(tiny_model) == {name for name, one in matrices(tiny_model).items() if one == "x"}


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_biases_train_as_asked(tiny_model, bias):
    inject(tiny_model, [adapter(target_module="audio_adapter", bias=bias)])
    freeze(tiny_model, ["text_decoder", "*_encoder", "speaker_*", "objectives", "audio_adapter"])
    biases = {name for name in plain_names(tiny_model).values() if name.startswith("audio_adapter")}
    biases = {name for name in biases if name.endswith("bias")}
    assert biases
    assert tiny_model.ever_trainable == (set() if bias == "none" else biases)


def test_only_the_adapters_drop_out_in_a_tower_that_is_held(tiny_config):
    plain = tiny_config.model_dump(mode="json")
    plain["text_decoder"]["model"]["attention_dropout"] = 0.5
    model = SpeechLMM.from_model_config(ModelConfig.model_validate(plain))
    inject(model, [adapter(lora_dropout=0.3)])
    freeze(model, ["*_encoder"])
    model.train()
    awake = {name for name, one in model.text_decoder.model.named_modules() if one.training}
    assert awake
    assert all(".lora_dropout." in name for name in awake)
    assert not any(one.training for one in model.audio_encoder.modules())
    model.eval()
    assert not any(one.training for one in model.modules())


def test_layers_recompute_their_activations_although_they_are_held(tiny_model, batch):
    """Gradient checkpointing acts in training mode only, in which a frozen language model is not."""
    inject(tiny_model, [adapter()])
    freeze(tiny_model, ["text_decoder"])
    shake(tiny_model)
    tiny_model.train()
    calls = []
    for layer in tiny_model.text_decoder.model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))  # recomputing ends within it
    tiny_model(**batch).loss.backward()
    plain = [value.grad.clone() for value in tiny_model.parameters() if value.grad is not None]
    assert len(calls) == 2
    tiny_model.zero_grad()
    tiny_model.activation_checkpointing_enable({"use_reentrant": False})
    tiny_model.train()
    tiny_model(**batch).loss.backward()
    assert len(calls) == 2 + 4
    for got, expected in zip([v.grad for v in tiny_model.parameters() if v.grad is not None], plain, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_head_s_adapter_learns_from_the_chunked_loss(tiny_model, batch):
    inject(tiny_model, [adapter(target_modules=["lm_head"])])
    freeze(tiny_model, ["*_encoder"])
    shake(tiny_model)
    loss = tiny_model(**batch).losses["lm"].sum
    loss.backward()
    own = dict(tiny_model.named_parameters())
    assert all(own[name].grad.any() for name in matrices(tiny_model))
    head = tiny_model.text_decoder.model.lm_head
    product = head.lora_B["x"].weight @ head.lora_A["x"].weight
    torch.testing.assert_close(tiny_model.text_decoder.output_weight, head.base_layer.weight + 16 / 4 * product)
    merge(tiny_model)
    torch.testing.assert_close(tiny_model(**batch).losses["lm"].sum, loss, rtol=1e-5, atol=1e-4)


ADAPTERS = (
    adapter("decoder", lora_dropout=0.2, use_rslora=True, task_type="CAUSAL_LM"),
    adapter("decoder_too", f"{DECODER}.model.layers.1", use_dora=True),
    adapter("encoder", "audio_encoder", bias="all"),
    adapter("tables", target_modules=["lm_head", "embed_tokens"]),
)


@pytest.fixture
def saved(tiny_model, tiny_processor, tmp_path):
    inject(tiny_model, ADAPTERS)
    freeze(tiny_model, ["text_decoder"])
    shake(tiny_model)
    with torch.no_grad():
        tiny_model.audio_encoder.model.base_layer.bias.add_(0.3)
    save_model(tiny_model, tiny_processor, tmp_path / "model")
    return tmp_path / "model"


def test_loading_gives_back_weights_and_adapters(saved, tiny_model, batch):
    loaded = SpeechLMM.from_pretrained(saved)
    assert loaded.lora_adapters == ADAPTERS
    ours, theirs = tiny_model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    torch.testing.assert_close(hidden(loaded, batch), hidden(tiny_model.eval(), batch), rtol=0, atol=0)


def test_the_weights_file_is_a_plain_model_s(saved, tiny_config):
    plain = SpeechLMM.from_model_config(tiny_config)
    assert load_file(saved / "model.safetensors").keys() == plain.state_dict().keys()


PEFTS_OWN = "ignore:.*is_gradient_checkpointing:FutureWarning"


@pytest.mark.filterwarnings(PEFTS_OWN)
@pytest.mark.parametrize("one", ADAPTERS, ids=lambda one: one.name)
def test_peft_loads_a_saved_folder_and_computes_the_same(one, tiny_config, tiny_processor, tiny_model, batch, tmp_path):
    inject(tiny_model, [one])
    shake(tiny_model)
    save_model(tiny_model, tiny_processor, tmp_path / "model")
    plain = SpeechLMM.from_model_config(tiny_config).eval()
    plain.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"))
    tower = plain.get_submodule(one.target_module)
    before = hidden(plain, batch)
    PeftModel.from_pretrained(tower, str(tmp_path / "model" / "adapters" / one.name))  # changes the tower in place
    assert not torch.allclose(hidden(plain, batch), before, atol=1e-3)
    torch.testing.assert_close(hidden(plain, batch), hidden(tiny_model, batch), rtol=1e-6, atol=1e-6)


def test_merged_outputs_are_those_of_the_unmerged_model(saved, batch):
    model = SpeechLMM.from_pretrained(saved)
    before = hidden(model, batch)
    merge(model)
    assert not model.lora_adapters
    torch.testing.assert_close(hidden(model, batch), before, rtol=1e-5, atol=1e-5)
    assert not any(hasattr(module, "peft_config") for module in model.modules())


def test_a_save_without_adapters_removes_the_folders_of_the_last(saved, tiny_processor):
    model = SpeechLMM.from_pretrained(saved)
    merge(model)
    save_model(model, tiny_processor, saved)
    assert not (saved / "adapters").exists()
    assert not SpeechLMM.from_pretrained(saved).lora_adapters


def test_restoring_puts_values_back_into_a_model_with_the_same_adapters(saved, tiny_model, tiny_config):
    shake(tiny_model, std=1)
    restore(tiny_model, saved)
    expected = SpeechLMM.from_pretrained(saved).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in tiny_model.state_dict().items())
    other = SpeechLMM.from_model_config(tiny_config)
    inject(other, [adapter("decoder", r=7)])
    with pytest.raises(CheckpointError, match=r"has the adapter 'decoder', but .* holds another adapter of that name"):
        restore(other, saved)


def spoil(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tensors: tensors.pop(next(iter(tensors))), "is missing"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "more is unexpected"),
        (lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(1)}), r"is \(1,\), expected"),
    ],
)
def test_an_adapter_s_file_is_read_strictly(saved, change, fault):
    file = saved / "adapters" / "decoder" / "adapter_model.safetensors"
    spoil(file, change)
    with pytest.raises(CheckpointError, match=fault):
        SpeechLMM.from_pretrained(saved)


def test_a_missing_or_damaged_file_of_an_adapter_is_named(saved):
    file = saved / "adapters" / "encoder" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="is damaged, save it again"):
        SpeechLMM.from_pretrained(saved)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"incomplete.*adapter_model.safetensors' is missing"):
        SpeechLMM.from_pretrained(saved)


def test_a_model_without_memory_takes_adapters_too(tiny_config, tiny_model):
    model = meta_model(tiny_config, adapters=ADAPTERS)
    inject(tiny_model, ADAPTERS)
    assert [(n, p.shape) for n, p in model.named_parameters()] == [
        (n, p.shape) for n, p in tiny_model.named_parameters()
    ]
    assert all(parameter.is_meta for parameter in model.parameters())

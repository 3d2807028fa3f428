"""Checkpoints: exact, strict, atomic, and honest about where they came from."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, LlamaForCausalLM

from speechlmm_core.checkpoint import atomic, shards, weights
from speechlmm_core.checkpoint import load as loading
from speechlmm_core.checkpoint import save as saving
from speechlmm_core.checkpoint.atomic import atomic_folder, atomic_write
from speechlmm_core.checkpoint.load import resolve_model_path, restore
from speechlmm_core.checkpoint.provenance import base_source
from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.checkpoint.shards import ShardWriter
from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import CheckpointError, MissingDependencyError
from speechlmm_core.model.freezing import freeze, set_trainable
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.text_decoder.decoder import build_hf_config


@pytest.fixture
def saved(tiny_model, tiny_processor, tmp_path):
    save_model(tiny_model, tiny_processor, tmp_path / "model")
    return tmp_path / "model"


def tensors(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def test_loading_gives_back_every_tensor(tiny_model, saved):
    loaded = SpeechLMM.from_pretrained(saved)
    expected, got = tensors(tiny_model), tensors(loaded)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
    assert not loaded.training


def test_the_auto_classes_load_it(saved):
    assert AutoConfig.from_pretrained(saved).model_type == "speechlmm"
    assert isinstance(AutoModel.from_pretrained(saved), SpeechLMM)


def test_the_processor_comes_back_equal(tiny_processor, saved, conversation):
    chat = conversation(4_000, "hello")
    again = SpeechLMMProcessor.from_pretrained(saved)
    assert again.sample(chat, with_answer=True).layout.input_ids.tolist() == (
        tiny_processor.sample(chat, with_answer=True).layout.input_ids.tolist()
    )


def test_a_run_folder_is_a_model_path(saved):
    assert resolve_model_path(saved.parent) == saved
    with pytest.raises(CheckpointError, match="the folder does not exist"):
        resolve_model_path(saved / "nothing")
    (saved.parent / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"expected a config\.json there or in its model/"):
        resolve_model_path(saved.parent / "empty")


def test_dtype_follows_the_checkpoint_or_the_caller(saved):
    assert SpeechLMM.from_pretrained(saved).dtype == torch.float32
    assert SpeechLMM.from_pretrained(saved, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="unknown dtype 'floaty'"):
        SpeechLMM.from_pretrained(saved, dtype="floaty")


def edit(folder, change):
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def test_a_missing_tensor_is_named(saved):
    edit(saved, lambda state: state.pop("audio_adapter.model.weight"))
    with pytest.raises(CheckpointError, match=r"1 missing: audio_adapter\.model\.weight"):
        SpeechLMM.from_pretrained(saved)


def test_an_extra_tensor_is_named(saved):
    edit(saved, lambda state: state.update(stray=torch.zeros(2)))
    with pytest.raises(CheckpointError, match="1 unexpected: stray"):
        SpeechLMM.from_pretrained(saved)


def test_a_wrong_shape_is_named(saved):
    edit(saved, lambda state: state.update({"audio_adapter.model.bias": torch.zeros(7)}))
    with pytest.raises(CheckpointError, match=r"audio_adapter\.model\.bias \(got \(7,\), expected \(32,\)\)"):
        SpeechLMM.from_pretrained(saved)


def test_a_truncated_file_is_reported(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="the file is damaged"):
        SpeechLMM.from_pretrained(saved)


def test_a_plugin_that_is_not_installed_is_named(saved):
    file = saved / "config.json"
    config = json.loads(file.read_text())
    config["model"]["audio_encoder"]["type"] = "acme.conformer"
    config["versions"]["components"]["audio_encoder"] = {
        "type": "acme.conformer",
        "distribution": "acme-conformer",
        "version": "1.2",
    }
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"unknown encoder 'acme\.conformer'.*pip install 'acme-conformer==1\.2'"):
        SpeechLMM.from_pretrained(saved)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="not of a SpeechLMM checkpoint: got model_type 'llama'"):
        SpeechLMM.from_pretrained(tmp_path)


def test_quantisation_says_what_is_missing(saved, monkeypatch):
    monkeypatch.setattr("speechlmm_core.model.quantise.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"bitsandbytes.*pip install 'speechlmm-core\[quant\]'"):
        SpeechLMM.from_pretrained(saved, load_in_4bit=True)


def test_provenance_names_distributions(saved):
    versions = json.loads((saved / "config.json").read_text())["versions"]
    assert versions["components"]["text_decoder"] == {
        "type": "causal_lm",
        "distribution": "speechlmm-core",
        "version": versions["speechlmm-core"],
    }
    assert {"torch", "transformers"} <= versions.keys()


def test_weights_are_as_readable_as_the_rest(saved):
    assert (saved / "model.safetensors").stat().st_mode == (saved / "chat_template.jinja").stat().st_mode


def test_a_full_disk_leaves_the_old_checkpoint(tiny_model, tiny_processor, saved, monkeypatch):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    def full(state, file, metadata=None):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(1)
    with pytest.raises(OSError, match="No space left"):
        save_model(tiny_model, tiny_processor, saved)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    loaded = SpeechLMM.from_pretrained(saved).state_dict()
    for name, value in before.items():
        assert torch.equal(value, loaded[name])


def snapshot(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_save_that_fails_at_the_very_end_changes_nothing(tiny_model, tiny_processor, saved, monkeypatch):
    """Whether folders can be exchanged in one step or not."""
    before = snapshot(saved)
    with torch.no_grad():
        tiny_model.text_decoder.model.model.norm.weight.add_(1)
    replace = atomic.os.replace

    def fail(source, target):
        if target == saved and not str(source).endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(OSError, match="Input/output error"):
        save_model(tiny_model, tiny_processor, saved)
    assert snapshot(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_save_over_another_keeps_what_is_not_its_own(tiny_model, tiny_processor, saved, monkeypatch, exchange):
    (saved / "README.md").write_text("mine")
    (saved / "runs").mkdir()
    (saved / "runs" / "a").write_text("too")
    (saved / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    (saved / "model-00001-of-00002.safetensors").write_text("stale")
    (saved.parent / ".model.0123abcd.tmp").mkdir()  # of a save that was killed
    (saved.parent / "link").symlink_to(saved)
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    with torch.no_grad():
        tiny_model.text_decoder.model.model.norm.weight.add_(1)
    save_model(tiny_model, tiny_processor, saved.parent / "link")
    assert (saved / "README.md").read_text() == "mine"
    assert (saved / "runs" / "a").read_text() == "too"
    assert [file.name for file in saved.glob("model*")] == ["model.safetensors"]
    assert {path.name for path in saved.parent.iterdir()} == {"model", "link"}
    assert torch.equal(norm_of(SpeechLMM.from_pretrained(saved)), norm_of(tiny_model))


def test_an_empty_folder_is_filled_and_not_replaced(tiny_model, tiny_processor, tmp_path):
    (tmp_path / "mount").mkdir()
    inode = (tmp_path / "mount").stat().st_ino
    save_model(tiny_model, tiny_processor, tmp_path / "mount")
    assert (tmp_path / "mount").stat().st_ino == inode
    assert not list((tmp_path / "mount").glob(".*"))
    assert torch.equal(norm_of(SpeechLMM.from_pretrained(tmp_path / "mount")), norm_of(tiny_model))


def test_all_that_fills_an_empty_folder_is_on_the_disk_before_it_moves(tmp_path, monkeypatch):
    (tmp_path / "mount").mkdir()
    synced, moved = set(), []
    fsync, replace = atomic.os.fsync, saving.os.replace

    def watch(source, target):
        inner = [Path(source), *Path(source).rglob("*")]
        moved.extend(path.stat().st_ino in synced for path in inner if not path.is_symlink())
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", lambda handle: (synced.add(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(saving.os, "replace", watch)
    with saving.staged(tmp_path / "mount") as temporary:
        (temporary / "adapters" / "one").mkdir(parents=True)
        (temporary / "adapters" / "one" / "adapter_model.safetensors").write_text("a")
        (temporary / "adapters" / "gone").symlink_to(tmp_path / "nowhere")
        (temporary / "config.json").write_text("{}")
    assert len(moved) == 4
    assert all(moved)
    assert (tmp_path / "mount").stat().st_ino in synced


def test_what_a_killed_save_left_in_a_folder_goes(tiny_model, tiny_processor, tmp_path, monkeypatch):
    (tmp_path / "mount").mkdir()

    replace = os.replace

    def kill(source, target):
        if Path(target).parent == tmp_path / "mount":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as killed:
        killed.setattr(saving.os, "replace", kill)
        killed.setattr(saving.shutil, "rmtree", lambda *args, **kwargs: None)  # nothing cleans up after a kill
        with pytest.raises(KeyboardInterrupt):
            save_model(tiny_model, tiny_processor, tmp_path / "mount")
    (left,) = (tmp_path / "mount").iterdir()
    assert (left / "model.safetensors").is_file()
    inode = (tmp_path / "mount").stat().st_ino
    shutil.copytree(tmp_path / "mount", tmp_path / "begun")
    (tmp_path / "begun" / "notes.txt").write_text("mine")
    for name in ("mount", "begun"):
        save_model(tiny_model, tiny_processor, tmp_path / name)
        assert not list((tmp_path / name).glob(".*"))
        assert torch.equal(norm_of(SpeechLMM.from_pretrained(tmp_path / name)), norm_of(tiny_model))
    assert (tmp_path / "mount").stat().st_ino == inode
    assert (tmp_path / "begun" / "notes.txt").read_text() == "mine"


def test_arguments_that_are_not_taken_are_refused(tiny_model, saved, tmp_path):
    with pytest.raises(TypeError, match="save_pretrained takes no 'state_dict'"):
        tiny_model.save_pretrained(tmp_path / "other", state_dict={"a": torch.zeros(1)})
    with pytest.raises(TypeError, match="save_pretrained takes no 'push_to_hub'"):
        tiny_model.save_pretrained(tmp_path / "other", push_to_hub=True)
    tiny_model.save_pretrained(tmp_path / "other", max_shard_size="50KB", push_to_hub=False)
    assert len(list((tmp_path / "other").glob("model-*.safetensors"))) > 1
    with pytest.raises(CheckpointError, match="is a folder, which has no revision 'v1'"):
        SpeechLMM.from_pretrained(saved, revision="v1")
    with pytest.raises(TypeError, match="takes no 'trust_remote_code'"):
        SpeechLMM.from_pretrained(saved, trust_remote_code=True)
    config = AutoConfig.from_pretrained(saved)
    assert isinstance(SpeechLMM.from_pretrained(saved, config=config), SpeechLMM)
    config.model["text_decoder"]["chat_template"] = "llama_3"
    with pytest.raises(TypeError, match="takes the checkpoint's own configuration"):
        SpeechLMM.from_pretrained(saved, config=config)


def test_a_revision_on_the_hub_is_asked_for(saved, monkeypatch):
    asked = []

    def fetch(name, patterns):
        asked.append(name)
        return saved

    monkeypatch.setattr(loading, "fetch_pretrained", fetch)
    assert isinstance(SpeechLMM.from_pretrained("acme/model", revision="v1"), SpeechLMM)
    assert set(asked) == {"acme/model@v1"}


def test_large_checkpoints_are_sharded(tiny_model, tiny_processor, saved, monkeypatch):
    monkeypatch.setattr(saving, "ShardWriter", lambda folder, **_: ShardWriter(folder, max_shard_size="50KB"))
    save_model(tiny_model, tiny_processor, saved)
    assert not (saved / "model.safetensors").exists(), "the old file would be read in place of the shards"
    assert len(list(saved.glob("model-*.safetensors"))) > 1
    loaded = SpeechLMM.from_pretrained(saved).state_dict()
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(value, loaded[name])
    (next(saved.glob("model-*.safetensors"))).unlink()
    with pytest.raises(CheckpointError, match="is incomplete"):
        SpeechLMM.from_pretrained(saved)


def test_tied_weights_are_saved_once_and_stay_tied(tiny_config, tiny_processor, tmp_path):
    towers = tiny_config.model_dump(mode="json")
    towers["text_decoder"]["model"]["tie_word_embeddings"] = True
    model = SpeechLMM.from_model_config(ModelConfig.model_validate(towers))
    save_model(model, tiny_processor, tmp_path / "model")
    keys = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert sum("lm_head" in key or "embed_tokens" in key for key in keys) == 1
    loaded = SpeechLMM.from_pretrained(tmp_path / "model")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


@pytest.fixture
def base(tiny_config, tmp_path):
    """A language model's own checkpoint, in the published layout."""
    torch.manual_seed(7)
    folder = tmp_path / "base"
    model = LlamaForCausalLM(build_hf_config(tiny_config.text_decoder))
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def based_config(tiny_config, base):
    towers = tiny_config.model_dump(mode="json")
    towers["text_decoder"]["pretrained"] = str(base[0])
    return ModelConfig.model_validate(towers)


def test_base_weights_survive_the_constructor(based_config, base):
    loaded = SpeechLMM.from_model_config(based_config).text_decoder.model.state_dict()
    for name, value in base[1].state_dict().items():
        assert torch.equal(value, loaded[name]), name


def test_trainable_leaves_frozen_bases_out_and_finds_them_again(based_config, base, tiny_processor, tmp_path):
    model = SpeechLMM.from_model_config(based_config)
    freeze(model, ["text_decoder"])
    save_model(model, tiny_processor, tmp_path / "model", save="trainable")
    keys = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert not any(key.startswith("text_decoder.") for key in keys)
    loaded = SpeechLMM.from_pretrained(tmp_path / "model").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded[name]), name


def test_trainable_keeps_what_was_trained_in_an_earlier_stage(based_config, tiny_processor, tmp_path):
    model = SpeechLMM.from_model_config(based_config)
    freeze(model, [])
    with torch.no_grad():
        model.text_decoder.model.model.norm.weight.add_(1)
    freeze(model, ["text_decoder"])
    save_model(model, tiny_processor, tmp_path / "model", save="trainable")
    loaded = SpeechLMM.from_pretrained(tmp_path / "model").text_decoder.model.model.norm.weight
    assert torch.equal(loaded, model.text_decoder.model.model.norm.weight)


def test_another_base_is_refused(based_config, base, tiny_processor, tmp_path):
    model = SpeechLMM.from_model_config(based_config)
    freeze(model, ["text_decoder"])
    save_model(model, tiny_processor, tmp_path / "model", save="trainable")
    torch.manual_seed(8)
    LlamaForCausalLM(base[1].config).save_pretrained(base[0])
    with pytest.raises(CheckpointError, match="is not the one that this checkpoint was trained on"):
        SpeechLMM.from_pretrained(tmp_path / "model")
    shutil.rmtree(base[0])
    with pytest.raises(CheckpointError, match="no folder"):
        SpeechLMM.from_pretrained(tmp_path / "model")


def norm_of(model):
    return model.text_decoder.model.model.norm.weight


def test_what_a_trainable_checkpoint_holds_is_kept_by_the_next_one(based_config, tiny_processor, tmp_path):
    """Train a layer of the language model, save, load, freeze the language model, save, load."""
    model = SpeechLMM.from_model_config(based_config)
    set_trainable(model, ["text_decoder.model.model.norm"])
    with torch.no_grad():
        norm_of(model).add_(1)
    save_model(model, tiny_processor, tmp_path / "first", save="trainable")
    second = SpeechLMM.from_pretrained(tmp_path / "first")
    freeze(second, ["text_decoder"])
    save_model(second, tiny_processor, tmp_path / "second", save="trainable")
    keys = {key for key in load_file(tmp_path / "second" / "model.safetensors") if key.startswith("text_decoder.")}
    assert keys == {"text_decoder.model.model.norm.weight"}
    assert torch.equal(norm_of(SpeechLMM.from_pretrained(tmp_path / "second")), norm_of(model))


def test_a_full_fine_tune_is_no_base(based_config, tiny_processor, tmp_path):
    """Begun from a full checkpoint, a model no longer has the base's weights, and may not refer to them."""
    tuned = SpeechLMM.from_model_config(based_config)
    with torch.no_grad():
        norm_of(tuned).add_(1)
    save_model(tuned, tiny_processor, tmp_path / "full")
    model = SpeechLMM.from_model_config(based_config)
    restore(model, tmp_path / "full")
    freeze(model, ["text_decoder"])
    save_model(model, tiny_processor, tmp_path / "trainable", save="trainable")
    assert torch.equal(norm_of(SpeechLMM.from_pretrained(tmp_path / "trainable")), norm_of(tuned))


def test_restoring_brings_the_base_back(based_config, tiny_processor, tmp_path):
    model = SpeechLMM.from_model_config(based_config)
    freeze(model, ["text_decoder"])
    save_model(model, tiny_processor, tmp_path / "model", save="trainable")
    other = SpeechLMM.from_model_config(based_config, load_base_weights=False)
    restore(other, tmp_path / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert other.base_sources == model.base_sources
    unbased = based_config.model_dump(mode="json")
    unbased["text_decoder"]["pretrained"] = None
    with pytest.raises(CheckpointError, match=r"the configuration names none; set model\.text_decoder\.pretrained"):
        restore(SpeechLMM.from_model_config(ModelConfig.model_validate(unbased)), tmp_path / "model")


def test_a_trained_tensor_missing_beside_a_base_is_named(based_config, tiny_processor, tmp_path):
    model = SpeechLMM.from_model_config(based_config)
    set_trainable(model, ["text_decoder.model.model.norm"])
    save_model(model, tiny_processor, tmp_path / "model", save="trainable")
    edit(tmp_path / "model", lambda state: state.pop("text_decoder.model.model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"1 missing: text_decoder\.model\.model\.norm\.weight"):
        SpeechLMM.from_pretrained(tmp_path / "model")


def test_a_full_checkpoint_needs_every_tensor_even_where_a_base_has_it(based_config, tiny_processor, tmp_path):
    model = SpeechLMM.from_model_config(based_config)
    save_model(model, tiny_processor, tmp_path / "model")
    edit(tmp_path / "model", lambda state: state.pop("text_decoder.model.model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"1 missing: text_decoder\.model\.model\.norm\.weight"):
        restore(SpeechLMM.from_model_config(based_config), tmp_path / "model")


def test_a_full_checkpoint_needs_no_base(based_config, base, tiny_processor, tmp_path):
    model = SpeechLMM.from_model_config(based_config)
    save_model(model, tiny_processor, tmp_path / "model")
    shutil.rmtree(base[0])
    loaded = SpeechLMM.from_pretrained(tmp_path / "model").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded[name]), name
    assert (
        SpeechLMMProcessor.from_pretrained(tmp_path / "model").tokenizer.decode(tiny_processor.tokenizer.encode("a"))
        == "a"
    )


@pytest.mark.parametrize("index", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "{"])
def test_a_malformed_index_is_reported(saved, index):
    (saved / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        SpeechLMM.from_pretrained(saved)


def test_an_index_may_not_lead_out_of_the_folder(saved):
    shutil.copy(saved / "model.safetensors", saved.parent / "elsewhere.safetensors")
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="expected a plain file name"):
        SpeechLMM.from_pretrained(saved)


def test_a_base_from_the_hub_is_remembered_with_its_commit(base, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123abcd"
    shutil.copytree(base[0], snapshot)
    monkeypatch.setattr(weights, "fetch_pretrained", lambda name, patterns: snapshot)
    assert base_source("acme/model")["revision"] == "0123abcd"
    monkeypatch.undo()
    assert base_source(str(base[0]))["revision"] is None
    assert base_source(str(base[0]))["fingerprint"] == base_source(str(snapshot))["fingerprint"]


def write_and_fail(path):
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        raise ValueError("stop")


def fill_and_fail(path):
    with atomic_folder(path) as temporary:
        (temporary / "x").write_text("2")
        raise ValueError("stop")


def test_atomic_writes_leave_the_old_file_on_failure(tmp_path):
    file = tmp_path / "a.txt"
    with atomic_write(file) as temporary:
        temporary.write_text("old")
    with pytest.raises(ValueError, match="stop"):
        write_and_fail(file)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_folders_replace_whole_or_not(tmp_path):
    folder = tmp_path / "f"
    with atomic_folder(folder) as temporary:
        (temporary / "x").write_text("1")
    with pytest.raises(ValueError, match="stop"):
        fill_and_fail(folder)
    assert (folder / "x").read_text() == "1"
    with atomic_folder(folder) as temporary:
        (temporary / "y").write_text("3")
    assert [path.name for path in folder.iterdir()] == ["y"]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]

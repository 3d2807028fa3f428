"""Averaging checkpoints: against a naive mean, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from speechlmm_core.checkpoint.save import save_model, save_weights
from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.average import average_checkpoints, find_checkpoints
from speechlmm_train.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


def model_config(hidden=32):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    decoder = {"model_type": "llama", "hidden_size": hidden, "intermediate_size": 64, **heads}
    return ModelConfig.model_validate({"text_decoder": {"type": "causal_lm", "tokenizer": "bytes", "model": decoder}})


def save(folder, seed, *, dtype=torch.float32, config=None):
    config = config or model_config()
    torch.manual_seed(seed)
    model = SpeechLMM.from_model_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    save_model(model, SpeechLMMProcessor.from_config(config), folder)
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return [save(root / str(seed), seed) for seed in range(3)]


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("shares", [None, [1.0, 2.0, 5.0]])
def test_the_mean_is_the_naive_one(three, tmp_path, shares):
    average_checkpoints(three, tmp_path / "mean", weights=shares)
    loaded = SpeechLMM.from_pretrained(tmp_path / "mean").state_dict()
    states = [weights(folder) for folder in three]
    for name, first in states[0].items():
        naive = np.average([state[name].numpy().astype(np.float64) for state in states], axis=0, weights=shares)
        assert first.shape == loaded[name].shape
        np.testing.assert_allclose(loaded[name].numpy(), naive, rtol=1e-6, atol=1e-7)
    SpeechLMMProcessor.from_pretrained(tmp_path / "mean")
    assert json.loads((tmp_path / "mean" / "averaged.json").read_text())["checkpoints"] == list(map(str, three))


def test_what_is_written_is_a_safetensors_file(three, tmp_path):
    # The first SpeechLMM's script pickled into a file of that name.
    average_checkpoints(three[:2], tmp_path / "mean")
    file = tmp_path / "mean" / "model.safetensors"
    raw = file.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__") == (
        len(raw) - 8 - int.from_bytes(raw[:8], "little")
    )
    assert weights(tmp_path / "mean").keys() == weights(three[0]).keys()


def test_bfloat16_is_summed_in_fp32(tmp_path):
    folders = [save(tmp_path / str(seed), seed, dtype=torch.bfloat16) for seed in range(5)]
    average_checkpoints(folders, tmp_path / "mean")
    states = [weights(folder) for folder in folders]
    for name, got in weights(tmp_path / "mean").items():
        assert got.dtype == torch.bfloat16
        exact = torch.stack([state[name].double() for state in states]).mean(0)
        assert torch.equal(got, exact.float().to(torch.bfloat16)) or torch.allclose(
            got.double(), exact, rtol=2**-8, atol=0
        )


def test_shards_are_averaged_one_by_one(three, tmp_path):
    folders = []
    for number, folder in enumerate(three[:2]):
        state = weights(folder)
        copy = shutil.copytree(folder, tmp_path / f"sharded-{number}")
        (copy / "model.safetensors").unlink()
        parts = {f"model-{i}.safetensors": dict(list(state.items())[i::2]) for i in range(2)}
        for name, part in parts.items():
            save_file(part, copy / name)
        places = {key: name for name, part in parts.items() for key in part}
        (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        folders.append(copy)
    average_checkpoints(folders, tmp_path / "mean")
    average_checkpoints(three[:2], tmp_path / "whole")
    sharded, whole = (SpeechLMM.from_pretrained(tmp_path / name).state_dict() for name in ("mean", "whole"))
    assert all(torch.equal(sharded[name], whole[name]) for name in whole)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_checkpoints_may_be_sharded_differently(three, tmp_path, order):
    SpeechLMM.from_pretrained(three[1]).save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    SpeechLMMProcessor.from_pretrained(three[1]).save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    folders = [three[0], tmp_path / "sharded"]
    average_checkpoints([folders[number] for number in order], tmp_path / "mean")
    states = [weights(three[0]), weights(three[1])]
    loaded = SpeechLMM.from_pretrained(tmp_path / "mean").state_dict()
    for name, one in states[0].items():
        torch.testing.assert_close(loaded[name], (one + states[1][name]) / 2)


def changed(folder, target, change):
    shutil.copytree(folder, target)
    state = weights(folder)
    change(state)
    save_file(state, target / "model.safetensors")
    return target


def test_whole_numbers_have_to_agree_but_for_counters(three, tmp_path):
    def give(name, value):
        return lambda state: state.update({name: torch.tensor(value)})

    def pair(name, one, other):
        folders = [tmp_path / f"{name}-{value}" for value in (one, other)]
        return [changed(three[0], folder, give(name, v)) for folder, v in zip(folders, (one, other), strict=True)]

    with pytest.raises(CheckpointError, match="'table' holds whole numbers and differs"):
        average_checkpoints(pair("table", 1, 2), tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    average_checkpoints(pair("norm.num_batches_tracked", 10, 20), tmp_path / "mean")
    assert weights(tmp_path / "mean")["norm.num_batches_tracked"] == 20


def test_unlike_checkpoints_are_refused(three, tmp_path):
    wider = save(tmp_path / "wider", 0, config=model_config(hidden=64))
    with pytest.raises(CheckpointError, match=r"`model\.text_decoder\.model\.hidden_size` differs"):
        average_checkpoints([three[0], wider], tmp_path / "mean")
    name = next(iter(weights(three[0])))
    fewer = changed(three[1], tmp_path / "fewer", lambda state: state.pop(name))
    with pytest.raises(CheckpointError, match="different tensors"):
        average_checkpoints([three[0], fewer], tmp_path / "mean")
    half = changed(three[1], tmp_path / "half", lambda state: state.update({name: state[name].half()}))
    with pytest.raises(CheckpointError, match="of another shape or type"):
        average_checkpoints([three[0], half], tmp_path / "mean")
    broken = changed(three[1], tmp_path / "nan", lambda state: state[name].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="not finite"):
        average_checkpoints([three[0], broken], tmp_path / "mean")
    adapted = shutil.copytree(three[1], tmp_path / "adapted")
    (adapted / "adapters" / "one").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="merge-lora"):
        average_checkpoints([three[0], adapted], tmp_path / "mean")
    cut = shutil.copytree(three[1], tmp_path / "cut")
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"no safetensors file|cut off"):
        average_checkpoints([three[0], cut], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_failed_mean_leaves_what_was_there(three, tmp_path):
    average_checkpoints(three[:2], tmp_path / "mean")
    before = (tmp_path / "mean" / "model.safetensors").read_bytes()
    broken = changed(three[1], tmp_path / "nan", lambda state: next(iter(state.values())).fill_(float("inf")))
    with pytest.raises(CheckpointError):
        average_checkpoints([three[0], broken], tmp_path / "mean")
    assert (tmp_path / "mean" / "model.safetensors").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_what_to_average_is_checked(three, tmp_path):
    with pytest.raises(ConfigError, match="two checkpoints or more"):
        find_checkpoints(three[:1], None)
    with pytest.raises(ConfigError, match="same checkpoint"):
        find_checkpoints([three[0], three[0].parent / "." / three[0].name], None)
    with pytest.raises(ConfigError, match="fewer whole checkpoints"):
        find_checkpoints([tmp_path], 2)
    with pytest.raises(ConfigError, match="one for each"):
        average_checkpoints(three, tmp_path / "mean", weights=[1.0])
    with pytest.raises(ConfigError, match="above 0"):
        average_checkpoints(three, tmp_path / "mean", weights=[1.0, -1.0, 1.0])


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["average-checkpoints", *map(str, arguments), "--no-progress"])
    return exit_.value.code, capsys.readouterr()


def test_the_command(three, tmp_path, capsys):
    code, said = run(capsys, *three[:2], "--output", tmp_path / "mean", "--weights", "1,3")
    assert code == 0, said.err
    assert "25.00%" in said.out
    code, said = run(capsys, *three[:2], "--output", tmp_path / "mean")
    assert code == 2
    assert "is not empty; replace it with --overwrite" in said.err
    code, said = run(capsys, *three[:2], "--output", tmp_path / "mean", "--overwrite")
    assert code == 0, said.err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    code, said = run(capsys, *three[:2], "--output", tmp_path / "other", "--overwrite")
    assert code == 2
    assert "holds no checkpoint" in said.err
    code, said = run(capsys, *three[:2], "--output", tmp_path / "x", "--weights", "1,b")
    assert code == 2


def snapshot(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("place", ["one", "", "one/mean"])
def test_no_checkpoint_is_written_over_one_that_is_read(three, tmp_path, capsys, place):
    root = tmp_path / "root"
    for source, name in zip(three, ("", "one", "one/mean"), strict=True):
        shutil.copytree(source, root / name, dirs_exist_ok=True)
    shutil.copytree(three[0], tmp_path / "apart")
    before = snapshot(root)
    (tmp_path / "link").symlink_to(root)
    code, said = run(capsys, root / "one", tmp_path / "apart", "--output", tmp_path / "link" / place, "--overwrite")
    assert code == 2
    word = {"one": "is", "": "holds", "one/mean": "lies in"}[place]
    assert f"{word} {str(root / 'one')!r}, which is read; choose a folder beside it" in said.err
    assert snapshot(root) == before


def test_what_lies_beside_a_replaced_checkpoint_stays(three, tmp_path, capsys):
    output = shutil.copytree(three[2], tmp_path / "out")
    save_weights(SpeechLMM.from_pretrained(three[2]), output / "checkpoint-3")
    (output / "README.md").write_text("mine")
    (output / "evaluations").mkdir()
    (output / "evaluations" / "one.json").write_text("{}")
    (output / "gone").symlink_to(tmp_path / "nowhere")
    (output / "model.safetensors.index.json").write_text("{}")  # of an older one, as is the rest
    (output / "tokenizer.model").write_text("stale")
    (output / "averaged.json").write_text("stale")
    kept = {name: snapshot(output)[name] for name in ("README.md", "evaluations/one.json")}
    kept |= {name: data for name, data in snapshot(output).items() if name.startswith("checkpoint-3/")}
    code, said = run(capsys, *three[:2], "--output", output, "--overwrite")
    assert code == 0, said.err
    got = snapshot(output)
    assert {name: got.get(name) for name in kept} == kept
    assert (output / "gone").is_symlink()
    average_checkpoints(three[:2], tmp_path / "mean")
    assert {name: data for name, data in got.items() if name not in kept} == snapshot(tmp_path / "mean")

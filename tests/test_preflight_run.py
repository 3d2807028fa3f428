"""What checks before training leave alone, warn of and find: equal weights, oversized examples, the largest budget."""

import copy
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import DataError
from speechlmm_core.model.describe import meta_model
from speechlmm_core.model.freezing import freeze
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.batching.plan import BatchPlan
from speechlmm_train.cli.plan import plan as plan_command
from speechlmm_train.compose import validate
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.preflight.budget import ROUND, TOLERANCE, find_budgets, search, settle_budgets
from speechlmm_train.preflight.check import check_run
from speechlmm_train.preflight.files import spread
from speechlmm_train.preflight.memory import MemoryEstimate, StageModel, shared_otherwise
from speechlmm_train.preflight.restore import untouched
from speechlmm_train.preflight.table import largest_batches
from speechlmm_train.preflight.worst import worst_batches
from speechlmm_train.run import run
from speechlmm_train.trainer.stage_data import open_stages

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000
WHISPER = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "dropout": 0.1}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512, "attention_dropout": 0.1}
MODEL = {
    "audio_encoder": {
        "type": "whisper_unrestricted",
        "model": {**WHISPER, "encoder_ffn_dim": 64, "max_source_positions": 200},
    },
    "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
    "text_decoder": {"type": "causal_lm", "tokenizer": "bytes", "chat_template": "chatml", "model": {**LLAMA, **HEADS}},
    "objectives": {"ctc": {"type": "ctc"}},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Ten tones of 0.5 to 2.75 s."""
    root = tmp_path_factory.mktemp("corpus")
    rows = []
    for i in range(10):
        samples = 0.1 * np.sin(np.arange(RATE * (i + 2) // 4) * 0.05 * (i + 1))
        soundfile.write(root / f"{i}.flac", samples.astype("float32"), RATE)
        rows.append({"audio": f"{i}.flac", "text": f"word {i}", "task": "asr"})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def plain(corpus, out, *, data=None, **training):
    settings = {"output_dir": str(out), "max_steps": 2, "token_budget": 400, "report_to": [], "save_steps": None}
    return {
        "model": copy.deepcopy(MODEL),
        "data": {"train": [str(corpus / "train.jsonl")], **(data or {})},
        "training": {**settings, **training},
    }


def opened(config):
    processor = SpeechLMMProcessor.from_config(config.model)
    (data,) = open_stages(config, processor, base=Path.cwd(), world_size=1)
    return data


def test_a_run_is_bit_identical_with_and_without_checks(corpus, tmp_path):
    """Dropout is on, so that random numbers that the checks took would be seen."""
    for name, checked in (("with", True), ("without", False)):
        config = plain(corpus, tmp_path / name, preflight=checked, learning_rate=1e-2)
        run(validate(config), plain=config, progress=False)
    left, right = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("with", "without"))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_what_is_tried_out_leaves_no_trace():
    model = SpeechLMM.from_model_config(ModelConfig.model_validate(MODEL))
    model.register_buffer("count", torch.zeros(1))
    freeze(model, ["audio_encoder"])
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state, ever, still = torch.get_rng_state(), set(model.ever_trainable), model.frozen_modules

    def try_and_fail():
        with untouched(model):
            freeze(model, ["text_decoder"])
            model.train()
            model.get_buffer("count").add_(1)
            next(p for p in model.parameters() if p.requires_grad).sum().backward()
            torch.rand(3)
            np.random.rand(3)
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        try_and_fail()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.ever_trainable, model.frozen_modules, model.training) == (ever, still, False)


def test_gradient_checkpointing_keeps_nothing_of_a_frozen_encoder():
    model = SpeechLMM.from_model_config(ModelConfig.model_validate(MODEL))
    freeze(model, ["audio_encoder"])
    model.activation_checkpointing_enable({"use_reentrant": False})
    processor = SpeechLMMProcessor.from_config(ModelConfig.model_validate(MODEL))
    audio = {"type": "audio", "array": np.zeros(RATE, np.float32), "sampling_rate": RATE, "transcript": "a"}
    messages = [{"role": "user", "content": [audio]}, {"role": "assistant", "content": "a"}]
    batch = processor([messages], with_answer=True, packed=True)
    assert not model.train().encode(batch["media"])["audio_encoder"].values.requires_grad


def test_oversized_examples_are_left_out_and_named(corpus, tmp_path, caplog):
    """By the lengths that the plan of all examples has."""
    everything = opened(validate(plain(corpus, tmp_path)))
    budget = int(np.sort(everything.plan.positions)[6])  # seven examples are as long or shorter
    with caplog.at_level(logging.WARNING):
        data = opened(validate(plain(corpus, tmp_path, token_budget=budget, data={"oversized": "skip"})))
    assert data.skipped == [7, 8, 9]
    assert data.indices.tolist() == list(range(7))
    hours = (9 + 10 + 11) / 4 / 3600
    (line,) = [one.getMessage() for one in caplog.records if "leaves out" in one.getMessage()]
    assert f"leaves out 3 of 10 examples ({hours:.2f} h) that are longer than a budget: " in line
    assert re.findall(r"train\.jsonl:(\d+) \((\d+) positions\)", line) == [
        (str(number + 1), str(everything.plan.positions[number])) for number in (9, 8, 7)
    ]
    with pytest.raises(DataError, match=r"3 example\(s\) are longer than token_budget"):
        opened(validate(plain(corpus, tmp_path, token_budget=budget)))
    alone = opened(validate(plain(corpus, tmp_path, token_budget=budget, data={"oversized": "alone"})))
    assert len(alone.plan.positions) == 10


def test_parameters_that_no_loss_reaches_are_warned_of(corpus, tmp_path, caplog):
    """The CTC objective's head has no part in the loss while its weight is zero; the text decoder has."""
    config = plain(corpus, tmp_path / "out", max_steps=1)
    config["model"]["objectives"] = {"ctc": {"type": "ctc", "weight": 0}}
    with caplog.at_level(logging.WARNING):
        run(validate(config), plain=config, progress=False)
    (line,) = [one.getMessage() for one in caplog.records if "no loss reaches" in one.getMessage()]
    assert "objectives.ctc" in line
    assert "text_decoder" not in line


@settings(max_examples=200, deadline=None)
@given(low=st.integers(1, 5000), more=st.integers(0, 200_000), limit=st.integers(0, 200_000))
def test_the_search_comes_close_to_the_largest_that_fits(low, more, limit):
    asked = []

    def fits(budget):
        asked.append(budget)
        return budget <= limit

    high = low + more
    found = search(fits, low=low, high=high)
    largest = min(limit, high)  # what trying each would find
    if limit < low:
        assert found is None
    else:
        assert low <= found <= largest
        assert found >= largest * (1 - TOLERANCE)
    assert len(asked) <= 40


class _Probe:
    """A machine with so many bytes, of which each position of a micro-batch takes ten."""

    limit = 4_000

    def __init__(self):
        self.sizes = []

    def peak(self, stage):
        sizes = [sum(stage.plan.positions[one.indices]) for one in worst_batches(stage.plan)]
        self.sizes.append(max(sizes))
        return 10 * max(sizes) if max(sizes) <= 1000 else None


def test_the_budget_that_is_found_fits_and_is_kept(corpus, tmp_path):
    config = validate(plain(corpus, tmp_path / "out", token_budget="auto"))
    probe = _Probe()
    found = find_budgets(config, base=tmp_path, world_size=1, probe=probe)
    (budget,) = found.values()
    positions = opened(config).plan.positions
    assert positions.max() <= budget
    assert budget <= 400 + ROUND  # more than that would take more than there is, but for what does not come out even
    limited = plain(corpus, tmp_path / "out", token_budget="auto", memory_limit_gib=0.008, use_cpu=True)
    report = run(validate(limited), plain=limited, progress=False)
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    taken = written["training"]["token_budget"]
    assert isinstance(taken, int)
    assert report.steps == 2
    # A resumed run keeps it, whatever it would find now.
    again, plain_again = settle_budgets(
        validate({**limited, "training": {**limited["training"], "memory_limit_gib": 100}}),
        limited,
        folder=tmp_path / "out",
        base=tmp_path,
        ranks=Ranks(),
        resume=True,
    )
    assert again.training.token_budget == plain_again["training"]["token_budget"] == taken


def test_one_process_measures_the_data_before_the_others(corpus, tmp_path, monkeypatch):
    order = []

    class First(Ranks):
        def main_first(self, work):
            order.append("the first")
            found = work()
            order.append("the others")
            return found

    def opening(*args, **kwargs):
        order.append("measured")
        return open_stages(*args, **kwargs)

    monkeypatch.setattr("speechlmm_train.preflight.budget.open_stages", opening)
    limited = plain(corpus, tmp_path / "out", token_budget="auto", memory_limit_gib=0.008, use_cpu=True)
    places = {"folder": tmp_path / "out", "base": tmp_path}
    settle_budgets(validate(limited), limited, ranks=First(), resume=False, **places)
    assert order == ["the first", "measured", "the others"]


def test_the_largest_micro_batches_are_those_that_a_look_at_all_finds():
    generator = np.random.default_rng(0)
    positions, frames = generator.integers(5, 60, 200), generator.integers(10, 90, 200)
    for packed in (True, False):
        plan = BatchPlan(positions, frames, token_budget=200, frame_budget=300, packed=packed)
        table = plan.epoch(0)
        batches = [table.batch(number) for number in range(len(table))]

        def held(batch, packed=packed):
            own = positions[batch]
            return own.sum() if packed else len(batch) * own.max()

        found = [one.indices for one in worst_batches(plan)]
        assert max(map(held, batches)) == held(found[0])
        most = max(len(batch) * frames[batch].max() for batch in batches)
        assert most in [len(batch) * frames[batch].max() for batch in found]
        assert any(int(np.argmax(positions)) in batch or positions[batch].max() == positions.max() for batch in found)


def test_the_vocabulary_is_checked_against_an_embedding_table_that_is_spread(corpus, tmp_path):
    """ZeRO's stage 3 leaves an empty tensor in each parameter, and its shape beside it."""
    config = validate(plain(corpus, tmp_path / "out"))
    stage = opened(config)
    model = SpeechLMM.from_model_config(config.model)
    weight = model.text_decoder.embedding_weight
    width = weight.shape[1]
    for parameter in model.parameters():
        parameter.ds_id, parameter.ds_numel, parameter.ds_shape = 0, parameter.numel(), parameter.shape
    weight.ds_shape = torch.Size([60, width])
    weight.data = torch.empty(0)
    with pytest.raises(DataError, match=r"token id \d+ has no row in .* embedding table, which has 60; give the"):
        check_run(config, [stage], model, folder=tmp_path / "out", resume=False)


@given(st.integers(0, 3000))
def test_spread_numbers_come_once_each(count):
    assert sorted(spread(count)) == list(range(count))


def test_sharing_divides_what_it_shares(corpus, tmp_path):
    """ZeRO's table (Rajbhandari et al., 2020): of 4 bytes of weights, 4 of gradients and 8 + 4 of states in fp32."""
    config = validate(plain(corpus, tmp_path))
    data = opened(config)
    model = StageModel(config, data.settings)
    estimate = model.estimate(largest_batches(config, data.settings, data), world_size=1)
    counts = meta_model(config.model)
    trained = sum(parameter.numel() for parameter in counts.parameters() if parameter.requires_grad)
    fixed = sum(parameter.numel() for parameter in counts.parameters()) - trained
    assert estimate.weights == 4 * (trained + fixed)
    assert (estimate.gradients, estimate.optimiser) == (4 * trained, 8 * trained)
    parts = {
        parallel: shared_otherwise(estimate, model, parallel, 4)
        for parallel in ("ddp", "zero1", "zero2", "zero3", "zero2_offload")
    }
    assert parts["ddp"].gradients == parts["zero1"].gradients == 4 * trained
    assert parts["zero1"].optimiser == parts["zero2"].optimiser == pytest.approx(12 * trained / 4)
    assert parts["zero2"].gradients == pytest.approx(4 * trained / 4, abs=1)
    assert parts["zero3"].weights == pytest.approx(4 * (trained + fixed) / 4, abs=1)
    assert shared_otherwise(estimate, model, "zero0", 4).optimiser == 8 * trained  # no copy to step on
    offloaded = parts["zero2_offload"]  # gradients, and weights to send, are in the host's memory as well
    assert (offloaded.optimiser, offloaded.gradients) == (0, 0)
    assert offloaded.host == pytest.approx((12 + 4 + 4) * trained / 4, abs=4)
    assert isinstance(estimate, MemoryEstimate)


@pytest.mark.parametrize("there", [True, False])
def test_a_plan_shows_memory_and_what_fits(corpus, tmp_path, there):
    manifest = corpus / ("train.jsonl" if there else "later.jsonl")
    arguments = [
        "model/audio_encoder=tiny_whisper_unrestricted",
        "model/audio_adapter=tiny_mlp",
        "model/text_decoder=tiny_llama",
        f"data.train=[{manifest}]",
        f"training.output_dir={tmp_path / 'out'}",
        "training.max_steps=4",
        "training.token_budget=500",
        "--gpu-memory",
        "0.001",
    ]
    result = CliRunner().invoke(plan_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert ("made-up examples" in result.output) == (not there)
    assert ("an epoch of train: " in result.output) == there
    sizes = dict(re.findall(r"^  (\w+) +([\d.]+ [KM]?i?B)$", result.output, re.MULTILINE))
    assert {"weights", "gradients", "optimiser", "activations", "buffers", "workspace", "total"} <= set(sizes)
    assert "does not fit into 0.001 GiB" in result.output


def test_a_fault_that_one_process_finds_ends_all(corpus, tmp_path, run_ranks):
    """The first looks at files; the other ends with it, and nothing is written but the launcher's logs."""
    rows = [{"audio": "gone.flac", "text": "word", "task": "asr"}]
    (corpus / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"eval": [str(corpus / "eval.jsonl")]}
    config = plain(corpus, tmp_path / "out", data=data, eval_steps=1, num_processes=2, micro_batches_per_step=2)
    done = run_ranks(config, processes=2, base=tmp_path)
    assert done.code == 2
    assert done.err.count("gone.flac: no such file; check the path") == 1
    assert not (tmp_path / "out" / "config.yaml").exists()

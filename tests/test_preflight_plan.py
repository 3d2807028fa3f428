"""What a plan and the checks before training say, against sums by hand and the micro-batches themselves."""

import copy
import json
import logging
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import Examples
from speechlmm_core.errors import DataError
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.compose import validate
from speechlmm_train.preflight import check, deadline
from speechlmm_train.preflight.disk import checkpoint_bytes
from speechlmm_train.preflight.files import AT_ONCE, check_files
from speechlmm_train.preflight.memory import StageModel, changed
from speechlmm_train.preflight.padding import padding_share
from speechlmm_train.preflight.sharding import split_of
from speechlmm_train.preflight.table import largest_batches
from speechlmm_train.run import run
from speechlmm_train.run_stages import RunStages
from speechlmm_train.trainer.stage_data import open_stages

pytestmark = pytest.mark.usefixtures("one_thread")

RATE, WINDOW = 16_000, 200  # frames of 20 ms: windows of four seconds
SECONDS = (0.5, 1.0, 2.0, 3.0, 5.0, 9.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six clips, of which two are longer than a window, and a text."""
    root = tmp_path_factory.mktemp("corpus")
    rows = [{"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "one"}]}]
    for i, seconds in enumerate(SECONDS):
        samples = 0.1 * np.sin(np.arange(int(RATE * seconds)) * 0.05 * (i + 1))
        soundfile.write(root / f"{i}.wav", samples.astype("float32"), RATE)
        rows.append({"audio": f"{i}.wav", "text": f"word {i}", "task": "asr"})
    two = [{"type": "audio", "path": f"{i}.wav"} for i in (1, 1)]
    rows.append({"messages": [{"role": "user", "content": two}, {"role": "assistant", "content": "two"}]})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def plain(root, out, encoder="whisper_unrestricted", **training):
    whisper = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    llama = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    frames = 600 if encoder == "whisper_unrestricted" else WINDOW
    model = {
        "audio_encoder": {"type": encoder, "model": {**whisper, "encoder_ffn_dim": 64, "max_source_positions": frames}},
        "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
        "text_decoder": {
            "type": "causal_lm",
            "tokenizer": "bytes",
            "chat_template": "chatml",
            "model": {**llama, **heads},
        },
    }
    settings = {"output_dir": str(out), "max_steps": 2, "token_budget": 500, "report_to": [], "save_steps": None}
    data = {"train": [str(root / "train.jsonl")]}
    return {"model": model, "data": data, "training": {**settings, **training}}


def opened(config):
    processor = SpeechLMMProcessor.from_config(config.model)
    (data,) = open_stages(config, processor, base=Path.cwd(), world_size=1)
    return data


@pytest.mark.parametrize("encoder", ["whisper", "whisper_unrestricted"])
def test_padding_is_what_the_micro_batches_of_an_epoch_hold(corpus, tmp_path, encoder):
    stage = opened(validate(plain(corpus, tmp_path, encoder)))
    loader, table = stage.batches(0, rank=0), stage.plan.epoch(0)
    positions, held_positions, frames, held_frames = 0, 0, 0, 0
    for place in range(len(table)):
        batch = loader.load(stage.plan.item(place, 0))
        assert batch["origin"]["examples"].tolist() == table.batch(place)
        positions += sum(batch["segments"]["lengths"])
        held_positions += batch["input_ids"].numel()
        for media in batch["media"].values():
            features = media["inputs"]["input_features"]  # (R, M, T), two to a frame
            rows = len(features)
            frames += int(media["encoder_lengths"].sum())
            longest = int(media["encoder_lengths"].max())
            held_frames += rows * (WINDOW if encoder == "whisper" else longest)
    share = padding_share(stage)
    # The plan allows for prompts of other lengths.
    assert share[0] == pytest.approx(1 - positions / held_positions, abs=0.01)
    if encoder == "whisper":
        assert share[1] == pytest.approx(1 - frames / held_frames)
        assert share[1] > 0.3
    else:  # an example of two media counts as one of their sum
        assert share[1] == pytest.approx(1 - frames / held_frames, abs=0.15)


def test_the_disk_is_checked_for_whole_weights_that_are_spread(corpus, tmp_path):
    """ZeRO's stage 3 leaves an empty tensor in each parameter, and its shape beside it."""
    config = validate(plain(corpus, tmp_path))
    stage = opened(config)
    model = SpeechLMM.from_model_config(config.model)
    model.ever_trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    count = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert checkpoint_bytes(model, [stage]) == (4 * count + buffers, 8 * trained)


def test_a_gpu_holds_one_micro_batch_at_a_time(corpus, tmp_path):
    config = validate(plain(corpus, tmp_path, micro_batches_per_step=8))
    stage = opened(config)
    model, batches = StageModel(config, stage.settings), largest_batches(config, stage.settings, stage)

    def leaves(tree):
        if isinstance(tree, torch.Tensor):
            return [tree]
        nodes = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
        return [leaf for node in nodes for leaf in leaves(node)]

    one = max(sum(leaf.numel() * leaf.element_size() for leaf in leaves(dict(batch))) for batch in batches)
    own = sum(buffer.numel() * buffer.element_size() for buffer in model.model.buffers())
    assert model.estimate(batches, world_size=1, on_gpu=True).buffers == own + one
    assert model.estimate(batches, world_size=1, on_gpu=False).buffers == own + 8 * one
    assert model.estimate(batches, world_size=4, on_gpu=False).buffers == own + 2 * one


@pytest.mark.parametrize(
    ("mode", "section", "numbers"),
    [
        ("zero2", {}, 2**28),
        ("zero2", {"reduce_bucket_size": 5e6}, 5_000_000),
        ("zero2", {"reduce_bucket_size": 1000, "overlap_comm": True}, 2000),
        ("zero3", {"reduce_bucket_size": 1000, "overlap_comm": True}, 1000),
        ("zero1", {"reduce_bucket_size": "auto"}, 2**28),
    ],
)
def test_the_users_buckets_are_part_of_the_workspace(corpus, tmp_path, mode, section, numbers):
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": section}))
    config = validate(plain(corpus, tmp_path, parallel=mode, deepspeed_config="ds.json", bf16=False))
    (stage,) = config.resolved_stages()
    model = StageModel(config, stage, base=tmp_path).model

    def workspace(training):
        return split_of(model, {}, training, 2, base=tmp_path).workspace

    plain_training = changed(stage, deepspeed_config=None).training
    assert workspace(stage.training) - workspace(plain_training) == 4 * (numbers - 2**28)


class _Many(Examples):
    """Examples that take a millisecond each, by a clock of their own."""

    def __init__(self, count, example):
        self.count, self.made, self.looked, self.now = count, example, [], 0.0

    def __len__(self):
        return self.count

    def example(self, index):
        self.looked.append(index)
        self.now += 1e-3
        return self.made


@pytest.mark.parametrize("there", [True, False])
def test_files_of_a_million_examples_are_looked_for_within_a_second(corpus, tmp_path, monkeypatch, caplog, there):
    stage = opened(validate(plain(corpus, tmp_path)))
    place = corpus / ("0.wav" if there else "gone.wav")
    audio = {"type": "audio", "path": str(place)}
    many = _Many(1_000_000, Example(id="one", media={"audio": audio}, text="word", task="asr"))
    monkeypatch.setattr(deadline.time, "perf_counter", lambda: many.now)
    one = copy.copy(stage)
    object.__setattr__(one, "examples", many)
    object.__setattr__(one, "indices", np.arange(len(many)))
    object.__setattr__(one, "mixture", copy.copy(stage.mixture))
    object.__setattr__(one.mixture, "seconds", np.zeros(len(many)))
    monkeypatch.setattr("speechlmm_train.preflight.weaknesses.TOLERATED", 1.0)  # they all have one id
    with caplog.at_level(logging.INFO), nullcontext() if there else pytest.raises(DataError, match="no such file"):
        check_files([one], deadline.Deadline(30).part(check.FILES_S))
    assert 1000 <= len(many.looked) < 1000 + AT_ONCE
    assert max(np.diff(np.sort(many.looked))) < 3000  # from all over
    (told,) = [one for one in caplog.records if "were looked for" in one.getMessage()]
    assert f"of 1,000,000 examples, the media files of {len(many.looked):,} were looked for" in told.getMessage()
    assert told.levelno == (logging.INFO if there else logging.WARNING)  # there may be more faults than are told


def test_the_peak_of_memory_is_counted_from_the_first_step_on(corpus, tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr("speechlmm_train.run.check_run", lambda *_, **__: order.append("checked"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: order.append("counted anew"))
    monkeypatch.setattr(RunStages, "train", lambda *_: order.append("trained"))

    def stop(*_, **__):
        raise InterruptedError

    monkeypatch.setattr("speechlmm_train.run.save_final", stop)
    monkeypatch.setattr("speechlmm_train.preflight.restore.torch.cuda.is_initialized", lambda: True)
    config = plain(corpus, tmp_path / "out")
    with pytest.raises(InterruptedError):
        run(validate(config), plain=config, progress=False)
    assert order == ["checked", "counted anew", "trained"]

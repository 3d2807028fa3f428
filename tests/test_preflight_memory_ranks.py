"""Predicted weights, gradients and optimiser's states of processes that share them, against the tensors they hold."""

import json

import numpy as np
import pytest
import soundfile

from speechlmm_train.compose import compose_plain, validate
from speechlmm_train.preflight.memory import StageModel
from speechlmm_train.preflight.sharding import split_of

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

MODES = ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp2")
# Between two micro-batches of the second step there are gradients and states, and no activations.
MEASURE = """
import gc, json, sys, torch
from pathlib import Path
from speechlmm_train.process import prepare_process
prepare_process()
from transformers import TrainerCallback
from speechlmm_train.compose import validate
from speechlmm_train.run import run
from speechlmm_train.run_stages import RunStages

def tensors():
    gc.collect()
    return [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]

def storages(found):
    held = {}
    for tensor in found:
        for one in (tensor, tensor.grad if tensor.is_leaf else None):
            if one is not None and type(one).__name__ != "FakeTensor":
                storage = getattr(one, "_local_tensor", one).untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
    return held

class Look(TrainerCallback):
    def on_substep_end(self, args, state, control, **_):
        if state.global_step == 1:
            held.append(sum(size for place, size in storages(tensors()).items() if place not in before))

made = RunStages._trainer
def watched(self, index, start):
    trainer = made(self, index, start)
    trainer.add_callback(Look())
    return trainer
RunStages._trainer = watched
for file in sys.argv[1:]:
    plain = json.loads(Path(file).read_text())
    held = []
    old = tensors()  # what runs before have left is held, so that nothing new lies where it lay
    before = storages(old)
    run(validate(plain), plain=plain, base=Path(file).parent, progress=False)
    if torch.distributed.get_rank() == 0:
        Path(file).with_suffix(".held").write_text(json.dumps(held))
"""


def plain_of(root, mode):
    # Buckets of the usual size would hide all else in a model of this size.
    buckets = [f"training.deepspeed_config={root / 'buckets.json'}"] if mode.startswith("zero") else []
    return compose_plain(
        "pretrain",
        [
            *("model/audio_encoder=tiny_whisper_unrestricted", "model/audio_adapter=tiny_mlp"),
            *("model/text_decoder=tiny_llama", "model.text_decoder.model.hidden_size=128"),
            *("model.text_decoder.model.intermediate_size=1024", "model.text_decoder.model.num_hidden_layers=2"),
            *("training.report_to=[]", "training.save_steps=null", "training.preflight=false", "training.max_steps=2"),
            *("training.per_device_train_batch_size=1", "training.micro_batches_per_step=4", "training.bf16=true"),
            *(f"data.train=[{root / 'train.jsonl'}]", f"training.output_dir={root / mode}"),
            *(f"training.parallel={mode}", *buckets),
        ],
    )


@pytest.fixture(scope="module")
def held(tmp_path_factory, run_script):
    """Configurations, and the bytes of the tensors that the first of two processes holds."""
    root = tmp_path_factory.mktemp("shared")
    generator = np.random.default_rng(0)
    rows = []
    for i in range(4):
        soundfile.write(root / f"{i}.wav", generator.normal(0, 0.1, 6_000).astype("float32"), 16_000)
        rows.append({"audio": f"{i}.wav", "text": f"word {i}", "task": "asr"})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "buckets.json").write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 1000}}))
    plain = {mode: plain_of(root, mode) for mode in MODES}
    for mode, one in plain.items():
        (root / f"{mode}.json").write_text(json.dumps(one))
    done = run_script(MEASURE, *(root / f"{mode}.json" for mode in MODES), timeout=400)
    assert done.code == 0, done.err[-6000:]
    return {mode: (one, json.loads((root / f"{mode}.held").read_text())) for mode, one in plain.items()}


@pytest.mark.parametrize("mode", MODES)
def test_what_two_processes_hold_in_bf16(held, mode):
    plain, (measured,) = held[mode]
    config = validate(plain)
    (stage,) = config.resolved_stages()
    split = split_of(StageModel(config, stage).model, {}, stage.training, 2)
    predicted = split.weights + split.gradients + split.optimiser + split.host  # here, the device is the host
    assert predicted == pytest.approx(measured, rel=0.1)

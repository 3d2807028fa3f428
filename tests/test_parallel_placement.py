"""On which device the parts of a training's model are, when DeepSpeed or FSDP2 spreads it."""

import json
import math
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import rows
from transformers import Trainer

from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.compose import compose_plain, validate
from speechlmm_train.parallel.wrap import to_device
from speechlmm_train.trainer import spread as module
from speechlmm_train.trainer.trainer import SpeechLMMTrainer

META = torch.device("meta")


@pytest.fixture
def model():
    """One with batch norms, and rotations of positions, which are buffers."""
    parts = ("model/text_decoder=tiny_llama", "model/video_encoder=tiny_auto_avsr", "model/video_adapter=tiny_mlp")
    rest = ("data.train=[a]", "training.output_dir=out", "training.max_steps=1")
    model = SpeechLMM.from_model_config(validate(compose_plain("pretrain", [*parts, *rest])).model)
    assert any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.video_encoder.modules())
    return model


def elsewhere(tensors):
    return {name for name, tensor in tensors if tensor.is_meta}


@pytest.mark.parametrize("whole", [{"video_encoder"}, set()])
def test_whole_components_and_all_buffers_go_where_the_training_is(model, whole):
    weights = {name: parameter for name, parameter in model.named_parameters() if name.startswith("video_encoder.")}
    to_device(model, whole=whole, device=META)
    assert elsewhere(model.named_parameters()) == (set(weights) if whole else set()), "the rest is left to DeepSpeed"
    assert elsewhere(model.named_buffers()) == {name for name, _ in model.named_buffers()}
    assert any("running_mean" in name for name, _ in model.named_buffers())


def test_deepspeed_is_told_where_when_it_has_wrapped_the_rest(model, monkeypatch):
    """Frozen encoders are out of the model meanwhile; then they have to come to its device."""
    seen = []

    def prepared(self, *_):
        assert not elsewhere(self.model.named_parameters())
        return seen.append("prepared")

    monkeypatch.setattr(Trainer, "_prepare_for_training", prepared)
    for name in ("gather_at_start", "leave_whole"):
        monkeypatch.setattr(module, name, lambda *_, name=name: seen.append(name))
    trainer = SpeechLMMTrainer.__new__(SpeechLMMTrainer)
    trainer.model = trainer.model_wrapped = model
    trainer.stage = SimpleNamespace(mode="zero", whole=frozenset({"video_encoder"}))
    trainer.args = SimpleNamespace(device=META, fp16=False)
    trainer._hidden = ExitStack()
    trainer._prepare_for_training(1, None, None)
    assert seen == ["prepared", "gather_at_start", "leave_whole"]
    assert all(parameter.is_meta for parameter in model.video_encoder.parameters())
    assert all(buffer.is_meta for buffer in model.buffers())


HALF = """
import json, sys
from pathlib import Path
from speechlmm_train.process import prepare_process
prepare_process()
import torch
from deepspeed.accelerator import get_accelerator
from speechlmm_train.compose import validate
from speechlmm_train.run import run
from speechlmm_train.trainer.trainer import SpeechLMMTrainer

get_accelerator().is_fp16_supported = lambda: True  # as on a GPU
save = SpeechLMMTrainer._save_checkpoint
def saved(self, model, trial):
    parts = ("audio_encoder", "audio_adapter", "text_decoder")
    print(*(str(next(self.model.get_submodule(part).parameters()).dtype)[6:] for part in parts), flush=True)
    save(self, model, trial)
SpeechLMMTrainer._save_checkpoint = saved
plain = json.loads(Path(sys.argv[1]).read_text())
run(validate(plain), plain=plain, progress=False)
plain["training"] |= {"parallel": "zero1", "max_steps": 3}
run(validate(plain), plain=plain, progress=False, resume=True)
"""


@pytest.mark.slow
def test_weights_in_fp16_beside_a_frozen_encoder(noise, run_script, tmp_path):
    """DeepSpeed's are in half precision, and what it does not have in full: trained, evaluated, saved, gone on with."""
    plain = noise.plain(
        tmp_path / "out",
        parallel="zero2",
        freeze_modules=["audio_encoder"],
        preflight=False,
        bf16=False,
        fp16=True,
        max_steps=2,
        save_steps=1,
        eval_steps=2,
        eval_samples=1,
        eval_max_new_tokens=2,
    )
    plain["data"]["eval"] = plain["data"]["train"]
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    done = run_script(HALF, tmp_path / "plain.json", processes=1)
    assert done.code == 0, done.err[-4000:]
    assert [line for line in done.out.splitlines() if line.startswith("float")] == ["float32 float16 float16"] * 3
    losses = [row["train/loss"] for row in rows(tmp_path / "out") if "train/loss" in row]
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    tensors, last = (load_file(tmp_path / "out" / name / "model.safetensors") for name in ("model", "checkpoint-3"))
    assert all(torch.equal(tensor, last[name]) for name, tensor in tensors.items()), "not rounded at the end"
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize("parallel", ["zero0", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"])
def test_a_frozen_encoder_beside_what_is_spread_on_a_gpu(noise, run_ranks, tmp_path, parallel):
    """Trained, stopped and gone on with; the evaluation is in the precision of the training."""
    plain = noise.plain(
        tmp_path / "out",
        parallel=parallel,
        freeze_modules=["audio_encoder"],
        preflight=False,
        bf16=True,
        max_steps=2,
        save_steps=1,
        eval_steps=1,
        eval_max_new_tokens=2,
    )
    plain["data"]["eval"] = plain["data"]["train"]
    llm = SpeechLMM.from_model_config(validate(plain).model)
    llm.text_decoder.model.save_pretrained(tmp_path / "llm")
    decoder = {**plain["model"]["text_decoder"], "pretrained": str(tmp_path / "llm")}
    plain["model"] = {**plain["model"], "text_decoder": decoder}
    first = run_ranks(plain, processes=1)
    assert first.code == 0, first.err
    plain["training"]["max_steps"] = 3
    again = run_ranks(plain, processes=1, resume=True)
    assert again.code == 0, again.err

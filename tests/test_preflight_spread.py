"""Trying out a training whose weights are spread over two processes: it finds faults and changes nothing."""

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import rows, run_jobs, tiny_decoder, tiny_encoder, tiny_model

from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.compose import validate

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

# On a CPU, FSDP's weights would be tried out by each process alone.
ALL = """
import json, logging, sys
from pathlib import Path
from speechlmm_core.errors import SpeechLMMError
from speechlmm_train.process import prepare_process
prepare_process()
from speechlmm_train.compose import validate
from speechlmm_train.preflight import check, together
from speechlmm_train.run import run
from speechlmm_train.trainer.trainer import SpeechLMMTrainer

class Told(logging.Handler):
    def emit(self, record):
        print(f"told: {Path(file).stem}: {record.getMessage()}", flush=True)
logging.getLogger(check.__name__).addHandler(Told())

check._too_big_alone = lambda *_: True
stepped = []
of_trainer = SpeechLMMTrainer.training_step
def step(self, model, inputs, *rest):
    tried = isinstance(self, together._Trainer)
    if tried:
        stepped.append(inputs["input_ids"].numel())
    return of_trainer(self, model, inputs, *rest)
SpeechLMMTrainer.training_step = step
for file in sys.argv[1:]:
    plain = json.loads(Path(file).read_text())
    stepped.clear()
    try:
        run(validate(plain), plain=plain, base=Path(file).parent, progress=False)
    except SpeechLMMError as exc:
        print(f"fault: {Path(file).stem}: {exc}", flush=True)
    print(f"tried: {Path(file).stem}: {len(stepped)}", flush=True)
"""
DECODER = tiny_decoder(layers=2, attention_dropout=0.1)
STAGES = [{"name": "a", "max_steps": 1, "trainable_modules": ["audio_adapter"]}, {"name": "b", "max_steps": 1}]
CASES = {
    "zero3": {"parallel": "zero3"},
    "zero3-stages": {"parallel": "zero3", "stages": STAGES, "deepspeed_config": "ds.json", "accumulated": 4},
    "fsdp2": {"parallel": "fsdp2", "gradient_checkpointing": True},
    "fsdp2-stages": {"parallel": "fsdp2", "stages": STAGES, "lr_groups": {"audio_adapter": 5e-3}, "restarts": True},
}


def plain_of(data, name, case, *, llm="llm", **training):
    training = {**case, **training}
    stages, accumulated = training.pop("stages", []), training.pop("accumulated", 2)
    ctc = 0.0 if stages else 0.5
    model = tiny_model(tiny_encoder(dropout=0.1), DECODER | {"pretrained": str(data / llm)}, ctc=ctc)
    settings = {"output_dir": str(data / name), "report_to": [], "save_steps": None, "logging_steps": 1}
    numbers = {"per_device_train_batch_size": 2, "micro_batches_per_step": accumulated, "learning_rate": 1e-2}
    if training.pop("restarts", False):
        numbers |= {"lr_scheduler_type": "cosine", "lr_min": 1e-3}
    plain = {"model": model, "data": {"train": [str(data / "train.jsonl")]}}
    plain["training"] = {**settings, **numbers, "bf16": False, **training}
    if stages:
        plain["stages"] = stages
    else:
        plain["training"]["max_steps"] = 2
    return plain


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six clips, a language model to begin from, and one that is damaged."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    lines = []
    for i in range(6):
        soundfile.write(root / f"{i}.wav", generator.normal(0, 0.1, 6_000 + 2_000 * i).astype("float32"), 16_000)
        lines.append({"id": f"clip-{i}", "audio": f"{i}.wav", "text": f"word {'abcdef'[i]}", "task": "asr"})
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # What it repeats of the settings is true of the training, and not of trying it out.
    given = {"gradient_accumulation_steps": 2, "train_batch_size": 8, "zero_optimization": {"stage": 3}}
    (root / "ds.json").write_text(json.dumps(given))
    torch.manual_seed(1)
    model = tiny_model(tiny_encoder(), DECODER, ctc=0.5)
    body = SpeechLMM.from_model_config(validate({**plain_of(root, "x", {}), "model": model}).model).text_decoder.model
    for name in ("llm", "nan"):
        body.save_pretrained(root / name)
    weights = load_file(root / "nan" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, root / "nan" / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def done(data, run_script):
    """What two processes did, one run after the other."""
    jobs = {}
    for name, case in CASES.items():
        jobs[f"{name}-with"] = plain_of(data, f"{name}-with", case, preflight=True)
        jobs[f"{name}-without"] = plain_of(data, f"{name}-without", case, preflight=False)
    for mode in ("zero3", "fsdp2"):
        jobs[f"nan-{mode}"] = plain_of(data, f"nan-{mode}", {}, llm="nan", parallel=mode)
    return run_jobs(run_script, ALL, data, jobs)


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_bit_identical_with_and_without_trying_it_out(done, data, case):
    found, expected = (load_file(data / f"{case}-{how}" / "model" / "model.safetensors") for how in ("with", "without"))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    for key in ("train/loss", "train/grad_norm", "train/lr"):
        left, right = ([row[key] for row in rows(data / f"{case}-{how}")] for how in ("with", "without"))
        assert left == right, key
    # The largest, and once more with the optimiser's states, of each stage.
    (tried,) = [line for line in done.out.splitlines() if line.startswith(f"tried: {case}-with:")]
    assert int(tried.split()[-1]) >= 2 * (2 if "stages" in case else 1)
    assert f"tried: {case}-without: 0" in done.out


@pytest.mark.parametrize("case", CASES)
def test_parameters_that_no_loss_reaches_are_warned_of(done, case):
    told = [line for line in done.out.splitlines() if line.startswith(f"told: {case}-with: ")]
    if "stages" in case:  # where the objective has no weight; the first stage trains the adapter alone
        (line,) = told
        assert "stage 'b': no loss reaches objectives.ctc." in line
        assert "text_decoder" not in line
    else:
        assert not told


@pytest.mark.parametrize("mode", ["zero3", "fsdp2"])
def test_a_weight_that_is_no_number_is_found_before_the_first_step(done, data, mode):
    (fault,) = [line for line in done.out.splitlines() if line.startswith(f"fault: nan-{mode}: ")]
    assert "is not finite before the first step: " in fault
    assert "text_decoder.model.model.layers.1.mlp.up_proj.weight hold NaN or infinity; load undamaged" in fault
    assert not (data / f"nan-{mode}").exists()


SHORT_OF_MEMORY = """
import torch
from speechlmm_train.preflight.together import _Trainer
of_trainer = _Trainer.compute_loss
def compute(self, *args, **kwargs):
    if torch.distributed.get_rank() == 1:
        raise torch.OutOfMemoryError("planted")
    return of_trainer(self, *args, **kwargs)
_Trainer.compute_loss = compute
"""


def test_a_process_that_lacks_memory_ends_all_with_one_message(data, run_ranks):
    (data / "short.py").write_text(SHORT_OF_MEMORY)
    plain = plain_of(data, "short", {}, parallel="zero3", num_processes=2, max_steps=1)
    done = run_ranks(plain, processes=2, base=data, imports=[data / "short.py"], timeout=120)
    assert done.code == 2
    assert done.err.count("needs more memory than there is; lower training.per_device_train_batch_size (now 2)") == 1
    assert "error: rank 1: stage 'train': the micro-batch of 2 examples (" in done.err
    assert not (data / "short" / "config.yaml").exists()

"""Trying out a training whose weights are spread over two processes: it finds faults and changes nothing."""

import json
import re

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
from contextlib import ExitStack
from pathlib import Path
from unittest import mock
import torch
from speechlmm_core.errors import SpeechLMMError
from speechlmm_train.process import prepare_process
prepare_process()
from speechlmm_train.batching.loader import TrainingBatches
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

# By the beginning of a run's name: where it fails, on both processes at once, and with what.
def none_left(*_, **__):
    raise torch.OutOfMemoryError("planted: tried to allocate 20 GiB")
def no_host(*_, **__):
    torch.empty(2**50, dtype=torch.uint8)
def broken(*_, **__):
    raise KeyError("planted")
of_loader = TrainingBatches.load
def no_room(self, micro_batch):
    if len(micro_batch.indices) > 1:  # single examples are looked at before
        raise MemoryError
    return of_loader(self, micro_batch)
PLANTED = {
    "short-spread": ("speechlmm_train.trainer.spread.shard", none_left),
    "short-wrapped": ("accelerate.Accelerator.prepare", none_left),
    "short-states": ("torch.optim.AdamW.step", no_host),
    "broken": ("accelerate.Accelerator.prepare", broken),
    "unloaded": ("speechlmm_train.batching.loader.TrainingBatches.load", no_room),
}
for file in sys.argv[1:]:
    plain = json.loads(Path(file).read_text())
    stepped.clear()
    try:
        with ExitStack() as patches:
            for where, what in (one for name, one in PLANTED.items() if Path(file).stem.startswith(name)):
                patches.enter_context(mock.patch(where, what))
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
# Without the encoder, which then stays whole, and is taken out of the model while DeepSpeed wraps it.
FAILING = {
    "short-spread-fsdp2": {"parallel": "fsdp2"},
    "short-states-fsdp2": {"parallel": "fsdp2"},
    "short-wrapped-zero3": {"parallel": "zero3"},
    "short-wrapped-offload": {"parallel": "zero3_offload", "freeze_modules": ["audio_encoder"]},
    "broken-fsdp2": {"parallel": "fsdp2"},
    "refused-zero3": {"parallel": "zero3", "deepspeed_config": "refused.json"},
    "unloaded-fsdp2": {"parallel": "fsdp2"},
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
    (root / "refused.json").write_text(json.dumps({"zero_optimization": {"stage": 3, "sub_group_size": "many"}}))
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
    for name, case in FAILING.items():
        jobs[name] = plain_of(data, name, case)
    jobs["limit"] = plain_of(data, "limit", {}, parallel="fsdp2", max_loss=1.0)
    return run_jobs(run_script, ALL, data, jobs)


def fault_of(done, name):
    (fault,) = [line for line in done.out.splitlines() if line.startswith(f"fault: {name}: ")]
    return fault.removeprefix(f"fault: {name}: ")


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
    fault = fault_of(done, f"nan-{mode}")
    assert "is not finite before the first step: " in fault
    assert "text_decoder.model.model.layers.1.mlp.up_proj.weight hold NaN or infinity; load undamaged" in fault
    assert not (data / f"nan-{mode}").exists()


@pytest.mark.parametrize("name", [name for name in FAILING if name.startswith("short")])
def test_weights_that_do_not_fit_are_told_of_without_a_micro_batch(done, data, name):
    fault, parallel = fault_of(done, name), FAILING[name]["parallel"]
    when = "in the optimiser's first step" if "states" in name else "before any batch"
    head = "stage 'train': the weights, gradients and optimiser states that training.parallel="
    assert fault.startswith(f"{head}{parallel} lays out do not fit into the memory, {when}: each of 2 processes takes ")
    assert ("you tried to allocate 1125899906842624 bytes" if "states" in name else "says 'planted: tried") in fault
    assert "micro-batch" not in fault
    assert "; use more processes on more GPUs, " in fault
    assert ("training.parallel=zero3_offload," in fault) == (parallel != "zero3_offload")
    assert ("of the host's memory" in fault) == (parallel == "zero3_offload")
    assert fault.endswith(
        "training.lora_adapters, training.freeze_modules, or training.load_in_4bit=true with adapters and "
        "training.parallel=ddp"
    )
    assert not (data / name).exists()


@pytest.mark.parametrize(("name", "states"), [("short-spread-fsdp2", 8), ("short-wrapped-zero3", 12)])
def test_the_memory_of_each_process_is_told(done, data, name, states):
    """Four bytes of a weight and a gradient, AdamW's eight, and DeepSpeed's copy; half of them in each process."""
    model = SpeechLMM.from_model_config(validate(plain_of(data, "x", {})).model)
    everything = sum(one.numel() for one in model.parameters())
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    sizes = {"weights": everything * 4 / 2, "gradients": trained * 4 / 2, "optimiser": trained * states / 2}
    parts = ", ".join(f"{part} {size / 1024:.1f} KiB" for part, size in sizes.items())
    assert re.search(rf"takes about [\d.]+ [KM]iB \({re.escape(parts)}\);", fault_of(done, name))


@pytest.mark.parametrize(
    ("name", "said", "settings"),
    [
        ("broken-fsdp2", "KeyError: 'planted'", "training.optim"),
        (
            "refused-zero3",
            "ValidationError: 1 validation error for DeepSpeedZeroConfig sub_group_size Input should be a valid",
            "training.optim, training.deepspeed_config",
        ),
    ],
)
def test_a_library_that_cannot_spread_the_weights_is_quoted(done, data, name, said, settings):
    fault, parallel = fault_of(done, name), FAILING[name]["parallel"]
    head = f"stage 'train': training.parallel={parallel} cannot lay out the weights, gradients and optimiser states"
    assert fault.startswith(f"{head}, before any batch: {said}")
    assert f"; see {settings} and the libraries' versions (--debug shows where it failed), or choose another" in fault
    assert not (data / name).exists()


def test_a_micro_batch_that_cannot_be_loaded_is_named(done):
    assert re.fullmatch(
        r"stage 'train': the micro-batch of 2 examples \(the longest is .*train\.jsonl:\d\) cannot be loaded: "
        r"MemoryError \(--debug shows where\)",
        fault_of(done, "unloaded-fsdp2"),
    )


def test_a_limit_of_the_loss_is_for_training_alone(done, data):
    fault = fault_of(done, "limit")
    assert re.match(r"step 1: the loss of '\w+' is [\d.]+, above training\.max_loss=1; ", fault)
    assert (data / "limit" / "diverged.json").exists()


# Where the first process waits for the second; in the first case, before there is a micro-batch.
SHORT_OF_MEMORY = """
import torch
from speechlmm_train.preflight.together import _Trainer
of_trainer = _Trainer.{method}
def short(self, *args, **kwargs):
    if torch.distributed.get_rank() == 1:
        raise torch.OutOfMemoryError("planted")
    return of_trainer(self, *args, **kwargs)
_Trainer.{method} = short
"""
TOLD = {
    "_wrap_model": "the weights, gradients and optimiser states that training.parallel=zero3 lays out do not fit",
    "compute_loss": "needs more memory than there is; lower training.per_device_train_batch_size (now 2)",
}


@pytest.mark.parametrize("method", TOLD)
def test_a_process_that_lacks_memory_ends_all_with_one_message(data, run_ranks, method):
    (data / f"{method}.py").write_text(SHORT_OF_MEMORY.format(method=method))
    plain = plain_of(data, f"short{method}", {}, parallel="zero3", num_processes=2, max_steps=1)
    done = run_ranks(plain, processes=2, base=data, imports=[data / f"{method}.py"], timeout=120)
    assert done.code == 2
    # What the first process may say in between is that it was left alone.
    assert done.err.count("error: ") - done.err.count("its own message says why") == 1
    assert "error: rank 1: stage 'train': the " in done.err
    assert TOLD[method] in done.err
    assert ("the micro-batch of 2 examples (" in done.err) == (method == "compute_loss")
    assert not (data / f"short{method}" / "config.yaml").exists()

"""Training with adapters on two processes, in every way to share it, against the same training on one."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import RUN_EACH
from transformers import LlamaConfig, LlamaForCausalLM

from speechlmm_train.compose import validate
from speechlmm_train.run import run

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

STEPS = 3
MODES = ("ddp", "fsdp2", "zero2", "zero3")
ON_DECODER = {"name": "decoder", "target_module": "text_decoder.model", "r": 4, "use_rslora": True}
ON_ENCODER = {"name": "encoder", "target_module": "audio_encoder.model", "r": 2, "lora_dropout": 0.1, "bias": "all"}
ADAPTERS = {"frozen_encoder": [ON_DECODER], "both": [ON_DECODER, ON_ENCODER]}
"""With an adapter on the text decoder alone, the encoder stays whole in every process."""
CASES = [*(("frozen_encoder", mode) for mode in MODES), ("both", "zero3"), ("both", "fsdp2")]


@pytest.fixture(scope="module")
def root(noise, tmp_path_factory):
    """A language model's own checkpoint, and room for runs."""
    folder = tmp_path_factory.mktemp("lora_ranks")
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, vocab_size=300)
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    return folder


def plain(root, noise, case, name, **training):
    found = noise.plain(
        root / name,
        max_steps=STEPS,
        save_steps=STEPS,
        max_grad_norm=1.0,
        lora_adapters=ADAPTERS[case],
        freeze_modules=["audio_encoder", "text_decoder"],
        adam_epsilon=1e-4,  # so that rounding is not blown up to whole steps where gradients are tiny
        preflight=False,
        **training,
    )
    decoder = {"type": "causal_lm", "tokenizer": "bytes", "chat_template": "chatml", "pretrained": str(root / "llama")}
    # No further objective: what is built after a language model that is loaded in parts draws other initial weights.
    return {**found, "model": {**found["model"], "text_decoder": decoder, "objectives": {}}}


@pytest.fixture(scope="module")
def two(root, noise, run_script):
    """What two processes did, one training after the other."""
    files = []
    for case, mode in CASES:
        files.append(root / f"{case}-{mode}.json")
        files[-1].write_text(json.dumps(plain(root, noise, case, f"{case}-{mode}", parallel=mode, num_processes=2)))
    done = run_script(RUN_EACH, *files, timeout=240)
    assert done.code == 0, done.err[-6000:]
    (root / "told").write_text("".join(path.read_text() for path in done.logs.glob("rank-*")))
    return root


@pytest.fixture(scope="module")
def one(root, noise):
    """What one process does."""
    for case in ADAPTERS:
        config = plain(root, noise, case, case)
        run(validate(config), plain=config, base=root, progress=False)
    return root


def figures(out, key):
    return [json.loads(line)[key] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("case", "mode"), CASES)
def test_two_processes_train_and_save_what_one_does(one, two, case, mode):
    ours, expected = two / f"{case}-{mode}", one / case
    for key in ("train/loss", "train/grad_norm"):
        assert figures(ours, key) == pytest.approx(figures(expected, key), rel=1e-5), key
    files = sorted(path.relative_to(expected) for path in expected.rglob("*.safetensors"))
    weights = [path for path in files if "optimizer" not in str(path)]
    wanted = [f"{part}/adapters/{one['name']}" for part in ("model", "checkpoint-3") for one in ADAPTERS[case]]
    assert {f"{folder}/adapter_model.safetensors" for folder in wanted} <= {str(path) for path in weights}
    for path in weights:
        own, other = load_file(ours / path), load_file(expected / path)
        assert own.keys() == other.keys()
        for name, value in own.items():
            assert value.dtype == other[name].dtype
            assert torch.allclose(value, other[name], atol=1e-6, rtol=1e-3), (path, name)


def test_nothing_is_told_of_libraries_that_others_import(two):
    told = (two / "told").read_text()
    assert "gemm_4bit_forward" not in told
    assert "Setting accelerator" not in told

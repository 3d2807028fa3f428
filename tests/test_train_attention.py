"""Which attention a training run, its plan and its evaluations use: FlashAttention needs mixed precision on a GPU."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.text_decoder import decoder
from speechlmm_train.compose import validate
from speechlmm_train.plan_table import component_table, stage_lines
from speechlmm_train.run import build_model, run
from speechlmm_train.trainer import arguments, evaluation
from speechlmm_train.trainer.arguments import can_flash

MODEL = {"text_decoder": {"type": "causal_lm"}}


def configure(folder, **training) -> dict[str, Any]:
    return {
        "model": MODEL,
        "data": {"train": [str(folder / "data.jsonl")], "eval": [str(folder / "data.jsonl")]},
        "training": {
            "output_dir": str(folder / "out"),
            "max_steps": 1,
            "per_device_train_batch_size": 1,
            "report_to": [],
            **training,
        },
    }


@pytest.fixture
def gpu(monkeypatch):
    """A machine on which FlashAttention runs in half precision."""
    half = (torch.bfloat16, torch.float16)
    monkeypatch.setattr(arguments, "flash_usable", lambda device, dtype: device == "cuda" and dtype in half)
    return monkeypatch


@pytest.mark.parametrize(
    ("training", "possible"),
    [
        ({}, False),
        ({"bf16": True}, True),
        ({"fp16": True}, True),
        ({"bf16": True, "use_cpu": True}, False),
    ],
)
def test_it_takes_mixed_precision_on_a_gpu(training, possible, tmp_path, gpu):
    config = validate(configure(tmp_path, **training))
    assert can_flash(config.training) is possible
    # The plan and the model that is trained are told the same.
    seen = []
    gpu.setattr(decoder, "choose_attention", lambda ctx, family: seen.append(ctx.flash_attention) or "sdpa")
    gpu.setattr("speechlmm_train.plan_table.check_stage", lambda *args, **kwargs: None)
    assert list(component_table(config))
    assert list(stage_lines(config))
    build_model(config, None)
    assert seen == [possible] * 3
    gpu.setenv("ACCELERATE_USE_CPU", "true")
    assert not can_flash(config.training)


@pytest.mark.parametrize("flash", [True, False])
def test_evaluation_is_in_full_precision_where_attention_can_run_in_it(flash, tmp_path, monkeypatch):
    messages = [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "it"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    seen = []

    def predict(engine, *args, **kwargs):
        # Training lays autocast over `forward`; in an evaluation it must not be what is called.
        seen.append((torch.is_autocast_enabled("cpu"), "forward" in vars(engine.model)))
        return [None]

    monkeypatch.setattr(evaluation, "predict", predict)
    monkeypatch.setattr(evaluation, "write_predictions", lambda path, predictions: None)
    monkeypatch.setattr(evaluation, "score_what_can_be", lambda predictions: ({}, []))
    monkeypatch.setattr(evaluation, "attention_of", lambda component: "flash_attention_2" if flash else "sdpa")
    config = configure(tmp_path, bf16=True, use_cpu=True, eval_steps=1)
    run(validate(config), plain=config, progress=False)
    assert seen == [(flash, False)]


@pytest.mark.parametrize(
    ("training", "attention", "halved", "expected"),
    [
        ({"bf16": True, "parallel": "zero2"}, "flash_attention_2", False, torch.bfloat16),
        ({"fp16": True}, "flash_attention_2", False, torch.float16),
        ({"fp16": True, "parallel": "zero2"}, "sdpa", True, torch.float16),
        ({"bf16": True, "parallel": "zero2"}, "sdpa", False, None),
    ],
)
def test_evaluation_asks_the_settings_for_the_precision(training, attention, halved, expected, tmp_path, monkeypatch):
    """With DeepSpeed, what accelerate and transformers are told of it is nothing."""
    monkeypatch.setattr(evaluation, "attention_of", lambda component: attention)
    config = validate(configure(tmp_path, **training))
    trainer = SimpleNamespace(
        model=SpeechLMM.from_model_config(config.model),
        args=SimpleNamespace(device=torch.device("cpu"), bf16=False),
        halved=halved,
    )
    callback = evaluation.EvaluationCallback(trainer, SimpleNamespace(), config.resolved_stages()[0].training)
    with callback._precision():
        assert (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None) == expected

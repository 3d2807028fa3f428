"""Fields of `TrainingArguments` beside our own: names, types, and settings that cannot be together."""

import dataclasses
import typing

import pytest

from speechlmm_core.errors import ConfigError
from speechlmm_train.compose import validate
from speechlmm_train.training_arguments import DECIDED_ELSEWHERE, training_argument_types, type_fault


def config(width=8, stages=(), data=None, **training):
    return validate(
        {
            "model": {"text_decoder": {"type": "test.narrow", "width": width}},
            "data": data or {"train": ["a.jsonl"]},
            "training": {"output_dir": "out", **({} if stages else {"max_steps": 5}), **training},
            "stages": list(stages),
        }
    )


def fault(**given):
    with pytest.raises(ConfigError) as caught:
        config(**given)
    return str(caught.value)


def test_the_types_are_those_of_the_class():
    """Every default of the dataclass is of the type that its source was read to have."""
    from transformers import TrainingArguments

    known = training_argument_types()
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    assert known.keys() == fields.keys()
    for name, field in fields.items():
        if known[name] is not typing.Any and isinstance(field.default, bool | int | float | str | None):
            assert type_fault(name, getattr(field.default, "value", field.default)) is None, name


@pytest.mark.parametrize(
    ("name", "right", "wrong", "expected"),
    [
        ("adam_epsilon", [1e-6, 1], ["1e-6", None, True], "float"),
        ("tf32", [True, None], ["yes", 1], "bool or null"),
        ("neftune_noise_alpha", [5, 0.1, None], ["5"], "float or null"),
        ("optim", ["adamw_torch"], [3], "str"),
        ("lr_scheduler_kwargs", [{"num_cycles": 2}, None], [[1]], "dict or str or null"),
        ("use_cpu", [True], ["true", 1, None], "bool"),
        ("torch_empty_cache_steps", [3, None], [3.5, True], "int or null"),
        ("optim_target_modules", ["all", ["a"], None], [1], "null or str or list"),
    ],
)
def test_types_of_values(name, right, wrong, expected):
    for value in right:
        assert config(**{name: value}).training.extras == {name: value}
    for value in wrong:
        assert fault(**{name: value}) == f"training.{name}: got {value!r}; expected {expected}"


def test_every_fault_is_told_with_its_path():
    assert fault(adam_epsilon="x", learning_rat=1, data_seed=3).splitlines() == [
        "training.adam_epsilon: got 'x'; expected float",
        "training.learning_rat: unknown key 'learning_rat'; did you mean 'learning_rate'?",
        "training.data_seed: 'data_seed' cannot be set: use seed",
    ]


def test_keys_that_are_no_text():
    """As YAML's bare `on:` or `5:` are."""
    plain = {"model": {"text_decoder": {"type": "test.narrow"}}, "data": {"train": ["x"]}}
    with pytest.raises(ConfigError) as caught:
        validate({**plain, "training": {"output_dir": "x", 5: 1, True: 2, "lerning_rate": 1}})
    assert str(caught.value).splitlines() == [
        "training.5: got 5; keys should be strings",
        "training.1: got True; keys should be strings",
        "training.lerning_rate: unknown key 'lerning_rate'; did you mean 'learning_rate'?",
    ]


def test_what_is_wrong_in_all_parts_is_told_at_once():
    """An unknown key of `training`, of an adapter or of the model hid until every value was of its type."""
    plain = {
        "model": {
            "text_decoder": {"type": "test.narrow", "width": "x"},
            "audio_encodr": {},
            "set_encoder": {},
            "audio_encoder": {"type": "test.none"},
            "audio_adapter": {"type": "test.none"},
        },
        "data": {"trian": ["x"], "batch_window": 0},
        "training": {
            "lerning_rate": 1,
            "max_steps": "abc",
            "neftune_noise_alpha": "a",
            "lora_adapters": [{"name": "a", "target_module": "b", "r": 0, "lora_alhpa": 1}],
        },
    }
    with pytest.raises(ConfigError) as caught:
        validate(plain)
    lines = str(caught.value).splitlines()
    starts = [
        "model.text_decoder.width: got 'x'; input should be a valid integer",
        "model: unknown key 'audio_encodr'; did you mean 'audio_encoder'?",
        "model: an input may not be called 'set'",
        "model.audio_encoder: unknown encoder 'test.none'",
        "model.audio_adapter: unknown adapter 'test.none'",
        "data.batch_window: got 0; input should be greater than 0",
        "data.trian: unknown key 'trian'; did you mean 'train'?",
        "training.output_dir: missing",
        "training.max_steps: got 'abc'; input should be a valid integer",
        "training.lora_adapters.0.r: got 0; input should be greater than 0",
        "training.lora_adapters.0: unknown key 'lora_alhpa'; did you mean 'lora_alpha'?",
        "training.lerning_rate: unknown key 'lerning_rate'; did you mean 'learning_rate'?",
        "training.neftune_noise_alpha: got 'a'; expected float or null",
    ]
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_settings_that_exclude_each_other_are_told_at_once():
    told = fault(num_epochs=2, load_best_model_at_end=True, new_components=["x"]).splitlines()
    assert [line.partition(":")[0] for line in told] == [
        "training.max_steps",
        "training.metric_for_best_model",
        "training.new_components",
    ]


def test_the_check_imports_no_torch(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from speechlmm_train.training_arguments import type_fault; "
        "assert type_fault('adam_epsilon', 'x'); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_decided_elsewhere_is_no_longer_than_what_there_is():
    assert set(DECIDED_ELSEWHERE) - set(training_argument_types()) <= {"trackio_bucket_id", "deepspeed", "local_rank"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"new_components": ["x"]}, "training.new_components: got ['x']; without a pretrained_checkpoint"),
        ({"deepspeed_config": "a.json"}, "training.deepspeed_config: got 'a.json' with parallel 'auto'; set parallel"),
        ({"num_processes": 2, "micro_batches_per_step": 3}, "micro_batches_per_step: got 3; expected a multiple of"),
        ({"bf16": True, "fp16": True}, "training.fp16: got true beside bf16=true"),
        ({"lr_min": 1.0}, "training.lr_min: got 1; expected at most the learning_rate, 0.0001"),
        (
            {"lr_min": 0.0, "lr_scheduler_type": "linear"},
            "training.lr_scheduler_type: got 'linear'; lr_min and restarts",
        ),
        ({"num_steps_between_each_restart": 0}, "training.num_steps_between_each_restart: got 0; input should be"),
        ({"lr_min": 0.0, "lr_scheduler_kwargs": {"a": 1}}, "training.lr_scheduler_kwargs: lr_min and restarts are all"),
        ({"token_budget": 8, "per_device_train_batch_size": 2}, "give either per_device_train_batch_size or token_bud"),
        ({"parallel": "zero4"}, "training.parallel: got 'zero4'; input should be 'auto', 'ddp'"),
    ],
)
def test_what_cannot_be_together(given, expected):
    assert expected in fault(**given)


def test_a_stage_is_held_to_its_own_rates():
    stages = [{"name": "a", "max_steps": 1, "learning_rate": 1e-6}, {"name": "b", "max_steps": 1}]
    assert "stage 'a' lr_min: got 1e-05; expected at most the learning_rate, 1e-06" in fault(lr_min=1e-5, stages=stages)
    stages[0]["lr_min"] = 1e-7
    first, second = config(lr_min=1e-5, stages=stages).resolved_stages()
    assert (first.training.lr_min, second.training.lr_min) == (1e-7, 1e-5)


@pytest.mark.parametrize(
    ("width", "given", "expected"),
    [
        (8, {}, "gpu"),
        (511, {}, "gpu"),
        (512, {}, "auto"),
        (512, {"fp16": True}, False),
        (8, {"bf16": True}, True),
        (512, {"bf16": False}, False),
    ],
)
def test_bf16_is_chosen_by_the_width_of_the_language_model(width, given, expected):
    (stage,) = config(width, **given).resolved_stages()
    assert stage.training.bf16 is expected or stage.training.bf16 == expected


@pytest.mark.parametrize(("gpu", "amx"), [(False, False), (False, True), (True, False)])
def test_bf16_is_where_it_pays(gpu, amx, monkeypatch):
    import torch

    from speechlmm_train.parallel.arguments import use_bf16

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    assert (use_bf16("auto"), use_bf16("gpu")) == (gpu or amx, gpu)
    assert (use_bf16(True), use_bf16(False)) == (True, False)


ASR, ST, OPEN = ({"type": "jsonl", "path": f"{task}.jsonl", "task": task} for task in ("asr", "st", "asr"))
OPEN = {"type": "jsonl", "path": "open.jsonl"}


@pytest.mark.parametrize(
    ("train", "weights", "expected"),
    [
        ([ASR, ST], {"asr": 1, "st": 0}, None),
        ([ASR, ST], {}, None),
        ([ASR, ST], {"asr": 0}, None),
        ([ASR, ST], {"asr": 2}, "got asr 2; 'st' is among the training data, too"),
        ([ASR, ST, ASR], {"vsr": 1}, "got vsr 1; 'asr', 'st' are among the training data, too"),
        (
            [ASR],
            {"asr": 1, "arsr": 1},
            "there is no task 'arsr' among the training data; did you mean 'asr'? (has: asr)",
        ),
        ([ASR, OPEN], {"asr": 1, "vsr": 1}, None),
        ([ASR, OPEN], {"vsr": 1}, "'asr' is among the training data, too"),
    ],
)
def test_weights_of_tasks_cover_the_tasks(train, weights, expected, tmp_path):
    """By the run's own lists, and by a specification."""
    import yaml

    from speechlmm_train.composing.tasks import uncovered_tasks

    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({"train": train, "eval": [{"type": "jsonl", "path": "d.jsonl", "task": "mt"}]}))
    for data in ({"train": train}, {"data_config_path": str(spec)}):
        faults = uncovered_tasks(config(data={**data, "task_weights": weights}), None)
        if expected is None:
            assert faults == []
        else:
            assert any(line.startswith("data.task_weights: ") and expected in line for line in faults)

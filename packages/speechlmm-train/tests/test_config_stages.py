"""The run's typed configuration: stages, batch sizes, and what does not fit together."""

from typing import Literal

import pytest
from pydantic import ValidationError

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.decoder import DecoderConfig, decoders
from speechlmm_train.config import DEFAULT_TOKEN_BUDGET, DataConfig, RunConfig
from speechlmm_train.dataset_spec import opened
from speechlmm_train.training_arguments import DECIDED_ELSEWHERE, training_argument_names


class StagedDecoderConfig(DecoderConfig):
    type: Literal["test.staged"] = "test.staged"

    @property
    def hidden_size(self):
        return 8

    @property
    def vocab_size(self):
        return 16

    def build_tokenizer(self, path=None):
        raise RuntimeError

    def build(self, ctx):
        raise RuntimeError


decoders.register(StagedDecoderConfig)


def make(*, stages=(), data=None, **training):
    return RunConfig.model_validate(
        {
            "model": {"text_decoder": {"type": "test.staged"}},
            "data": {"train": "a.jsonl"} if data is None else data,
            "training": {"output_dir": "out", **training},
            "stages": list(stages),
        }
    )


def faults(**kwargs):
    with pytest.raises(ValidationError) as caught:
        make(**kwargs)
    return str(caught.value)


def test_one_stage_where_none_is_named():
    (stage,) = make(max_steps=7).resolved_stages()
    assert (stage.name, stage.max_steps, stage.training.token_budget) == ("train", 7, DEFAULT_TOKEN_BUDGET)
    (stage,) = make(num_epochs=2).resolved_stages()
    assert stage.max_steps is None


def test_a_stage_lays_its_own_values_over_the_common_ones():
    stages = [
        {"name": "a", "max_steps": 2, "per_device_train_batch_size": 4, "data": {"train": ["b.jsonl"]}},
        {"name": "b", "max_steps": 3, "learning_rate": 0.5, "freeze_modules": ["text_decoder"]},
        {"name": "c", "max_steps": 3, "objectives": {"lm": [[0, 0], [1, 2]]}},
    ]
    first, second, third = make(stages=stages, token_budget=100, freeze_modules=["objectives"]).resolved_stages()
    assert (first.training.per_device_train_batch_size, first.training.token_budget) == (4, None)
    assert (first.data.train[0].path, second.data.train[0].path) == ("b.jsonl", "a.jsonl")
    assert (second.training.learning_rate, second.training.token_budget) == (0.5, 100)
    assert second.training.freeze_modules == ["text_decoder"]
    assert first.training.freeze_modules == ["objectives"]
    assert third.objectives == {"lm": [(0, 0), (1, 2)]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "training.max_steps: missing"),
        ({"max_steps": 1, "stages": [{"name": "a", "max_steps": 1}]}, "give each stage its max_steps"),
        ({"stages": [{"name": "a", "max_steps": 1}, {"name": "a", "max_steps": 1}]}, "two stages have one name"),
        ({"max_steps": 1, "data": {}}, "data: no training data"),
        ({"stages": [{"name": "a", "max_steps": 1, "data": {"eval": "e.jsonl"}}]}, "stage 'a': no training data"),
        ({"stages": [{"name": "a", "max_steps": 1, "objectives": {"lmm": 1}}]}, "did you mean 'lm'?"),
        ({"max_steps": 1, "token_budget": 5, "per_device_train_batch_size": 2}, "not both"),
        (
            {"stages": [{"name": "a", "max_steps": 1, "freeze_modules": [], "trainable_modules": []}]},
            "either freeze_modules or trainable_modules",
        ),
    ],
)
def test_what_does_not_fit_together(given, expected):
    assert expected in faults(**given)


def test_all_faults_are_told_at_once():
    message = faults(data={}, freeze_modules=["x"])
    assert "training.max_steps: missing" in message
    assert "no training data" in message
    assert "the model has no part 'x'" in message


def test_fields_of_training_arguments_pass():
    assert make(max_steps=1, lr_scheduler_kwargs={"a": 1}).training.extras == {"lr_scheduler_kwargs": {"a": 1}}


def test_the_names_read_from_the_source_are_those_of_the_class():
    from dataclasses import fields

    from transformers import TrainingArguments

    assert training_argument_names() == {field.name for field in fields(TrainingArguments)}
    assert DECIDED_ELSEWHERE.keys() <= training_argument_names()


def test_a_dataset_file(tmp_path):
    file = tmp_path / "sets.yaml"
    file.write_text("train: [a.jsonl, {type: jsonl, path: /b.jsonl}]\neval: c.jsonl\n")
    file.with_name("bad.yaml").write_text("trian: []\n")
    with pytest.raises(DataError, match="expected `train:`"):
        opened(DataConfig(data_config_path="bad.yaml"), tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        opened(DataConfig(data_config_path="none.yaml"), tmp_path)
    sets = opened(DataConfig(data_config_path="sets.yaml"), tmp_path)
    assert [entry.path for entry in sets.train] == [str(tmp_path / "a.jsonl"), "/b.jsonl"]
    assert [entry.path for entry in sets.eval] == [str(tmp_path / "c.jsonl")]

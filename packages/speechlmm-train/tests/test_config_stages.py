"""The run's typed configuration: stages, batch sizes, and what does not fit together."""

import json
from typing import Literal

import pytest
from pydantic import ValidationError

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.decoder import DecoderConfig, decoders
from speechlmm_train.config import RunConfig
from speechlmm_train.data_config import DataConfig
from speechlmm_train.stage_config import DEFAULT_TOKEN_BUDGET
from speechlmm_train.trainer.open_sets import open_sets
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
            "training": {"output_dir": "out"} | training,
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
    assert (first.data.train[0].reader.path, second.data.train[0].reader.path) == ("b.jsonl", "a.jsonl")
    assert (second.training.learning_rate, second.training.token_budget) == (0.5, 100)
    assert second.training.freeze_modules == ["text_decoder"]
    assert first.training.freeze_modules == ["objectives"]
    assert third.objectives == {"lm": [(0, 0), (1, 2)]}


def test_a_stages_data_leave_the_rest_to_the_run():
    data = {"train": "a.jsonl", "eval": "e.jsonl", "max_duration_s": 9, "oversized": "alone"}
    own = [
        {"train": "b.jsonl"},
        {"train": "c.jsonl", "eval": [], "max_duration_s": None},
        {"data_config_path": "sets.yaml"},
    ]
    stages = [{"name": str(i), "max_steps": 1, "data": one} for i, one in enumerate(own)]
    first, second, third = (stage.data for stage in make(data=data, stages=stages).resolved_stages())
    assert [entry.reader.path for entry in (*first.train, *first.eval)] == ["b.jsonl", "e.jsonl"]
    assert (first.max_duration_s, first.oversized) == (9, "alone")
    assert (second.eval, second.max_duration_s, second.oversized) == ([], None, "alone")
    assert (third.train, third.eval, third.data_config_path, third.max_duration_s) == ([], [], "sets.yaml", 9)
    (only,) = make(data={"data_config_path": "sets.yaml"}, stages=stages[:1]).resolved_stages()
    assert (only.data.train[0].reader.path, only.data.data_config_path) == ("b.jsonl", None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"frame_budget": 500}, (DEFAULT_TOKEN_BUDGET, 500, None)),
        ({"frame_budget": 20_000}, (20_000, 20_000, None)),
        ({"token_budget": 100}, (100, None, None)),
        ({"per_device_train_batch_size": 3}, (None, None, 3)),
    ],
)
def test_positions_are_always_bounded(given, expected):
    """Text alone has no frames: a frame budget would let all of it into one micro-batch."""
    stages = [{"name": "a", "max_steps": 1, **given}]
    for config in (make(max_steps=1, **given), make(stages=stages), make(stages=stages, per_device_train_batch_size=7)):
        (stage,) = config.resolved_stages()
        training = stage.training
        sizes = (training.token_budget, training.frame_budget, training.per_device_train_batch_size)
        assert sizes == expected


@pytest.mark.parametrize(
    "key",
    ["data_seed", "dataloader_prefetch_factor", "per_device_eval_batch_size", "dataloader_pin_memory", "hub_model_id"],
)
def test_arguments_that_would_change_nothing_are_refused(key):
    assert f"'{key}' cannot be set" in faults(max_steps=1, **{key: 1})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "training.max_steps: missing"),
        ({"max_steps": 1, "stages": [{"name": "a", "max_steps": 1}]}, "give each stage its max_steps"),
        ({"stages": [{"name": "a", "max_steps": 1}, {"name": "a", "max_steps": 1}]}, "two stages have one name"),
        ({"max_steps": 1, "data": {}}, "data: no training data"),
        (
            {"data": {}, "stages": [{"name": "a", "max_steps": 1, "data": {"eval": "e.jsonl"}}]},
            "stage 'a': no training data",
        ),
        (
            {
                "data": {"train": "a.jsonl", "min_duration_s": 2},
                "stages": [{"name": "a", "max_steps": 1, "data": {"max_duration_s": 1}}],
            },
            "stage 'a': max_duration_s is below min_duration_s",
        ),
        ({"max_steps": 1, "eval_steps": 1}, "training.eval_steps: there is nothing to evaluate on"),
        ({"stages": [{"name": "a", "max_steps": 1, "objectives": {"lm": 0}}]}, "the weight of every objective is zero"),
        (
            {"stages": [{"name": "a", "max_steps": 1, "objectives": {"lm": [[1, 0], [0, 1]]}}]},
            "progress rising in 0..1",
        ),
        ({"max_steps": 1, "learning_rate": float("inf")}, "learning_rate"),
        ({"max_steps": 1, "learning_rate": 0}, "learning_rate"),
        ({"max_steps": 1, "warmup_steps": float("nan")}, "warmup_steps"),
        ({"max_steps": 1, "lr_groups": {"text_decoder": -1}}, "lr_groups"),
        ({"stages": [{"name": "a", "max_steps": 1, "lr_groups": {"text_decoder": float("inf")}}]}, "lr_groups"),
        ({"max_steps": 1, "output_dir": ""}, "output_dir"),
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


def test_a_specification_stands_for_the_sets(tmp_path):
    for name in ("a", "b", "c", "d"):
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": name}]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    folder = tmp_path / "conf" / "datasets"
    folder.mkdir(parents=True)
    file = tmp_path / "sets.yaml"
    file.write_text(f"train: [a.jsonl, {{type: jsonl, path: {tmp_path}/b.jsonl}}]\neval: c.jsonl\nguard: [d.jsonl]\n")
    (folder / "named.yaml").write_text("train: ../../b.jsonl\ntest: none.jsonl\n")
    file.with_name("bad.yaml").write_text("trian: []\n")
    with pytest.raises(DataError, match=r"bad\.yaml: trian: unknown key 'trian'; did you mean 'train'\?"):
        open_sets(DataConfig(data_config_path="bad.yaml"), tmp_path)
    with pytest.raises(DataError, match="there is no dataset specification 'nmed'; did you mean 'named'"):
        open_sets(DataConfig(data_config_path="nmed"), tmp_path)
    sets = open_sets(DataConfig(data_config_path="sets.yaml"), tmp_path)
    parts = (sets.train, sets.evaluation, sets.guard)
    answers = [[one.examples[0].messages[-1].content[0]["text"] for one in part] for part in parts]
    assert answers == [["a", "b"], ["c"], ["d"]]
    for name in ("named", "named.yaml", folder / "named.yaml"):
        sets = open_sets(DataConfig(data_config_path=str(name)), tmp_path)
        assert sets.train[0].examples[0].messages[-1].content[0]["text"] == "b"  # its test set is left alone

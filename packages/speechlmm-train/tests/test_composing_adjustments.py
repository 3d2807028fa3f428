"""Adjustments: rules that change a composed configuration where a condition holds."""

import pytest

from speechlmm_core.errors import ConfigError
from speechlmm_train.compose import compose_config, trace
from speechlmm_train.composing.changes import ABSENT, Change, change_lines, differences

FILES = {
    "model/text_decoder/narrow.yaml": "type: test.narrow\n",
    "model/text_decoder/wide.yaml": "type: test.narrow\nwidth: 32\n",
    "training_setting/base.yaml": """
        # @package _global_
        training: {parallel: zero3, token_budget: 512}
    """,
    "training_setting/epochs.yaml": """
        # @package _global_
        data: {data_config_path: spec}
        training: {num_epochs: 2}
    """,
    "training_setting/deep/nested.yaml": """
        # @package _global_
        adjustments: [first]
        training: {parallel: zero3}
    """,
    "adjustments/first.yaml": """
        rules:
          - when: {model/text_decoder: w*, training.parallel: [zero3, zero2]}
            set: {training.parallel: zero1, training.weight_decay: 0.5}
    """,
    "adjustments/second.yaml": """
        rules:
          - when: {training.parallel: zero1}
            set: {training.parallel: zero0}
          - when: {training.parallel: zero0}
            set: {training.adam_epsilon: 1.0e-6}
    """,
    "adjustments/defaults.yaml": """
        rules:
          - when: {training.save: full, training.max_grad_norm: {not: 1}, training.eval_steps: null}
            set: {training.logging_steps: 3}
          - when: {training.save: full, training.eval_steps: null, training_setting: {not: [b*, other]}}
            set: {training.logging_steps: 4, training.lr_groups: {text_decoder: 0.5}}
    """,
    "adjustments/always.yaml": "rules:\n  - set: {hydra.launcher.nodes: 3}\n",
    "adjustments/unknown_key.yaml": "rules:\n  - when: {training.seed: 7}\n    set: {training.learning_rat: 1}\n",
    "adjustments/unknown_section.yaml": "rules:\n  - when: {trainig.save: full}\n    set: {training.seed: 1}\n",
    "adjustments/unknown_condition.yaml": "rules:\n  - when: {training.paralel: ddp}\n    set: {training.seed: 1}\n",
    "adjustments/unknown_group.yaml": "rules:\n  - when: {model/text_decodr: wide}\n    set: {training.seed: 1}\n",
    "adjustments/sets_group.yaml": "rules:\n  - set: {model/text_decoder: wide}\n",
    "adjustments/wrong_value.yaml": "rules:\n  - set: {training.warmup_steps: -1}\n",
    "adjustments/wrong_extra.yaml": "rules:\n  - set: {training.adam_epsilon: small}\n",
    "adjustments/no_rules.yaml": "training: {seed: 1}\n",
    "adjustments/misspelt.yaml": "rules:\n  - wehn: {training.seed: 0}\n    set: {training.seed: 1}\n",
    "adjustments/sets_nothing.yaml": "rules:\n  - when: {training.seed: 0}\n",
    "adjustments/no_mapping.yaml": "rules:\n  - set: [training.seed]\n",
}


@pytest.fixture(scope="module")
def folder(preset_folder):
    return preset_folder(FILES)


NEEDED = ["data.train=[a.jsonl]", "training.max_steps=5", "model/text_decoder=wide"]


def composed(folder, *overrides):
    return compose_config("pretrain", [*NEEDED, *overrides], config_dir=folder)


def test_rules_apply_in_order_to_what_the_one_before_left(folder):
    found = composed(folder, "training_setting=base", "adjustments=[first,second]")
    training = found.config.training
    assert (training.parallel, training.weight_decay, training.extras["adam_epsilon"]) == ("zero0", 0.5, 1e-6)
    assert found.changes == (
        Change("training.parallel", "zero3", "zero1", "adjustment first"),
        Change("training.weight_decay", ABSENT, 0.5, "adjustment first"),
        Change("training.parallel", "zero1", "zero0", "adjustment second"),
        Change("training.adam_epsilon", ABSENT, 1e-6, "adjustment second"),
    )
    assert "adjustments" not in found.plain
    turned = composed(folder, "training_setting=base", "adjustments=[second,first]")
    assert turned.config.training.parallel == "zero1"


def test_a_rule_whose_condition_does_not_hold_changes_nothing(folder):
    found = composed(folder, "training_setting=base", "model/text_decoder=narrow", "adjustments=first")
    assert (found.config.training.parallel, found.changes) == ("zero3", ())


def test_they_come_after_the_command_line(folder):
    found = composed(folder, "training.parallel=zero2", "adjustments=[first]")
    assert found.config.training.parallel == "zero1"
    assert str(found.changes[0]) == "training.parallel: zero2 -> zero1"


def test_a_setting_names_some_and_the_command_line_others(folder):
    assert composed(folder, "training_setting=deep/nested").config.training.parallel == "zero1"
    assert composed(folder, "training_setting=deep/nested", "adjustments=[]").config.training.parallel == "zero3"
    assert composed(folder, "training_setting=deep/nested", "~adjustments").config.training.parallel == "zero3"


def test_conditions_know_defaults_negations_and_lists(folder):
    assert composed(folder, "adjustments=[defaults]").config.training.logging_steps == 4
    assert composed(folder, "adjustments=[defaults]").config.training.lr_groups == {"text_decoder": 0.5}
    assert composed(folder, "training.max_grad_norm=2", "adjustments=[defaults]").plain["training"] == {
        **composed(folder, "training.max_grad_norm=2").plain["training"],
        "logging_steps": 4,
        "lr_groups": {"text_decoder": 0.5},
    }
    assert composed(folder, "training_setting=base", "adjustments=[defaults]").config.training.logging_steps == 10
    assert composed(folder, "training.save=trainable", "adjustments=[defaults]").changes == ()


def test_they_reach_the_launcher(folder):
    assert composed(folder, "hydra/launcher=slurm", "adjustments=[always]").launcher["nodes"] == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("frist", "unknown adjustment 'frist'; did you mean 'first'?"),
        ("unknown_key", "rule 1: training.learning_rat: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("unknown_section", "unknown key 'trainig'; did you mean 'training'?"),
        ("unknown_condition", "unknown key 'paralel'; did you mean 'parallel'?"),
        ("unknown_group", "unknown group 'model/text_decodr'; did you mean 'model/text_decoder'?"),
        ("sets_group", "'model/text_decoder' is a group, and adjustments set values"),
        ("wrong_value", "training.warmup_steps: got -1; input should be greater than or equal to 0 (set by adjustment"),
        ("wrong_extra", "training.adam_epsilon: got 'small'; expected float (set by adjustment wrong_extra)"),
        ("no_rules", "adjustment 'no_rules': expected `rules:`"),
        ("misspelt", "unknown key 'wehn'; did you mean 'when'?"),
        ("sets_nothing", "rule 1: expected `when: {…}` and `set: {…}`"),
        ("no_mapping", "`set`: expected a mapping"),
        ("{a: b}", "expected names of adjustments"),
    ],
)
def test_a_mistake_is_named(folder, name, expected):
    with pytest.raises(ConfigError) as caught:
        composed(folder, f"adjustments=[{name}]" if name[0] != "{" else f"adjustments={name}")
    assert expected in str(caught.value)


def test_what_each_override_changed_is_told_in_the_order_of_composition(folder):
    changes = trace("pretrain", [*NEEDED, "adjustments=[first]", "training_setting=base"], config_dir=folder)
    lines = list(change_lines(changes))
    assert lines == [
        "model/text_decoder=wide",
        "  model.text_decoder: ??? -> {type: test.narrow, width: 32}",
        "training_setting=base",
        "  training.parallel: (none) -> zero3",
        "  training.token_budget: (none) -> 512",
        "data.train=[a.jsonl]",
        "  data.train: [] -> [a.jsonl]",
        "training.max_steps=5",
        "  training.max_steps: (none) -> 5",
        "adjustment first",
        "  training.parallel: zero3 -> zero1",
        "  training.weight_decay: (none) -> 0.5",
    ]


def test_differences_of_nested_values():
    found = differences({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"b": 1.0, "c": [1, 2]}, "e": None}, "me")
    assert {change.key: (change.before, change.after) for change in found} == {
        "a.b": (1, 1.0),
        "a.c": ([1], [1, 2]),
        "d": (1, ABSENT),
        "e": (ABSENT, None),
    }


def test_the_command_line_takes_the_place_of_a_settings_alternative(folder):
    """The first README overrides the batch size of a setting that may bound it otherwise."""
    found = composed(folder, "training_setting=base", "training.per_device_train_batch_size=16")
    assert (found.config.training.per_device_train_batch_size, found.config.training.token_budget) == (16, None)
    assert found.changes == (Change("training.token_budget", 512, ABSENT, "training.per_device_train_batch_size=16"),)
    with pytest.raises(ConfigError, match="give either per_device_train_batch_size or token_budget"):
        composed(folder, "training.token_budget=8", "training.per_device_train_batch_size=16")
    kept = composed(folder, "training_setting=base", "training.per_device_train_batch_size=null")
    assert kept.config.training.token_budget == 512


def test_steps_and_data_likewise(folder):
    overrides = ["training_setting=epochs", "model/text_decoder=wide"]
    files = compose_config("pretrain", overrides, config_dir=folder).config
    assert (files.training.num_epochs, files.data.data_config_path) == (2, "spec")
    ours = compose_config("pretrain", [*NEEDED, "training_setting=epochs"], config_dir=folder)
    assert (ours.config.training.max_steps, ours.config.training.num_epochs) == (5, None)
    assert (ours.config.data.data_config_path, len(ours.config.data.train)) == (None, 1)
    lines = list(change_lines(trace("pretrain", [*overrides, "training.max_steps=5"], config_dir=folder)))
    assert lines[-3:] == [
        "training.max_steps=5",
        "  training.num_epochs: 2 -> (none)",
        "  training.max_steps: (none) -> 5",
    ]

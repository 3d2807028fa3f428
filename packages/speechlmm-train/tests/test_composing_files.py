"""What users' files and overrides may leave out or write in their own way: packages, times, nodes, mappings."""

import pytest

from speechlmm_core.errors import ConfigError
from speechlmm_train.compose import compose_config
from speechlmm_train.slurm_config import slurm_config
from speechlmm_train.sweep import expand_sweep

FILES = {
    "model/text_decoder/_filed.yaml": "type: test.narrow\nwidth: 32\n",
    "model/text_decoder/mine/based.yaml": "defaults: [/model/text_decoder/_filed]\n",
    "model/text_decoder/plain.yaml": "type: test.narrow\n",
    "training_setting/plain.yaml": """
        defaults:
          - _common
          - override /model/text_decoder: plain
          - _self_
        training: {learning_rate: 7.0e-5}
        data: {mixing: alternating}
    """,
    "training_setting/_common.yaml": "training: {weight_decay: 0.3, learning_rate: 1.0}\n",
    "training_setting/late.yaml": "# Mine.\n# @package _global_\ntraining: {weight_decay: 0.2}\n",
    "training_setting/deep/in.yaml": "training: {weight_decay: 0.1}\n",
    "training_setting/budget.yaml": "training: {token_budget: 512}\n",
    "training_setting/launched.yaml": """
        # @package _global_
        hydra: {launcher: {time: 36:30:00}}
    """,
    "hydra/launcher/timed.yaml": """
        type: slurm
        time: 12:00:00
        port: 5_0_00
        setup: [a, 1:30]
    """,
    "hydra/launcher/quoted.yaml": "type: slurm\ntimeout_min: '1-00'\n",
    "adjustments/three_nodes.yaml": "rules:\n  - set: {hydra.launcher.nodes: 3, training.seed: 5}\n",
    "adjustments/minutes.yaml": "rules:\n  - set: {hydra.launcher.timeout_min: 90}\n",
    "adjustments/hours.yaml": "rules:\n  - set: {hydra.launcher.time: '2:00:00'}\n",
    "adjustments/unknown.yaml": "rules:\n  - when: {training.seed: 7}\n    set: {hydra.launcher.nods: 3}\n",
    "adjustments/unknown_condition.yaml": "rules:\n  - when: {hydra.launcher.gress: x}\n    set: {training.seed: 3}\n",
    "adjustments/on_gpus.yaml": "rules:\n  - when: {hydra.launcher.nodes: 2}\n    set: {training.seed: 3}\n",
}


@pytest.fixture(scope="module")
def folder(preset_folder):
    return preset_folder(FILES)


DATA = ["data.train=[a.jsonl]", "training.max_steps=5"]
NEEDED = [*DATA, "model/text_decoder=plain"]


def composed(folder, *overrides, needed=NEEDED):
    return compose_config("pretrain", [*needed, *overrides], config_dir=folder)


# ---- packages


def test_a_setting_needs_no_package(folder):
    """As the first README prints its settings: without one, Hydra would take them for a section of their own."""
    config = composed(folder, "training_setting=plain", needed=DATA).config
    assert (config.training.learning_rate, config.training.weight_decay) == (7e-5, 0.3)
    assert (config.data.mixing, config.model.text_decoder.width) == ("alternating", 8)
    assert composed(folder, "training_setting=deep/in").config.training.weight_decay == 0.1


def test_a_setting_may_say_its_package_below_a_comment(folder):
    assert composed(folder, "training_setting=late").config.training.weight_decay == 0.2


def test_nor_does_a_preset_of_a_model_s_part(folder):
    assert composed(folder, "model/text_decoder=mine/based", needed=DATA).config.model.text_decoder.width == 32


# ---- times


@pytest.mark.parametrize("preset", ["athena", "helios", "timed", "quoted"])
@pytest.mark.parametrize(
    ("given", "minutes"),
    [
        ("hydra.launcher.time=10:00:00", 600),
        ("hydra.launcher.timeout_min=90", 90),
        ("adjustments=[hours]", 120),
        ("adjustments=[minutes]", 90),
    ],
)
def test_what_is_given_takes_the_place_of_a_preset_s_time_in_either_spelling(folder, preset, given, minutes):
    assert slurm_config(composed(folder, f"hydra/launcher={preset}", given).launcher).time == minutes


def test_both_spellings_on_one_command_line_are_refused(folder):
    both = composed(folder, "hydra/launcher=helios", "hydra.launcher.time=5", "hydra.launcher.timeout_min=5")
    with pytest.raises(ConfigError, match="either time or timeout_min"):
        slurm_config(both.launcher)


def test_a_time_in_a_file_is_what_slurm_means_by_it(folder):
    """YAML 1.1 reads 12:00:00 as 43200, which would be a month."""
    launcher = composed(folder, "hydra/launcher=timed").launcher
    assert launcher["setup"] == ["a", "1:30"]
    assert launcher["port"] == 5000  # no time
    assert slurm_config(launcher).time == 12 * 60
    assert slurm_config(composed(folder, "hydra/launcher=quoted").launcher).time == 24 * 60
    within = composed(folder, "hydra/launcher=slurm", "training_setting=launched").launcher
    assert slurm_config(within).time == 36 * 60 + 30


# ---- names of nodes


@pytest.mark.parametrize("nodes", ["n[01-02]", "n[01-02,07],m3", "gpu[1-4]'s", "a\\b[1]", "a[1]\\'b\\\\"])
def test_a_launcher_s_value_is_taken_as_it_is(folder, nodes):
    given = ["hydra/launcher=slurm", f"hydra.launcher.nodelist={nodes}"]
    assert composed(folder, *given).launcher["nodelist"] == nodes
    (run,) = expand_sweep("pretrain", [*NEEDED, *given], config_dir=folder)
    assert run.composed.launcher["nodelist"] == nodes


def test_elsewhere_it_is_said_how_to_quote_it(folder):
    with pytest.raises(ConfigError, match=r"not an override; .* has to be quoted: \"training.run_name='...'\""):
        composed(folder, "training.run_name=a[1]b")
    assert composed(folder, "training.run_name='a[1]b'").config.training.run_name == "a[1]b"


# ---- launchers and adjustments


def test_without_a_launcher_nothing_of_one_is_changed(folder):
    found = composed(folder, "adjustments=[three_nodes]")
    assert found.launcher is None
    assert [change.key for change in found.changes] == ["training.seed"]
    there = composed(folder, "adjustments=[three_nodes,minutes]", "hydra/launcher=slurm")
    assert there.launcher["nodes"] == 3
    assert slurm_config(there.launcher).time == 90


def test_conditions_may_be_about_a_launcher(folder):
    two = composed(folder, "adjustments=[on_gpus]", "hydra/launcher=slurm", "hydra.launcher.nodes=2")
    assert two.config.training.seed == 3
    assert composed(folder, "adjustments=[on_gpus]", "hydra/launcher=slurm").config.training.seed == 0
    assert composed(folder, "adjustments=[on_gpus]").config.training.seed == 0


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=slurm"]])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unknown", "hydra.launcher.nods: unknown key 'nods'; did you mean 'nodes'?"),
        ("unknown_condition", "hydra.launcher.gress: unknown key 'gress'; did you mean 'gres'?"),
    ],
)
def test_a_launcher_s_keys_are_checked_whether_a_rule_applies_or_not(folder, launcher, name, expected):
    with pytest.raises(ConfigError) as caught:
        composed(folder, f"adjustments=[{name}]", *launcher)
    assert expected in str(caught.value)


# ---- mappings


def test_a_mapping_gives_each_of_its_values(folder):
    size = "training={per_device_train_batch_size: 2}"
    with pytest.raises(ConfigError, match="give either per_device_train_batch_size or token_budget"):
        composed(folder, size, "training.token_budget=200")
    training = composed(folder, size, "training_setting=budget").config.training
    assert (training.per_device_train_batch_size, training.token_budget) == (2, None)
    back = composed(folder, size, "training.per_device_train_batch_size=null", "training_setting=budget")
    assert back.config.training.token_budget == 512

"""What a fine-tuning of a sweep goes on with where folders have names of the user's own: what is of its setting."""

import shutil
from pathlib import Path

import pytest
import yaml

from speechlmm_core.errors import ConfigError
from speechlmm_train.compose import compose_config
from speechlmm_train.composing.names import RunName
from speechlmm_train.composing.sibling import sibling
from speechlmm_train.launch.record import SweepRecord
from speechlmm_train.sweep import expand_sweep

SETTINGS = ("first", "second", "third")


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    root = tmp_path_factory.mktemp("conf")
    for name in ("model/text_decoder", "training_setting"):
        (root / name).mkdir(parents=True)
    for name in ("one", "two"):
        (root / f"model/text_decoder/{name}.yaml").write_text("type: test.narrow\n")
    for name in SETTINGS:
        (root / f"training_setting/{name}.yaml").write_text(f"data: {{data_config_path: {name}}}\n")
    (root / "mine.yaml").write_text("defaults: [finetune, _self_]\ntraining: {weight_decay: 0.1}\n")
    return root


COMMON = ["training.max_steps=5", "training.freeze_modules=[]"]


def swept(conf, config_name, out, *overrides):
    decoder = [] if any(text.startswith("model/") for text in overrides) else ["model/text_decoder=one"]
    given = [*COMMON, *decoder, f"training.output_dir={out}", *overrides]
    return expand_sweep(config_name, given, config_dir=conf)


def trained(conf, out, *overrides, recorded=True):
    """The folders of a sweep's runs, as they are left when it has ended."""
    runs = swept(conf, "pretrain", out, *overrides)
    if recorded:
        record = SweepRecord.of("pretrain", list(overrides), runs)
        record.write(record.folder())
    return [left(run.composed) for run in runs]


def left(composed):
    folder = Path(composed.config.training.output_dir)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "config.yaml").write_text(yaml.safe_dump(composed.plain))
    return str(folder)


def starts(runs):
    return [run.composed.config.training.pretrained_checkpoint if run.composed else None for run in runs]


def test_the_same_command_finds_the_same_numbers(conf, tmp_path):
    settings = "training_setting=first,second"
    before = trained(conf, tmp_path / "pretrain-it", settings)
    assert starts(swept(conf, "finetune", tmp_path / "lora-finetune-it", settings)) == before


def test_settings_in_another_order_are_found_by_the_record(conf, tmp_path):
    first, second = trained(conf, tmp_path / "pretrain-it", "training_setting=first,second")
    assert starts(swept(conf, "finetune", tmp_path / "finetune-it", "training_setting=second,first")) == [second, first]
    third = swept(conf, "finetune", tmp_path / "finetune-it", "training_setting=third,second")
    assert starts(third) == [None, second]
    assert "it was trained with training_setting=first, and this run has training_setting=third" in third[0].fault
    assert "give training.pretrained_checkpoint=<path>" in third[0].fault


def test_one_of_several_of_the_setting_is_not_guessed(conf, tmp_path):
    trained(conf, tmp_path / "pretrain-it", "training_setting=first", "training.seed=1,2")
    own, other = swept(conf, "finetune", tmp_path / "finetune-it", "training_setting=first,second")
    assert starts([own]) == [f"{tmp_path}/pretrain-it-0"]
    assert other.composed is None
    late = swept(conf, "finetune", tmp_path / "finetune-it", "training_setting=first", "training.seed=1,2,3")
    assert starts(late) == [f"{tmp_path}/pretrain-it-0", f"{tmp_path}/pretrain-it-1", None]


def test_models_are_told_apart_likewise(conf, tmp_path):
    trained(conf, tmp_path / "pretrain-it", "model/text_decoder=one,two", "training_setting=first")
    wrong = swept(conf, "finetune", tmp_path / "finetune-it", "model/text_decoder=two,one", "training_setting=first")
    assert starts(wrong) == [f"{tmp_path}/pretrain-it-1", f"{tmp_path}/pretrain-it-0"]


def test_without_a_record_what_it_was_trained_on_tells(conf, tmp_path):
    trained(conf, tmp_path / "pretrain-it", "training_setting=first,second", recorded=False)
    found = swept(conf, "finetune", tmp_path / "finetune-it", "training_setting=third,second")
    assert starts(found) == [None, f"{tmp_path}/pretrain-it-1"]
    assert f"'{tmp_path}/pretrain-it-0' is not of this setting" in found[0].fault
    assert "it was trained on 'first', and this run names 'third'" in found[0].fault


def test_a_folder_without_a_number_is_tried_too(conf, tmp_path):
    """The first README's: a pre-training alone in speechlmm-pretrain-whatever, from which a sweep goes on."""
    (alone,) = trained(conf, tmp_path / "speechlmm-pretrain-whatever", "training_setting=first")
    assert alone == f"{tmp_path}/speechlmm-pretrain-whatever"
    out = tmp_path / "lora-speechlmm-finetune-whatever"
    assert starts(swept(conf, "finetune", out, "training_setting=first", "training.seed=1,2")) == [alone, alone]
    assert starts(swept(conf, "finetune", out, "training_setting=first,second")) == [alone, None]
    shutil.rmtree(tmp_path / "multirun")
    assert starts(swept(conf, "finetune", out, "training_setting=first,second")) == [alone, None]


def test_runs_with_a_name_of_the_user_s_own(conf, tmp_path, monkeypatch):
    monkeypatch.setenv("CHECKPOINTS_HOME", str(tmp_path))
    trained(conf, "null", "training.run_name=pretrain-a", "training_setting=first,second")
    tuned = swept(conf, "finetune", "null", "training.run_name=finetune-a", "training_setting=second,third")
    assert starts(tuned) == [f"{tmp_path}/speechlmm/pretrain-a-1", None]


@pytest.mark.parametrize("varied", ["training_setting=first", "training_setting=first,second"])
def test_a_configuration_built_on_finetune_is_a_fine_tuning(conf, tmp_path, monkeypatch, varied):
    """It was called `pretrain-...`, so that what lay beside it was its own folder, and that of the pre-training."""
    monkeypatch.setenv("CHECKPOINTS_HOME", str(tmp_path))
    before = trained(conf, "null", varied)
    runs = swept(conf, "mine", "null", varied)
    assert starts(runs) == before
    for run in runs:
        assert run.composed.config.training.weight_decay == 0.1
        assert run.name.startswith("finetune-text-one-")
        assert run.composed.config.training.output_dir == f"{tmp_path}/speechlmm/speechlmm-{run.name}"
    (tuned,) = swept(conf, "mine", "null", "training_setting=third", "training.pretrained_checkpoint=x")
    assert tuned.name == "finetune-text-one-third"
    with pytest.raises(ConfigError, match=r"training\.pretrained_checkpoint: missing; give it as"):
        compose_config("mine", [*COMMON, "model/text_decoder=one", "training_setting=first"], config_dir=conf)


def test_the_run_s_own_folder_is_not_what_it_goes_on_with(tmp_path):
    own = tmp_path / "finetune-it"
    (own / "model").mkdir(parents=True)
    (own / "model" / "config.json").write_text("{}")
    (tmp_path / "pretrain-it").symlink_to(own)
    name = RunName("finetune", "it", own="finetune-it")
    with pytest.raises(ConfigError, match=r"is its own output folder, .*pretrain-it'; give training"):
        sibling(str(own), name, choices={}, plain={})


@pytest.mark.parametrize("content", ["{", "[]", '{"runs": [{"output_dir": null, "overrides": []}]}'])
def test_a_damaged_record_says_nothing(conf, tmp_path, content):
    (before,) = trained(conf, tmp_path / "pretrain-it", "training_setting=first", recorded=False)
    (tmp_path / "multirun" / "x").mkdir(parents=True)
    (tmp_path / "multirun" / "x" / "sweep.json").write_text(content)
    assert starts(swept(conf, "finetune", tmp_path / "finetune-it", "training_setting=first")) == [before]

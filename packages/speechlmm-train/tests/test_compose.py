"""Composition: Hydra's grammar, installed groups, and what a user's mistake is answered with.

Components and presets are made by the tests: this package's tests run without the plugin packages.
"""

import sys
import textwrap

import pytest

from speechlmm_core.errors import ConfigError
from speechlmm_train.compose import compose_config, compose_plain, import_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder of configurations, with a preset in a group that no package ships."""
    root = tmp_path_factory.mktemp("conf")
    files = {
        "model/text_decoder/wide.yaml": "type: test.narrow\nwidth: 32\n",
        "model/sounds_encoder/nobody.yaml": "type: nobody\n",
        "training_setting/slow.yaml": "# @package _global_\ntraining:\n  learning_rate: 1.0e-6\n",
        "mine.yaml": """
            defaults:
              - pretrain
              - override model/text_decoder: wide
              - _self_
            data:
              train: [from_yaml.jsonl]
            stages:
              - {name: first, max_steps: 3, learning_rate: 1.0e-3}
              - {name: second, max_steps: 4, trainable_modules: [text_decoder]}
        """,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(text))
    return root


NEEDED = ["data.train=[a.jsonl]", "training.output_dir=out", "training.max_steps=5", "model/text_decoder=wide"]


def wrong(folder, *overrides, name="pretrain"):
    with pytest.raises(ConfigError) as caught:
        compose_config(name, overrides, config_dir=folder)
    return str(caught.value)


def test_a_group_of_the_user_needs_no_plus(folder):
    config = compose_config("pretrain", NEEDED, config_dir=folder).config
    assert config.model.text_decoder.width == 32
    assert config.data.train[0].reader.path == "a.jsonl"
    assert config.training.max_steps == 5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.weight_decay=0.5", 0.5),
        ("+training.weight_decay=0.5", 0.5),
        ("++training.weight_decay=0.5", 0.5),
    ],
)
def test_a_new_key_with_and_without_plus(folder, override, expected):
    assert compose_config("pretrain", [*NEEDED, override], config_dir=folder).config.training.weight_decay == expected


def test_lists_dicts_and_deletion(folder):
    overrides = [
        *NEEDED,
        "data.eval=[b.jsonl,{type: jsonl, path: c.jsonl}]",
        "training.lr_groups={text_decoder: 1e-3}",
        "~training.lr_scheduler_type",
    ]
    config = compose_config("pretrain", overrides, config_dir=folder).config
    assert [entry.reader.path for entry in config.data.eval] == ["b.jsonl", "c.jsonl"]
    assert config.training.lr_groups == {"text_decoder": 1e-3}
    assert config.training.lr_scheduler_type == "cosine"


def test_a_training_setting_overrides_the_configuration(folder):
    config = compose_config("pretrain", [*NEEDED, "training_setting=slow"], config_dir=folder).config
    assert config.training.learning_rate == 1e-6
    shipped = compose_plain("pretrain", [*NEEDED, "training_setting=adapter_only"], config_dir=folder)
    assert shipped["training"]["save"] == "trainable"


def test_stages_from_yaml(folder):
    config = compose_config("mine", ["training.output_dir=out"], config_dir=folder).config
    assert config.data.train[0].reader.path == "from_yaml.jsonl"
    assert [(stage.name, stage.max_steps) for stage in config.stages] == [("first", 3), ("second", 4)]
    first, second = config.resolved_stages()
    assert (first.training.learning_rate, second.training.learning_rate) == (1e-3, 1e-4)
    assert second.trainable_modules == ["text_decoder"]


def test_finetune_starts_from_pretrain(folder):
    plain = compose_plain("finetune", [*NEEDED, "training.pretrained_checkpoint=before"], config_dir=folder)
    assert plain["training"]["learning_rate"] == 2e-5
    assert plain["training"]["freeze_modules"] == ["*_encoder.model"]


def test_every_missing_value_and_every_wrong_key_at_once(folder):
    message = wrong(folder, "data.trian=x")
    assert "data.train: missing; give it as data.train=<value>" in message
    assert "model.text_decoder: missing; choose a preset with model/text_decoder=<name>" in message
    assert "data.trian: unknown key 'trian'; did you mean 'train'?" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model/text_decoder=wiide", "unknown preset model/text_decoder=wiide; did you mean 'wide'?"),
        ("model/text_decodr=wide", "unknown group 'model/text_decodr'; did you mean 'model/text_decoder'?"),
        ("model.text_decoder.widht=3", "model.text_decoder.widht: unknown key 'widht'; did you mean 'width'?"),
        ("model.text_decoder.width=wide", "model.text_decoder.width: got 'wide'; input should be a valid integer"),
        ("model.text_decoder.type=test.narow", "unknown decoder 'test.narow'; did you mean 'test.narrow'?"),
        ("model.audio_encodr={type: x}", "unknown key 'audio_encodr'; did you mean 'audio_encoder'?"),
        ("training.max_step=3", "unknown key 'max_step'; did you mean 'max_steps'?"),
        ("training.lr_scheduler_kwarg={}", "did you mean 'lr_scheduler_kwargs'?"),
        ("training.gradient_accumulation_steps=2", "use micro_batches_per_step"),
        ("training.freeze_modules=[text_decodr]", "the model has no part 'text_decodr'; did you mean 'text_decoder'?"),
        ("training.lr_groups={audio: 1}", "training.lr_groups: the model has no part 'audio'"),
        ("training.num_epochs=2", "give either max_steps or num_epochs"),
        ("+training.token_budget=5 ", None),
        ("data.data_config_path=spec.yaml", "give either train/eval/guard or data_config_path"),
        ("training.max_steps=1,2", "gives several values to one key"),
        ("hydra.job.name=x", "only hydra/launcher=<preset> and hydra.launcher.<key>=<value> are taken"),
        ("nonsense", "is not an override"),
        ("=3", "is not an override"),
        ("~training.nothing", "nothing"),
        ("training.seed=${training.nothing}", "nothing"),
    ],
)
def test_a_mistake_is_named(folder, override, expected):
    if expected is None:
        compose_config("pretrain", [*NEEDED, override], config_dir=folder)
        return
    message = wrong(folder, *NEEDED, override)
    assert expected in message
    assert "\n" not in message


def test_unknown_configuration_name(folder):
    assert "did you mean 'pretrain'?" in wrong(folder, name="pretran")


def test_a_folder_that_is_not_there(tmp_path):
    assert "is not a folder" in wrong(tmp_path / "nowhere", *NEEDED)


def test_import_file_registers_components(folder, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent(
            """
            from typing import Literal
            from speechlmm_core.interfaces.objective import ObjectiveConfig, objectives

            @objectives.register
            class Config(ObjectiveConfig):
                type: Literal["test.imported"] = "test.imported"

                @property
                def stages(self):
                    return ("text_decoder",)

                def build(self, ctx):
                    raise RuntimeError
            """
        )
    )
    overrides = [*NEEDED, "model.objectives.own={type: test.imported, weight: 0.5}"]
    config = compose_config("pretrain", overrides, config_dir=folder, imports=[file]).config
    assert config.model.objectives["own"].weight == 0.5
    file.write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        compose_config("pretrain", overrides, config_dir=folder, imports=[file])
    with pytest.raises(ConfigError, match="expected a Python file"):
        compose_config("pretrain", overrides, config_dir=folder, imports=[tmp_path / "no.py"])


@pytest.mark.parametrize("text", ["a: [b\n", "a: {b\n c: d: e\n", "\ta: 1\n"])
def test_a_file_that_is_not_yaml(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"not YAML: .*mine\.yaml"):
        compose_config("mine", [], config_dir=tmp_path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model=null", "`model` is a section; expected model/<part>=<preset>"),
        ("model=tiny", "`model` is a section"),
        ("training=null", "`training` is a section"),
        ("data=[a]", "`data` is a section; expected data.<key>=<value>"),
        ("stages=3", "expected stages=[{name:"),
        ("stages.0.name=x", "stages.0: the configuration has no such stage; write stages out as stages=["),
    ],
)
def test_sections_and_stages_that_are_set_wrongly(override, expected):
    with pytest.raises(ConfigError) as caught:
        compose_plain("pretrain", [override])
    assert expected in str(caught.value)


def test_import_file_with_annotations_that_are_strings(tmp_path):
    """A module is looked up by its name where its annotations are evaluated."""
    (tmp_path / "late.py").write_text(
        textwrap.dedent("""
            from __future__ import annotations
            from dataclasses import dataclass
            from typing import ClassVar, Literal
            from pydantic import BaseModel

            class Inner(BaseModel):
                number: Literal[3] = 3

            class Outer(BaseModel):
                inner: Inner | None = None

            @dataclass
            class Plain:
                kind: ClassVar[str] = "x"

            assert Outer(inner={}).inner.number == 3
        """)
    )
    import_file(tmp_path / "late.py")
    (tmp_path / "broken.py").write_text("raise ValueError('oh')\n")
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=r"broken\.py' failed: ValueError: oh"):
        import_file(tmp_path / "broken.py")
    assert set(sys.modules) == before


def test_a_specification_of_the_users_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "datasets").mkdir()
    (folder / "datasets" / "mine.yaml").write_text("train: [a.jsonl]\n")
    needed = [one for one in NEEDED if not one.startswith("data.train")]
    composed = compose_config("pretrain", [*needed, "data.data_config_path=mine"], config_dir=folder)
    assert composed.config.data.data_config_path == str(folder / "datasets" / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("train: [a.jsonl]\n")  # what lies below the working folder comes first
    composed = compose_config("pretrain", [*needed, "data.data_config_path=mine"], config_dir=folder)
    assert composed.config.data.data_config_path == "mine"


def test_what_is_for_evaluation_is_not_trained_on(folder):
    """By the entry's own word; a name such as `dev` alone says what it is for where no list does."""
    needed = [one for one in NEEDED if not one.startswith("data.train")]
    for field, destination in (("partitions: {dev: {destination: eval}}", "eval"), ("destination: test", "test")):
        given = wrong(folder, *needed, f"data.train=[{{type: jsonl, path: m.jsonl, task: asr, {field}}}]")
        assert f"'{destination}' in a list of datasets for 'train'; leave it out, or list it elsewhere" in given


def test_entries_of_a_run_are_checked_before_anything_is_read(folder):
    entry = "data.train=[{type: jsonl, path: x, task: asrr, partitions: {dev: {amount: 5x}}}]"
    lines = wrong(folder, *NEEDED, entry).splitlines()
    assert any(line.startswith("data.train.0.task: unknown task 'asrr'; did you mean 'asr'?") for line in lines)
    assert any(line.startswith("data.train.0.partitions.dev.amount: expected a number of records") for line in lines)

"""Sweeps, the names of runs and their folders, launchers, and what a fine-tuning starts from."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlmm_core.errors import ConfigError
from speechlmm_train.compose import compose_config
from speechlmm_train.composing.overrides import products
from speechlmm_train.sweep import expand_sweep

FILES = {
    "model/text_decoder/small.yaml": "type: test.narrow\n",
    "model/text_decoder/large.yaml": "type: test.narrow\nwidth: 32\n",
    "training_setting/finetune_it.yaml": "# @package _global_\ntraining: {weight_decay: 0.1, learning_rate: 7.0e-5}\n",
    "training_setting/deep/a.yaml": "# @package _global_\ntraining: {weight_decay: 0.2}\n",
    "training_setting/from_checkpoint.yaml": """
        # @package _global_
        training: {pretrained_checkpoint: before}
    """,
    "adjustments/wider.yaml": """
        rules:
          - when: {model/text_decoder: small}
            set: {model.text_decoder.width: 16}
    """,
    "hydra/launcher/open.yaml": "type: slurm\naccount: ???\n",
}


@pytest.fixture(scope="module")
def folder(preset_folder):
    return preset_folder(FILES)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CHECKPOINTS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


DATA = ["data.train=[a.jsonl]", "training.max_steps=5"]
NEEDED = [*DATA, "model/text_decoder=small"]
ADAPTER = "training.lora_adapters=[{name: a, target_module: text_decoder}]"


def composed(folder, *overrides, name="pretrain"):
    return compose_config(name, [*NEEDED, *overrides], config_dir=folder)


def test_a_run_is_called_by_kind_modality_modules_and_setting(folder, home):
    found = composed(folder, "training_setting=deep/a")
    assert found.name == "pretrain-text-small-deep.a"
    assert found.config.training.output_dir == f"{home}/speechlmm/speechlmm-pretrain-text-small-deep.a"
    assert composed(folder).name == "pretrain-text-small"
    tuned = composed(folder, "training.pretrained_checkpoint=x", ADAPTER, "training.freeze_modules=[]")
    assert tuned.config.training.output_dir == f"{home}/speechlmm/lora-speechlmm-finetune-text-small"
    assert composed(folder, "training.wandb_project=mine").config.training.output_dir.startswith(f"{home}/mine/")


def test_the_users_own_name_and_folder_come_first(folder, home):
    assert composed(folder, "training.run_name=mine").config.training.output_dir == f"{home}/speechlmm/mine"
    assert composed(folder, "training.output_dir=out", "training.run_name=mine").config.training.output_dir == "out"


def test_without_the_variable_runs_lie_below_the_working_folder(folder, monkeypatch):
    monkeypatch.delenv("CHECKPOINTS_HOME")
    assert composed(folder).config.training.output_dir == "runs/speechlmm/speechlmm-pretrain-text-small"


def test_a_checkpoint_makes_a_fine_tuning_with_its_defaults_and_the_setting_goes_before_them(folder):
    free = "training.freeze_modules=[]"
    assert composed(folder, "training.pretrained_checkpoint=x", free).config.training.learning_rate == 2e-5
    from_setting = composed(folder, "training_setting=from_checkpoint", free)
    assert from_setting.config.training.learning_rate == 2e-5
    assert from_setting.name == "finetune-text-small-from_checkpoint"
    given = composed(folder, "training.pretrained_checkpoint=x", "training_setting=finetune_it", free, name="finetune")
    assert given.config.training.learning_rate == 7e-5


def test_a_fine_tuning_without_a_checkpoint_is_refused(folder):
    """The first SpeechLMM's `???` could not override a null, and fine-tunings silently began from base weights."""
    with pytest.raises(ConfigError, match=r"training\.pretrained_checkpoint: missing; give it as"):
        composed(folder, name="finetune")
    with pytest.raises(ConfigError, match=r"training\.pretrained_checkpoint"):
        composed(folder, "training.pretrained_checkpoint=null", name="finetune")


def test_the_launcher_is_composed_and_local_without_one(folder):
    assert composed(folder).launcher is None
    found = composed(folder, "hydra/launcher=slurm", "hydra.launcher.nodes=2", "hydra.launcher.partition=gpu")
    assert found.launcher is not None
    assert (found.launcher["nodes"], found.launcher["partition"]) == (2, "gpu")
    assert found.choices["hydra/launcher"] == "slurm"
    assert "hydra" not in found.plain


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["hydra/launcher=slrum"], "unknown preset hydra/launcher=slrum; did you mean 'slurm'?"),
        (["hydra.launcher.nodes=2"], "choose one: hydra/launcher=slurm"),
        (["hydra/launcher=open"], "hydra.launcher.account: missing; give it as hydra.launcher.account=<value>"),
        (["hydra/lancher=slurm"], "only hydra/launcher=<preset>"),
        (["hydra.sweep.dir=x"], "where a run writes to is training.output_dir"),
        (["training_setting=deep/b"], "unknown preset training_setting=deep/b; did you mean 'deep/a'?"),
        (["model/text_decoder=small,large"], "run all of them with --multirun"),
    ],
)
def test_a_mistake_is_named(folder, overrides, expected):
    with pytest.raises(ConfigError) as caught:
        composed(folder, *overrides)
    assert expected in str(caught.value)


def test_a_sweep_is_the_product_and_adjustments_apply_to_each(folder, home):
    varied = ["model/text_decoder=small,large", "training.learning_rate=1e-3,1e-4,1e-5"]
    runs = expand_sweep("pretrain", [*DATA, *varied, "adjustments=[wider]"], config_dir=folder)
    assert [run.number for run in runs] == list(range(6))
    expected = itertools.product(["small", "large"], ["1e-3", "1e-4", "1e-5"])
    for run, (decoder, rate) in zip(runs, expected, strict=True):
        config = run.composed.config
        width = {"small": 16, "large": 32}[decoder]
        assert run.composed.choices["model/text_decoder"] == decoder
        assert (config.training.learning_rate, config.model.text_decoder.width) == (float(rate), width)
        assert bool(run.composed.changes) == (decoder == "small")
        assert run.varied[0] == f"model/text_decoder={decoder}"
        assert float(run.varied[1].removeprefix("training.learning_rate=")) == float(rate)
    folders = [run.composed.config.training.output_dir for run in runs]
    assert len(set(folders)) == 6
    assert folders[0] == f"{home}/speechlmm/speechlmm-pretrain-text-small-learning_rate=0.001"
    alone = compose_config("pretrain", list(runs[4].overrides), config_dir=folder)
    assert alone.config.training.learning_rate == 1e-4
    assert alone.plain["training"] | {"output_dir": 0} == runs[4].composed.plain["training"] | {"output_dir": 0}


def test_names_of_the_users_own_get_the_runs_number(folder, home):
    given = [*NEEDED, "training.seed=1,2"]
    runs = expand_sweep("pretrain", [*given, "training.output_dir=out/it"], config_dir=folder)
    assert [run.composed.config.training.output_dir for run in runs] == ["out/it-0", "out/it-1"]
    runs = expand_sweep("pretrain", [*given, "training.run_name=it"], config_dir=folder)
    assert [run.composed.config.training.output_dir for run in runs] == [f"{home}/speechlmm/it-{i}" for i in (0, 1)]
    assert [run.name for run in runs] == ["it-0", "it-1"]


def test_a_faulty_run_leaves_the_others(folder):
    runs = expand_sweep("pretrain", [*NEEDED, "training.weight_decay=0.1,-1"], config_dir=folder)
    assert runs[0].composed is not None
    assert runs[1].composed is None
    assert "training.weight_decay: got -1" in runs[1].fault
    assert runs[1].name == "training.weight_decay=-1"


def test_runs_that_would_share_a_folder_are_refused(folder):
    with pytest.raises(ConfigError, match="runs 0 and 1 of the sweep would both write to"):
        expand_sweep("pretrain", [*DATA, "model/text_decoder=small,small"], config_dir=folder)


def test_ranges_and_globs(folder):
    varied = ["model/text_decoder=glob(sm?ll)", "training.seed=range(0,2)"]
    runs = expand_sweep("pretrain", [*DATA, *varied], config_dir=folder)
    kinds = [(run.composed.choices["model/text_decoder"], run.composed.config.training.seed) for run in runs]
    assert kinds == [("small", 0), ("small", 1)]
    with pytest.raises(ConfigError, match="gives no value"):
        expand_sweep("pretrain", [*DATA, "model/text_decoder=glob(nothing*)"], config_dir=folder)


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=3), min_size=1, max_size=3))
def test_products_are_those_of_itertools(values):
    overrides = [f"k{i}={','.join(map(str, row))}" for i, row in enumerate(values)]
    found = products(overrides, None)
    assert [run for run, _ in found] == [
        [f"k{i}={value}" for i, value in enumerate(row)] for row in itertools.product(*values)
    ]
    assert all(len(varied) == sum(len(row) > 1 for row in values) for _, varied in found)


def test_a_list_in_brackets_is_one_value(folder):
    (run,) = expand_sweep("pretrain", [*NEEDED, "training.freeze_modules=[text_decoder,objectives]"], config_dir=folder)
    assert run.varied == ()
    assert run.composed.config.training.freeze_modules == ["text_decoder", "objectives"]


def trained(folder):
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    return str(folder)


FREE = ["training.freeze_modules=[]"]


def test_a_fine_tuning_finds_its_pre_training_beside_it(folder, home):
    """Also with `/` in the setting, and with `finetune` in its name, which the first SpeechLMM's rule mixed up."""
    runs_of = home / "speechlmm"
    for setting, name in {"deep/a": "deep.a", "finetune_it": "finetune_it"}.items():
        before = trained(runs_of / f"speechlmm-pretrain-text-small-{name}")
        given = [*NEEDED, *FREE, f"training_setting={setting}", ADAPTER]
        (run,) = expand_sweep("finetune", given, config_dir=folder)
        assert run.composed is not None, run.fault
        assert run.composed.config.training.output_dir == f"{runs_of}/lora-speechlmm-finetune-text-small-{name}"
        assert run.composed.config.training.pretrained_checkpoint == before
        assert [change.source for change in run.composed.changes] == ["the pre-training beside the run"]


def test_it_prefers_the_one_of_the_same_values(folder, home):
    runs_of = home / "speechlmm"
    common = trained(runs_of / "speechlmm-pretrain-text-small")
    own = trained(runs_of / "speechlmm-pretrain-text-small-seed=2")
    runs = expand_sweep("finetune", [*NEEDED, *FREE, "training.seed=1,2"], config_dir=folder)
    assert [run.composed.config.training.pretrained_checkpoint for run in runs] == [common, own]


def test_it_follows_the_users_own_folder(folder, tmp_path):
    before = trained(tmp_path / "speechlmm-pretrain-whatever-0")
    given = [*NEEDED, *FREE, f"training.output_dir={tmp_path}/lora-speechlmm-finetune-whatever", "training.seed=1,2"]
    first, second = expand_sweep("finetune", given, config_dir=folder)
    assert first.composed.config.training.pretrained_checkpoint == before
    assert f"there is no trained model in '{tmp_path}/speechlmm-pretrain-whatever-1'" in second.fault
    assert "did you mean 'speechlmm-pretrain-whatever-0'?" in second.fault
    (other,) = expand_sweep("finetune", [*NEEDED, *FREE, f"training.output_dir={tmp_path}/mine"], config_dir=folder)
    assert "that name has no 'finetune'" in other.fault


def test_without_one_the_run_stops_and_a_given_one_is_kept(folder):
    (run,) = expand_sweep("finetune", [*NEEDED, *FREE], config_dir=folder)
    assert run.composed is None
    assert "training.pretrained_checkpoint: missing, and there is no trained model in" in run.fault
    (run,) = expand_sweep("finetune", [*NEEDED, *FREE, "training.pretrained_checkpoint=x"], config_dir=folder)
    assert run.composed.config.training.pretrained_checkpoint == "x"

"""The commands of the first SpeechLMM's README, with the installed components: each composes to what it says."""

import itertools

import pytest

from speechlmm_train.compose import compose_config
from speechlmm_train.sweep import expand_sweep

PRETRAINING = [
    "model/audio_encoder=seamless",
    "model/audio_adapter=mlp",
    "model/text_decoder=llama_3_8b",
    "training_setting=paper_1a",
]
SWEEP = [
    "hydra/launcher=helios",
    "model/audio_encoder=hubert,seamless,whisper_unrestricted",
    "model/audio_adapter=mlp,cformer_cif,qformer",
    "model/text_decoder=llama_3_8b,mistral",
    "training_setting=paper_1a,paper_1b,paper_1c,paper_1d",
    "adjustments=[zero3_issue,paper_helios]",
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CHECKPOINTS_HOME", str(tmp_path))
    return tmp_path


def test_pre_training(home):
    composed = compose_config("pretrain", PRETRAINING)
    assert composed.name == "pretrain-audio-seamless-mlp-llama_3_8b-paper_1a"
    assert composed.config.training.output_dir == f"{home}/speechlmm/speechlmm-{composed.name}"
    assert composed.config.model.text_decoder.pretrained == "meta-llama/Llama-3.1-8B-Instruct"
    assert composed.launcher is None


def test_a_setting_of_the_users_own_with_a_checkpoint_is_a_fine_tuning(home, tmp_path):
    conf = tmp_path / "conf"
    (conf / "training_setting").mkdir(parents=True)
    (conf / "datasets").mkdir()
    (conf / "datasets" / "my_finetuning_dataset.yml").write_text("train: [a.jsonl]\n")
    (conf / "training_setting" / "my_finetuning.yaml").write_text(
        """# @package _global_
data:
  data_config_path: my_finetuning_dataset.yml
training:
  max_steps: 10
  pretrained_checkpoint: /path/to/speechlmm-pretrain-paper_1a
  freeze_modules: [audio_encoder, text_decoder]
  lora_adapters:
    - name: text_decoder_peft_adapter
      target_module: text_decoder.model
      task_type: CAUSAL_LM
      r: 128
      lora_alpha: 256
      lora_dropout: 0.05
      bias: none
      use_rslora: true
"""
    )
    composed = compose_config("pretrain", [*PRETRAINING[:3], "training_setting=my_finetuning"], config_dir=conf)
    assert composed.name == "finetune-audio-seamless-mlp-llama_3_8b-my_finetuning"
    assert composed.config.training.output_dir == f"{home}/speechlmm/lora-speechlmm-{composed.name}"
    assert composed.config.training.learning_rate == 2e-5
    assert composed.config.training.lora_adapters[0].r == 128
    assert composed.config.data.data_config_path == str(conf / "datasets" / "my_finetuning_dataset.yml")


def test_video_on_two_nodes():
    given = ["hydra/launcher=helios", "model/video_encoder=auto_avsr", "model/video_adapter=mlp"]
    given += ["model/text_decoder=llama_3_8b", "training_setting=vsr_lrs2", "hydra.launcher.nodes=2"]
    (run,) = expand_sweep("pretrain", given)
    assert run.composed is not None, run.fault
    assert run.composed.launcher is not None
    assert run.composed.launcher["nodes"] == 2
    assert run.name == "pretrain-video-auto_avsr-mlp-llama_3_8b-vsr_lrs2"


def test_the_sweep_has_72_runs_and_adjustments_apply_to_each():
    runs = expand_sweep("pretrain", SWEEP)
    assert [run.fault for run in runs if run.fault] == []
    parts = [text.partition("=")[2].split(",") for text in SWEEP[1:5]]
    expected = [f"pretrain-audio-{'-'.join(one)}" for one in itertools.product(*parts)]
    assert [run.name for run in runs] == expected
    assert len({run.composed.config.training.output_dir for run in runs}) == 72
    for run in runs:
        training, choices = run.composed.config.training, run.composed.choices
        assert training.parallel == ("zero2" if choices["model/audio_encoder"] == "hubert" else "zero3")
        assert (training.token_budget, training.micro_batches_per_step, training.num_workers) == (16384, 8, 16)
        assert choices["hydra/launcher"] == "helios"

"""What `training.parallel` stands for, and what contradicts it."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from speechlmm_core.errors import ConfigError, MissingDependencyError, SpeechLMMError
from speechlmm_train.parallel import deepspeed_config as module
from speechlmm_train.parallel.arguments import parallel_arguments
from speechlmm_train.parallel.deepspeed_config import PRESETS, deepspeed_config, preset
from speechlmm_train.parallel.deepspeed_faults import ZERO_KEYS, contradictions
from speechlmm_train.parallel.kernels import use_kernels
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.parallel.touch import give_gradients, touched, unreached
from speechlmm_train.parallel_names import mode_of, stage_of
from speechlmm_train.training_config import TrainingConfig


def training(**values):
    return TrainingConfig.model_validate(
        {"output_dir": "out", "max_steps": 1, "parallel": "zero2", "micro_batches_per_step": 4, **values}
    )


def test_how_a_model_is_wrapped():
    assert [mode_of(name, 1) for name in ("auto", "ddp", "zero3_offload", "fsdp2")] == ["none", "none", "zero", "fsdp2"]
    assert [mode_of(name, 2) for name in ("auto", "ddp", "zero0", "fsdp2")] == ["ddp", "ddp", "zero", "fsdp2"]
    assert [stage_of(name) for name in PRESETS] == [0, 1, 2, 3, 2, 3]


def test_presets_offload_what_their_names_say():
    assert "offload_optimizer" not in preset("zero3")["zero_optimization"]
    assert preset("zero2_offload")["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in preset("zero2_offload")["zero_optimization"]
    assert preset("zero3_offload")["zero_optimization"]["offload_param"]["device"] == "cpu"


def test_a_file_is_laid_over_the_preset(tmp_path):
    given = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
        "gradient_clipping": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_max_lr": "auto", "warmup_num_steps": 0}},
        "torch_autocast": {"enabled": False},
        "wall_clock_breakdown": False,
    }
    (tmp_path / "ds.json").write_text(json.dumps(given))
    found = deepspeed_config(training(deepspeed_config="ds.json"), world_size=2, bf16=False, base=tmp_path)
    assert found["zero_optimization"]["reduce_bucket_size"] == 1000
    assert found["zero_optimization"]["contiguous_gradients"] is True
    assert found["wall_clock_breakdown"] is False
    assert "optimizer" not in found
    assert "scheduler" not in found


CONTRADICTIONS = [
    ({"zero_optimization": {"stage": 3}}, {}, "zero_optimization.stage is 3, and training's parallel says 2"),
    ({"gradient_accumulation_steps": 4}, {}, "gradient_accumulation_steps is 4, and training's micro_batches_per_step"),
    ({"gradient_clipping": 0.5}, {}, "gradient_clipping is 0.5, and training's max_grad_norm says 1.0"),
    ({"bf16": {"enabled": True}}, {}, "bf16.enabled is True, and training's bf16 says False"),
    ({"bf16": {"enabled": False}}, {"bf16": True}, "bf16.enabled is False, and training's bf16 says True"),
    ({"fp16": {"enabled": True}}, {}, "fp16.enabled is True, and training's fp16 says False"),
    ({"train_micro_batch_size_per_gpu": 8}, {"token_budget": 100}, "the batch is set by token_budget"),
    (
        {"train_micro_batch_size_per_gpu": 8},
        {"per_device_train_batch_size": 2},
        "train_micro_batch_size_per_gpu is 8, and training's per_device_train_batch_size says 2",
    ),
    (
        {"train_batch_size": 64},
        {"per_device_train_batch_size": 2},
        "train_batch_size is 64, and training's per_device_train_batch_size and micro_batches_per_step says 8",
    ),
    (
        {"optimizer": {"params": {"lr": 0.1}}},
        {},
        "optimizer.params.lr is 0.1, and training's learning_rate says 0.0001",
    ),
    ({"optimizer": {"type": "Lamb"}}, {}, "optimizer.type is 'Lamb'"),
    ({"optimizer": {"type": "Adam"}}, {}, "optimizer.type is 'Adam', but the optimiser is training.optim"),
    ({"optimizer": {"type": "AdamW"}}, {"optim": "sgd"}, "optimizer.type is 'AdamW', but the optimiser is"),
    ({"scheduler": {"type": "WarmupLR"}}, {}, "scheduler.type is 'WarmupLR', but the schedule is"),
    ({"scheduler": {"type": "WarmupCosineLR"}}, {"lr_min": 1e-6}, "scheduler.type is 'WarmupCosineLR', but"),
    ({"scheduler": {"params": {"warmup_num_steps": 500}}}, {"warmup_steps": 0.5}, "warmup_num_steps is 500, and"),
    ({"scheduler": {"params": {"total_num_steps": 99}}}, {}, "total_num_steps is 99, and training's max_steps says 1"),
    ({"scheduler": {"params": {"warmup_min_lr": 1e-5}}}, {}, "warmup_min_lr is 1e-05, and training's schedule"),
    ({"scheduler": {"params": {"warmup_max_lr": 1e-5}}}, {}, "warmup_max_lr is 1e-05, and training's learning_rate"),
    ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, {}, "offload to 'cpu'"),
    (
        {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
        {},
        "zero_optimization.offload_optimizer is 'cpu', and training's parallel says 'zero2'; set "
        "training.parallel=zero2_offload",
    ),
    ({"zero_optimization": {"cpu_offload": True}}, {}, "set training.parallel=zero2_offload"),
    (
        {"zero_optimization": {"offload_optimizer": {"device": "none"}}},
        {"parallel": "zero2_offload"},
        "offload_optimizer is 'none', and training's parallel says 'zero2_offload'",
    ),
    ({"torch_autocast": {"enabled": True}}, {}, "torch_autocast.enabled is True, and training's bf16 says False"),
    (
        {"torch_autocast": {"lower_precision_safe_modules": ["torch.nn.Linear"]}},
        {"bf16": True},
        "torch_autocast.lower_precision_safe_modules is ['torch.nn.Linear']; expected []",
    ),
    ({"data_types": {"grad_accum_dtype": "bf16"}}, {"bf16": True}, "data_types.grad_accum_dtype is 'bf16'; expected"),
    ({"bf16": True}, {"bf16": True}, 'bf16 is True; expected an object, as in {"enabled": "auto"}'),
    ({"zero_optimization": 3}, {}, 'zero_optimization is 3; expected an object, as in {"stage": 2}'),
    ({"zero_optimisation": {}}, {}, "unknown key 'zero_optimisation'; did you mean 'zero_optimization'"),
    (
        {"zero_optimization": {"reduce_buckt_size": 1}},
        {},
        "unknown key 'zero_optimization.reduce_buckt_size'; did you mean 'reduce_bucket_size'",
    ),
]


@pytest.mark.parametrize(("given", "settings", "expected"), CONTRADICTIONS)
def test_a_file_that_contradicts_the_settings(tmp_path, given, settings, expected):
    (tmp_path / "ds.json").write_text(json.dumps(given))
    with pytest.raises(ConfigError, match=f"deepspeed_config 'ds.json': .*{re.escape(expected)}") as caught:
        deepspeed_config(
            training(deepspeed_config="ds.json", **settings),
            world_size=2,
            bf16=bool(settings.get("bf16")),
            base=tmp_path,
        )
    assert len(str(caught.value).splitlines()) == 1


def test_keys_are_those_of_deepspeed():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields.items()
    assert {field.alias or name for name, field in fields} >= ZERO_KEYS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_contradict_nothing(name):
    assert not list(contradictions(preset(name), training(parallel=name), world_size=2, bf16=False))


def test_each_contradiction_has_a_line(tmp_path):
    given = {"gradient_clipping": 2.0, "gradient_accumulation_steps": 9, "zero_optimization": {"stage": 1}}
    (tmp_path / "ds.json").write_text(json.dumps(given))
    with pytest.raises(ConfigError) as caught:
        deepspeed_config(training(deepspeed_config="ds.json"), world_size=2, bf16=False, base=tmp_path)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "is no file that can be read"), ("{", "is no JSON"), ("[]", "expected an object, got list")],
)
def test_files_that_are_none(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "zero22").write_text(content)
    with pytest.raises(ConfigError, match=expected):
        deepspeed_config(training(deepspeed_config="zero22"), world_size=1, bf16=False, base=tmp_path)


def test_the_first_versions_names_and_another_stage():
    offloaded = training(parallel="zero2_offload", deepspeed_config="zero2_offload")
    assert deepspeed_config(offloaded, world_size=1, bf16=False)
    with pytest.raises(ConfigError, match="stage is 3, and training's parallel says 2"):
        deepspeed_config(training(deepspeed_config="zero3"), world_size=1, bf16=False)


def test_deepspeed_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'speechlmm-train\[deepspeed\]'"):
        parallel_arguments(training(), world_size=2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"torch_compile": True, "parallel": "fsdp2"}, "training.torch_compile: it cannot follow"),
        (
            {"fp16": True, "parallel": "zero0"},
            "training.fp16: it does not go with parallel 'zero0'; use bf16, or zero1",
        ),
        ({"fp16": True, "parallel": "zero3"}, "training.fp16: it does not go with parallel 'zero3'"),
        ({"fp16": True, "parallel": "zero3_offload"}, "training.fp16: it does not go with parallel 'zero3_offload'"),
        (
            {
                "parallel": "ddp",
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
            "use_reentrant is true",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings, expected):
    with pytest.raises(ConfigError, match=expected):
        parallel_arguments(training(**settings), world_size=2)


def test_kernels_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="Liger's kernels run on a GPU, and there is none"):
        parallel_arguments(training(parallel="ddp", use_liger_kernel=True), world_size=2)


def test_recomputed_activations_are_not_reentrant():
    found = parallel_arguments(training(parallel="auto", gradient_checkpointing=True), world_size=1)
    assert found["gradient_checkpointing_kwargs"] == {"use_reentrant": False}


class Heard(Ranks):
    """Ranks whose others have told something already."""

    def gather(self, value):
        return [*self.group, value] if self.rank else [value, *self.group]


def test_the_first_fault_is_everyones():
    with pytest.raises(SpeechLMMError, match=r"^no disk$"):
        Heard(1, 2, 1, [("no disk", None)]).together(lambda: 3)
    with pytest.raises(SpeechLMMError, match=r"^rank 1: no disk$"):
        Heard(0, 2, 0, [("no disk", None)]).together(lambda: 3)
    with pytest.raises(ValueError, match="mine"):
        Heard(0, 2, 0, [(None, None)]).together(lambda: (_ for _ in ()).throw(ValueError("mine")))
    assert Heard(0, 2, 0, [(None, 5)]).share(lambda: 3, lambda x: x + 1) == (3, [4, 5])


def test_one_process_asks_nobody():
    ranks = Ranks()
    assert ranks.is_main
    assert ranks.gather(3) == [3]
    assert ranks.broadcast(4) == 4
    assert ranks.main_first(lambda: 5) == 5
    assert ranks.share(lambda: [1, 2], len) == ([1, 2], [2])
    ranks.barrier("the end")


def test_parameters_that_a_loss_leaves_out():
    layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    layers[2].weight.requires_grad_(False)
    loss = layers[2](layers[0](torch.ones(1, 2))).sum()
    left_out = unreached(loss, layers.parameters())
    assert {id(one) for one in left_out} == {id(one) for one in layers[1].parameters()}
    with_all = touched(loss, left_out)
    assert torch.equal(with_all, loss)
    with_all.backward()
    assert torch.equal(layers[1].weight.grad, torch.zeros(2, 2))
    assert layers[0].weight.grad.abs().sum() > 0
    layers[0].weight.grad = None
    give_gradients(layers[0].parameters())
    assert torch.equal(layers[0].weight.grad, torch.zeros(2, 2))


def test_kernels_of_a_family_that_has_none(monkeypatch):
    known = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": None, "qwen3": None})
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", known)
    model = SimpleNamespace(
        text_decoder=SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(model_type="mpt")))
    )
    with pytest.raises(ConfigError, match=r"no kernels for the text decoder's type 'mpt' \(it has: llama, qwen3\)"):
        use_kernels(model, training(parallel="ddp", use_liger_kernel=True))
    use_kernels(model, training(parallel="ddp"))

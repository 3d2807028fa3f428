"""The shipped training settings: composed and validated, their specifications read, and each launched.

Launched with tiny components, and with made media in place of the corpora: one step of each task's examples. One of
each family is launched as it is, with its ZeRO stage, its micro-batches, evaluations and checkpoints.
"""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.find import find_spec
from speechlmm_train.compose import compose_config
from speechlmm_train.run import run

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"s": (16384, 1e-4, 1500), "m": (12288, 7.5e-5, 2000), "l": (8192, 5e-5, 3000), "xl": (4096, 2.5e-5, 6000)}
DECODERS = {"s": "llama_3_1b", "m": "llama_3_3b", "l": "llama_3_8b", "xl": "llama_3_70b"}
AUDIO = ["model/audio_encoder=seamless", "model/audio_adapter=mlp", "model/text_decoder=llama_3_8b"]
VIDEO = ["model/video_encoder=auto_avsr", "model/video_adapter=mlp", "model/text_decoder=llama_3_8b"]
V1 = {"asr", "st", "mt", "slu", "sqa", "ssum", "vsr"}
SETTINGS = {
    "paper_1a": (AUDIO, {"asr"}),
    "paper_1b": (AUDIO, {"st"}),
    "paper_1c": (AUDIO, {"asr", "st"}),
    "paper_1d": (AUDIO, {"asr", "st"}),
    "vsr_lrs2": (VIDEO, {"vsr"}),
    **{f"speechlmm/v1/{size}": ([], V1) for size in SIZES},
    **{f"speechlmm/v1_warmup/{size}": ([], {"asr", "st", "vsr"}) for size in SIZES},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A manifest for each task: half a second of noise, or a few frames, and two words."""
    root = tmp_path_factory.mktemp("made")
    generator = np.random.default_rng(0)
    soundfile.write(root / "a.wav", generator.normal(0, 0.1, 8_000).astype("float32"), 16_000)
    with av.open(str(root / "v.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 96, "yuv420p"
        for _ in range(12):
            frame = av.VideoFrame.from_ndarray(generator.integers(0, 255, (96, 96, 3), np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    languages = {"source_language": "en", "target_language": "de"}
    rows = {
        "asr": {"audio": "a.wav", "text": "good day"},
        "st": {"audio": "a.wav", "text": "guten Tag", **languages},
        "mt": {"source_text": "good day", "text": "guten Tag", **languages},
        "slu": {"audio": "a.wav", "fields": {"intent": "greet", "slots": [["time", "day"]]}},
        "sqa": {"audio": "a.wav", "instruction": "When?", "text": "by day"},
        "ssum": {"audio": "a.wav", "text": "a greeting"},
        "vsr": {"video": "v.mp4", "text": "good day"},
    }
    for task, row in rows.items():
        lines = [json.dumps({**row, "task": task, "id": f"{task}{i}"}) for i in range(3)]
        (root / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_composes(setting, monkeypatch):
    """Without any of the variables, and with the models that it names or the first README names for it."""
    for name in ("CHECKPOINTS_HOME", "DATA_HOME", "PRETRAINED_COMPONENTS"):
        monkeypatch.delenv(name, raising=False)
    given, expected = SETTINGS[setting]
    config = compose_config("pretrain", [*given, f"training_setting={setting}"]).config
    spec = read_spec(find_spec(config.data.data_config_path, Path.cwd()))
    tasks = {dataset.task.type for dataset in spec.datasets}
    assert tasks == expected
    assert set(config.data.task_weights) in (expected, set())
    assert all(dataset.reader.path.startswith("data/") for dataset in spec.datasets)
    training = config.training
    assert training.parallel == "zero3"
    assert (training.save, training.gradient_checkpointing) == ("trainable", True)  # as the first version always had
    if setting.startswith("speechlmm/"):
        size = setting.rpartition("/")[2]
        assert (training.token_budget, training.learning_rate, training.save_steps) == SIZES[size]
        plain = compose_config("pretrain", [f"training_setting={setting}"])
        assert plain.choices["model/text_decoder"] == DECODERS[size]
        assert training.freeze_modules == ["*_encoder.model"]
        assert training.micro_batches_per_step == (24 if "warmup" in setting else 56)


def launched(setting, made, folder):
    """A setting with what it needs to be launched here."""
    given, tasks = SETTINGS[setting]
    spec = folder / "spec.yaml"
    listed = "".join(f"  - {made / task}.jsonl\n" for task in sorted(tasks))
    spec.write_text(f"train:\n{listed}eval:\n  - {made / min(tasks)}.jsonl\n")
    parts = {"audio": ("tiny_seamless", "tiny_mlp"), "video": ("tiny_auto_avsr", "tiny_mlp")}
    used = [name for name in parts if not given or f"model/{name}_encoder" in given[0]]
    tiny = [
        f"model/{name}_{kind}={preset}"
        for name in used
        for kind, preset in zip(("encoder", "adapter"), parts[name], strict=True)
    ]
    return [
        *tiny,
        "model/text_decoder=tiny_llama",
        f"training_setting={setting}",
        f"data.data_config_path={spec}",
        f"training.output_dir={folder / 'out'}",
        "training.num_epochs=null",
        "training.max_steps=1",
        "training.num_workers=0",
        "training.report_to=[]",
    ]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_is_launched(setting, made, tmp_path):
    overrides = [
        *launched(setting, made, tmp_path),
        "training.micro_batches_per_step=1",
        "training.parallel=auto",
        "training.eval_steps=null",
        "training.save_steps=null",
    ]
    composed = compose_config("pretrain", overrides)
    report = run(composed.config, plain=composed.plain, progress=False)
    assert report.steps == 1
    assert np.isfinite(report.figures["train/lm"])
    assert (report.model_path / "model.safetensors").is_file()


FAMILIES = {"paper_1c": 16, "vsr_lrs2": 16, "speechlmm/v1/s": 56, "speechlmm/v1_warmup/s": 24}
"""A setting of each, with the micro-batches of a step."""
IN_TURNS = """
import json, sys
from pathlib import Path
from speechlmm_train.process import prepare_process
prepare_process()
from speechlmm_train.compose import validate
from speechlmm_train.run import run

for file in sys.argv[1:]:
    plain = json.loads(Path(file).read_text())
    run(validate(plain), plain=plain, base=Path(file).parent, progress=False)
"""


@pytest.mark.slow
def test_a_setting_of_each_family_is_launched_as_it_is(made, tmp_path, run_script):
    plans = {}
    for setting in FAMILIES:
        folder = tmp_path / setting
        folder.mkdir(parents=True)
        given = launched(setting, made, folder)
        if compose_config("pretrain", given).config.training.eval_steps:
            given += ["training.eval_steps=1", "training.eval_max_new_tokens=4"]
        plans[folder] = compose_config("pretrain", given).plain
        (folder / "plain.json").write_text(json.dumps(plans[folder]))
    done = run_script(IN_TURNS, *(folder / "plain.json" for folder in plans), processes=1, timeout=540)
    assert done.code == 0, done.err
    for (folder, plain), micro_batches in zip(plans.items(), FAMILIES.values(), strict=True):
        training = plain["training"]
        assert (training["parallel"], training["micro_batches_per_step"]) == ("zero3", micro_batches)
        figures = {}
        for line in (folder / "out" / "metrics.jsonl").read_text().splitlines():
            figures |= json.loads(line)
        assert np.isfinite(figures["train/lm"])
        assert any(name.startswith("eval/") for name in figures) == bool(training.get("eval_steps"))
        assert (folder / "out" / "model" / "model.safetensors").is_file()


def test_the_learning_rate_starts_again_while_a_run_trains(made, tmp_path):
    """Against the formula: from the peak to the lowest in two steps, after a warm-up of one."""
    out = tmp_path / "out"
    overrides = [
        "model/text_decoder=tiny_llama",
        f"data.train=[{made / 'mt.jsonl'}]",
        f"training.output_dir={out}",
        "training.max_steps=6",
        "training.warmup_steps=1",
        "training.learning_rate=1e-3",
        "training.lr_min=2e-4",
        "training.num_steps_between_each_restart=2",
        "training.lr_groups={text_decoder: 5e-4}",
        "training.logging_steps=1",
        "training.save_steps=null",
        "training.report_to=[]",
    ]
    composed = compose_config("pretrain", overrides)
    run(composed.config, plain=composed.plain, progress=False)
    rates = [json.loads(line)["train/lr"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    middle = 2e-4 + 8e-4 / 2
    # What is logged is the rate of the first group, whose peak is half of the others'.
    assert rates[:6] == pytest.approx([rate / 2 for rate in (0, 1e-3, middle, 1e-3, middle, 1e-3)])

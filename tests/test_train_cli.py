"""The training command line with the installed components: plan, run and evaluate, and their mistakes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from speechlmm_train.cli import main

TINY = (
    "model/audio_encoder=tiny_whisper_unrestricted",
    "model/audio_adapter=tiny_mlp",
    "model/text_decoder=tiny_llama",
)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def manifest(tmp_path):
    generator = np.random.default_rng(0)
    lines = []
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", generator.normal(0, 0.1, 8_000).astype("float32"), 16_000)
        lines.append(json.dumps({"audio": f"{i}.wav", "text": f"word {i}", "task": "asr"}))
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def call(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        main([str(part) for part in argv])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_plan_counts_what_the_model_has(capsys, manifest, tmp_path, monkeypatch):
    from speechlmm_core.interfaces.modules import Component
    from speechlmm_train.compose import compose_config
    from speechlmm_train.run import build_model

    def refuse(*_):
        raise AssertionError("plan loads no weights")

    monkeypatch.setattr(Component, "load_base_weights", refuse)
    overrides = [*TINY, f"data.train=[{manifest}]", f"training.output_dir={tmp_path / 'out'}", "training.max_steps=3"]
    code, out, err = call(capsys, "plan", *overrides, "training.freeze_modules=[audio_encoder]")
    assert (code, err) == (0, "")
    assert not (tmp_path / "out").exists()
    rows = {line.split()[0]: line.split() for line in out.splitlines() if "float32" in line}
    model = build_model(compose_config("pretrain", overrides).config, None)
    for name in ("audio_encoder", "audio_adapter", "text_decoder"):
        count = sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
        trained = 0 if name == "audio_encoder" else count
        assert rows[name][3:6] == [f"{count:,}", f"{trained:,}", "float32"]
    assert rows["text_decoder"][-1] == "sdpa"
    assert "stage train: 3 steps, freezes audio_encoder" in out
    positions = model.audio_encoder.model.embed_positions.weight.numel()
    assert f"fix them: audio_encoder.model.embed_positions.weight {positions:,}\n" in out
    assert ", 1 micro-batch of at most " in out


def test_plan_takes_and_checks_what_run_does(capsys, manifest, tmp_path):
    out = tmp_path / "out"
    given = (*TINY, f"data.train=[{manifest}]", f"training.output_dir={out}")
    stages = "stages=[{name: a, max_steps: 1, trainable_modules: [text_decoder]}, {name: b, max_steps: 2}]"
    code, text, err = call(capsys, "plan", *given, stages, "--resume", "--no-progress")
    assert (code, err) == (0, "")
    first, second = (line for line in text.splitlines() if line.startswith("stage "))
    assert "trains text_decoder" in first
    assert "audio_encoder" not in first
    assert "audio_encoder" in second.partition("trainable parameters")[2]
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("")
    code, _, err = call(capsys, "plan", *given, stages)
    assert code == 0
    assert "note: training.output_dir" in err
    assert "is not empty" in err
    assert call(capsys, "plan", *given, stages, "--overwrite")[::2] == (0, "")
    for wrong, expected in {
        "lr_scheduler_type: foo": "foo",
        "trainable_modules: [text_decoder.modle]": "matches no module",
        "lr_groups: {text_decoder.modle: 1}": "matches no module",
    }.items():
        bad = f"stages=[{{name: a, max_steps: 1}}, {{name: b, max_steps: 1, {wrong}}}]"
        code, text, err = call(capsys, "plan", *given, bad)
        assert (code, err.count("\n")) == (2, 1)
        assert expected in err
        assert "COMPONENT" not in text
    code, _, err = call(capsys, "plan", *given, stages, "--resume", "--overwrite")
    assert code == 2
    assert "not both" in err


def test_run_then_evaluate(capsys, manifest, tmp_path):
    out = tmp_path / "out"
    given = (*TINY, f"data.train=[{manifest}]", f"training.output_dir={out}", "training.max_steps=1")
    assert call(capsys, "run", *given, "training.report_to=[]", "--no-progress")[0] == 0
    code, _, err = call(capsys, "run", *given, "--no-progress")
    assert code == 2
    assert "is not empty; go on with --resume" in err
    scores = tmp_path / "scores"
    argv = ("--model-path", out, "--output-dir", scores, "--max-new-tokens", "3", "--json", manifest)
    code, text, _ = call(capsys, "evaluate", *argv)
    assert code == 0
    report = json.loads(text)
    assert report == json.loads((scores / "report.json").read_text())
    wer = report["datasets"]["train"]["tasks"]["asr"]["metrics"]["wer"]
    assert (report["examples"], report["failed"], wer["counts"]["wer_words"]) == (4, 0, 8)
    predictions = [json.loads(line) for line in (scores / "predictions.jsonl").read_text().splitlines()]
    assert [row["references"] for row in predictions] == [[f"word {i}"] for i in range(4)]
    code, _, err = call(capsys, "evaluate", *argv)
    assert (code, err.count("\n")) == (2, 1)
    assert "is there already; replace it with --overwrite" in err
    (tmp_path / "3.wav").write_bytes(b"no audio")
    code, text, err = call(capsys, "evaluate", *argv, "--overwrite")
    assert code == 1
    assert json.loads(text)["datasets"]["train"]["failed"] == 1
    assert "1 examples failed" in err
    for device, expected in {"foo": "unknown device 'foo'", "meta": "cannot run on", "cuda:99": "no device"}.items():
        code, _, err = call(capsys, "evaluate", *argv, "--overwrite", "--device", device)
        assert (code, err.count("\n")) == (2, 1)
        assert expected in err
    code, _, err = call(capsys, "evaluate", "--model-path", out, "--output-dir", manifest / "x", manifest)
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be written to: Not a directory" in err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model/audio_encoder=tiny_wisper", "did you mean 'tiny_whisper'?"),
        ("model.audio_encoder.type=wisper", "unknown encoder 'wisper'; did you mean 'whisper'?"),
        ("model.audio_adapter.stakc=3", "model.audio_adapter.stakc: unknown key 'stakc'; did you mean 'stack'?"),
        ("~model.audio_adapter", "audio_encoder has no audio_adapter"),
        ("model.audio_adapter={type: identity}", None),
        ("model.objectives.c={type: ctc, stage: video_encoder}", "reads the stage 'video_encoder'"),
        ("training.freeze_modules=[audio_encoder.nothing]", "'audio_encoder.nothing' matches no module"),
        ("training.lr_scheduler_type=cosin", "cosin"),
        ("training.token_budget=5", "token_budget = 5"),
        ("data.max_duration_s=0.1", "none of the 4 examples"),
        ("training.micro_batches_per_step=0", "training.micro_batches_per_step: got 0; input should be greater than 0"),
        ("data.data_config_path=sets.yaml", "not both"),
    ],
)
def test_a_mistake_in_a_run_is_one_line(capsys, manifest, tmp_path, override, expected):
    out = tmp_path / "out"
    given = [*TINY, f"data.train=[{manifest}]", f"training.output_dir={out}", "training.max_steps=1"]
    group = override.split("=")[0]
    given = [one for one in given if one.split("=")[0] != group]
    code, _, err = call(capsys, "run", *given, override, "--no-progress")
    assert code == 2
    assert err.startswith("error: ")
    if expected is not None:
        assert err.count("\n") == 1
        assert expected in err
        assert not out.exists()
    assert "Traceback" not in err


def test_ctrl_c_says_what_is_left_though_a_wrapper_hands_it_on_once_more(manifest, tmp_path):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    code += "from speechlmm_train.cli.main import main; main()"
    out = tmp_path / "out"
    overrides = [*TINY, f"data.train=[{manifest}]", f"training.output_dir={out}", "training.max_steps=100000"]
    overrides += ["training.save_steps=3", "training.save_total_limit=2", "training.report_to=none"]
    command = [sys.executable, "-c", code, "run", *overrides, "--no-progress"]
    with (tmp_path / "shown").open("wb") as shown:
        process = subprocess.Popen(command, stdout=shown, stderr=shown, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("checkpoint-*")):
            assert process.poll() is None, (tmp_path / "shown").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    last = max(int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*"))
    left = f"interrupted; the last checkpoint is checkpoint-{last}, and --resume goes on from there"
    told = (tmp_path / "shown").read_text()
    assert told.endswith(f"\nerror: {left}\n")
    assert told.count("interrupted") == 1
    assert "Traceback" not in told
    state = json.loads((out / "launch" / "state.json").read_text())
    assert (state["state"], state["exit_code"], state["reason"]) == ("failed", 130, left)


def test_an_adapter_that_does_not_reach_the_width(capsys, manifest, tmp_path):
    given = (*TINY[::2], "model/audio_adapter=identity", f"data.train=[{manifest}]")
    code, _, err = call(capsys, "plan", *given, f"training.output_dir={tmp_path / 'o'}", "training.max_steps=1")
    assert code == 2
    assert "gives frames of width 32, but model.text_decoder takes 64" in err


def test_faults_in_a_manifest_have_line_numbers(capsys, manifest, tmp_path):
    with manifest.open("a") as file:
        file.write('{"audio": "none.wav", "text": "x", "task": "asr"}\nnot json\n{"audio": "0.wav", "task": "asr"}\n')
    given = (*TINY, f"data.train=[{manifest}]", f"training.output_dir={tmp_path / 'o'}", "training.max_steps=1")
    code, _, err = call(capsys, "run", *given, "--no-progress")
    assert code == 2
    for line in (5, 6, 7):
        assert f"train.jsonl:{line}" in err
    assert not (tmp_path / "o").exists()


def test_a_plan_tells_faults_in_the_data_as_a_run_does(capsys, manifest, tmp_path):
    given = [*TINY, f"training.output_dir={tmp_path / 'o'}", "training.max_steps=1"]
    code, out, _ = call(capsys, "plan", *given, f"data.train=[{manifest},{tmp_path / 'nowhere.jsonl'}]")
    assert code == 0
    (line,) = (line for line in out.splitlines() if "mixture" in line)
    assert line == f"the mixture is not shown, as these data are not there: {tmp_path / 'nowhere.jsonl'}"
    with manifest.open("a") as file:
        file.write("not json\n")
    asked = [*given, f"data.train=[{manifest}]"]
    expected = call(capsys, "run", *asked, "--no-progress")
    found = call(capsys, "plan", *asked)
    assert found[0] == expected[0] == 2
    assert found[2] == expected[2]
    assert found[2].startswith("error: 1 fault in the data; correct it and start again\nerror: ")


def test_a_model_path_that_is_none(capsys, manifest, tmp_path):
    code, _, err = call(capsys, "evaluate", "--model-path", tmp_path / "no", manifest)
    assert (code, err.count("\n")) == (2, 1)
    assert "no checkpoint at" in err


def test_wandb_that_is_not_installed(capsys, manifest, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    given = (*TINY, f"data.train=[{manifest}]", f"training.output_dir={tmp_path / 'o'}", "training.max_steps=1")
    code, _, err = call(capsys, "run", *given, "training.report_to=[wandb]", "--no-progress")
    assert code == 2
    assert "pip install 'speechlmm-train[wandb]'" in err
    assert not (tmp_path / "o").exists()


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    import sys
    from types import SimpleNamespace

    from speechlmm_train.trainer.callbacks import open_sinks

    calls = []

    def init(**kwargs):
        calls.append(kwargs)
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    named = {"training": {"wandb_project": "mine", "run_name": "it"}}
    for first_step, config in ((0, {}), (5, named)):
        for sink in open_sinks(["wandb"], tmp_path, first_step=first_step, config=config):
            sink.close()
    first, second = calls
    assert (first["project"], first["name"]) == ("speechlmm", tmp_path.name)
    assert (second["project"], second["name"]) == ("mine", "it")
    assert first["id"] == second["id"]
    assert len(first["id"]) == 8
    assert second["resume"] == "allow"

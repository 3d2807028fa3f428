"""Evaluating saved models: the same texts everywhere, going on after a kill, and what is wrong in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
import soundfile
import torch
import yaml

from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_serve.cli import main as serve
from speechlmm_train.cli import main as train
from speechlmm_train.compose import compose_config
from speechlmm_train.run import build_model

TINY = (
    "model/audio_encoder=tiny_whisper_unrestricted",
    "model/audio_adapter=tiny_mlp",
    "model/text_decoder=tiny_llama",
)
SECONDS = (1.3, 0.4, 2.2, 0.9, 1.7, 0.6, 3.1, 0.5, 1.1)
TOKENS = 12


def call(capsys, program, *argv):
    with pytest.raises(SystemExit) as caught:
        program([str(part) for part in argv])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


@pytest.fixture(scope="module")
def data(tmp_path_factory, one_thread):
    """Clips of noise and tones, a manifest and a specification."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    lines = []
    for i, seconds in enumerate(SECONDS):
        samples = np.arange(int(seconds * 16_000))
        sound = generator.uniform(0.02, 0.3) * generator.standard_normal(len(samples))
        sound += 0.4 * np.sin(2 * np.pi * generator.uniform(100, 4000) / 16_000 * samples)
        soundfile.write(folder / f"{i}.wav", sound.clip(-1, 1).astype("float32"), 16_000)
        line = {"audio": f"{i}.wav", "text": f"word {i}", "task": "asr", "language": "en", "id": f"clip-{i}"}
        lines.append(json.dumps(line))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "spec.yaml").write_text(
        yaml.safe_dump({"test": [{"type": "jsonl", "path": "clips.jsonl", "task": "asr", "name": "clips"}]})
    )
    return folder


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, data):
    """A random model whose answers depend on what it hears."""
    folder = tmp_path_factory.mktemp("model")
    given = [*TINY, f"data.train=[{data / 'clips.jsonl'}]", f"training.output_dir={folder}", "training.max_steps=1"]
    config = compose_config("pretrain", given).config
    processor = SpeechLMMProcessor.from_config(config.model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build_model(config, None)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    save_model(model, processor, folder / "model")
    return folder / "model"


def texts_of(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["id"]: row["text"] for row in rows}


def test_texts_are_the_same_everywhere(capsys, data, model_path, tmp_path):
    out = tmp_path / "run"
    given = (*TINY, f"data.train=[{data / 'clips.jsonl'}]", f"data.eval=[{data / 'clips.jsonl'}]")
    settings = {
        "output_dir": out,
        "pretrained_checkpoint": model_path,
        "max_steps": 1,
        "learning_rate": 1e-4,
        "eval_steps": 1,
        "eval_max_new_tokens": TOKENS,
        "report_to": "[]",
    }
    code, _, err = call(
        capsys, train, "run", *given, *(f"training.{k}={v}" for k, v in settings.items()), "--no-progress"
    )
    assert code == 0, err
    expected = texts_of(out / "evaluations" / "step-1.jsonl")
    assert len(set(expected.values())) > len(SECONDS) // 2, "the answers tell clips apart"
    common = ("--model-path", out, "--max-new-tokens", TOKENS)
    backwards = tmp_path / "backwards.jsonl"
    lines = (data / "clips.jsonl").read_text().splitlines()
    backwards.write_text("".join(line.replace('"audio": "', f'"audio": "{data}/') + "\n" for line in lines[::-1]))
    for number, arguments in enumerate(
        [
            (data / "clips.jsonl",),
            (data / "clips.jsonl", "--batch-size", 1),
            (backwards, "--batch-size", 4),
            ("--dataset-config", data / "spec.yaml"),
            (*given, f"training.output_dir={out}", "training.max_steps=1", "--split", "eval"),
        ]
    ):
        folder = tmp_path / f"evaluation-{number}"
        code, _, err = call(capsys, train, "evaluate", *common, *arguments, "--output-dir", folder)
        assert code == 0, err
        assert texts_of(folder / "predictions.jsonl") == expected
    for number, arguments in enumerate(
        [
            ("--task", "asr", "--audios-file-path", data / "clips.jsonl"),
            ("--task", "asr", "--audios-file-path", backwards, "--batch-size", 2),
            ("--dataset-config", data / "spec.yaml"),
        ]
    ):
        file = tmp_path / f"infer-{number}.jsonl"
        code, _, err = call(capsys, serve, "infer", *common, *arguments, "--output", file)
        assert code == 0, err
        assert texts_of(file) == expected


def test_what_an_evaluation_writes(capsys, data, model_path, tmp_path):
    argv = ("--model-path", model_path, "--max-new-tokens", 4, "--output-dir", tmp_path / "e", "--dataset-config")
    code, out, err = call(capsys, train, "evaluate", *argv, data / "spec.yaml", "--limit", 3, "--worst", 2)
    assert code == 0, err
    assert "| clips" in out
    names = {path.name for path in (tmp_path / "e").iterdir()}
    assert names == {"predictions.jsonl", "predictions.about.json", "report.json", "report.md", "report.html"}
    rows = [json.loads(line) for line in (tmp_path / "e" / "predictions.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"{rows[0]['dataset']}/clip-{i}" for i in range(3)]
    first = rows[0]
    assert (first["references"], first["task"], first["metrics"]) == (["word 0"], "asr", ["wer", "cer"])
    assert first["media"][0]["path"] == str(data / "0.wav")
    assert first["duration"] == pytest.approx(SECONDS[0], abs=1e-3)
    assert first["prompt"]
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert report["media_seconds"] == pytest.approx(sum(SECONDS[:3]), abs=0.01)
    assert report["real_time_factor"] > 0
    assert report["inverse_real_time_factor"] == pytest.approx(1 / report["real_time_factor"], rel=0.01)
    page = (tmp_path / "e" / "report.html").read_text()
    assert page.count("<article>") == page.count("data:audio/flac") == 2
    code, out, _ = call(capsys, train, "score", tmp_path / "e", "--json")
    assert json.loads(out) == report, "scoring again gives the same report"
    code, _, err = call(capsys, train, "evaluate", *argv, data / "spec.yaml", "--limit", 3)
    assert (code, err.count("\n")) == (2, 1)
    assert "--resume" in err


KILLED = """
import os, signal, sys
from speechlmm_train.cli import main
from speechlmm_train.evaluate import run

def killed(*args, predict=run.predict, **kwargs):
    for number, prediction in enumerate(predict(*args, **kwargs)):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield prediction

run.predict = killed
main(sys.argv[1:])
"""


def test_an_evaluation_goes_on_after_a_kill(capsys, data, model_path, tmp_path):
    out = tmp_path / "e"
    argv = ["evaluate", "--model-path", model_path, "--output-dir", out, "--batch-size", 1, data / "clips.jsonl"]
    slow = [*argv, "--max-new-tokens", 8]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SPEECHLMM_CACHE": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, slow)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    file = out / "predictions.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    assert len(whole) == 3, "what came before the kill is there"
    file.write_bytes(b"".join(whole) + b'{"key": "torn')
    code, _, err = call(capsys, train, *slow[:-1], 3, "--resume")
    assert (code, err.count("\n")) == (2, 1)
    assert "its options.max_new_tokens was 8, not 3" in err
    other = [part if part is not model_path else data for part in slow]
    assert call(capsys, train, *other, "--resume")[0] == 2
    code, _, err = call(capsys, train, *slow, "--resume")
    assert code == 0, err
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"clip-{i}" for i in range(len(SECONDS))]
    kept = [json.loads(line) for line in whole]
    assert all(one in rows for one in kept), "what was there stays"
    manifest = data / "clips.jsonl"
    content = manifest.read_text()
    try:
        manifest.write_text(content.replace("word 8", "world 8"))
        code, _, err = call(capsys, train, *slow, "--resume")
    finally:
        manifest.write_text(content)
    assert (code, err.count("\n")) == (2, 1)
    assert "was made from other data (its 'references' is not the same)" in err


def test_a_model_that_cannot_be_loaded_costs_no_earlier_evaluation(capsys, data, model_path, tmp_path):
    argv = ("--max-new-tokens", 2, "--output-dir", tmp_path / "e", data / "clips.jsonl", "--limit", 2)
    assert call(capsys, train, "evaluate", "--model-path", model_path, *argv)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    broken = tmp_path / "broken"
    shutil.copytree(model_path, broken)
    (broken / "model.safetensors").write_bytes(b"torn")
    code, _, err = call(capsys, train, "evaluate", "--model-path", broken, *argv, "--overwrite")
    assert (code, "Traceback" in err) == (2, False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()} == before


def test_an_evaluation_that_begins_leaves_no_older_report(capsys, data, model_path, tmp_path, monkeypatch):
    argv = ("--max-new-tokens", 2, "--output-dir", tmp_path / "e", data / "clips.jsonl", "--limit", 2)
    assert call(capsys, train, "evaluate", "--model-path", model_path, *argv)[0] == 0

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("speechlmm_train.evaluate.run.predict", killed)
    assert call(capsys, train, "evaluate", "--model-path", model_path, *argv, "--overwrite")[0] == 130
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"predictions.jsonl", "predictions.about.json"}
    assert (tmp_path / "e" / "predictions.jsonl").read_bytes() == b""


def test_metrics_are_checked_in_every_language_before_a_model_is_loaded(capsys, data, model_path, tmp_path):
    row = {"audio": "0.wav", "text": "ein Wort", "task": "st", "source_language": "en", "id": "a"}
    lines = [json.dumps({**row, "target_language": language, "id": language}) for language in ("de", "de", "ja")]
    (data / "translated.jsonl").write_text("\n".join(lines) + "\n")
    argv = ("--model-path", model_path, "--max-new-tokens", 2, "--output-dir", tmp_path / "e")
    code, out, err = call(capsys, train, "evaluate", *argv, data / "translated.jsonl", "--json")
    assert code == 0, err
    assert {"tok:13a", "tok:char"} <= set(
        json.loads(out)["metrics"]["bleu"]["signature"].replace(" / ", "|").split("|")
    )
    code, _, err = call(
        *(capsys, train, "evaluate", *argv[:-1], tmp_path / "f", data / "translated.jsonl"),
        *("--metric", "bleu:tokenize=ja-mecab"),
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'sacrebleu[ja]'" in err
    assert not (tmp_path / "f" / "predictions.jsonl").exists()


def test_the_seconds_of_the_rows_are_those_of_the_generation(capsys, data, model_path, tmp_path):
    argv = ("--model-path", model_path, "--max-new-tokens", 8, "--output-dir", tmp_path / "e", "--batch-size", 3)
    began = time.perf_counter()
    assert call(capsys, train, "evaluate", *argv, data / "clips.jsonl")[0] == 0
    took = time.perf_counter() - began
    rows = [json.loads(line) for line in (tmp_path / "e" / "predictions.jsonl").read_text().splitlines()]
    by_length = sorted(rows, key=lambda row: -row["duration"])
    for batch in (by_length[:3], by_length[3:6], by_length[6:]):
        assert len({row["seconds"] for row in batch}) == 1, "a batch's time is shared by its rows"
        assert batch[0]["seconds"] > 0
    assert sum(row["seconds"] for row in rows) < took
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    media, seconds = sum(row["duration"] for row in rows), sum(row["seconds"] for row in rows)
    assert report["real_time_factor"] == pytest.approx(seconds / media, abs=1e-6)


def test_what_is_wrong_is_one_line(capsys, data, model_path, tmp_path, monkeypatch):
    def refused(*arguments):
        argv = ("--model-path", model_path, "--max-new-tokens", 2, "--output-dir", tmp_path / "out")
        code, _, err = call(capsys, train, "evaluate", *argv, *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        return err

    spec = ("--dataset-config", data / "spec.yaml")
    assert "names nothing with the destination 'guard'" in refused(*spec, "--split", "guard")
    assert "did you mean 'clips'?" in refused(*spec, "--dataset", "clip")
    assert "provides the metric 'bleurt'" in refused(*spec, "--metric", "bleurt")
    assert "got none" in refused()
    assert "manifests and --dataset-config" in refused(*spec, data / "clips.jsonl")
    assert "--split chooses among" in refused(data / "clips.jsonl", "--split", "eval")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert "pip install unbabel-comet" in refused(*spec, "--metric", "comet")
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr("speechlmm_core.tasks.asr.config.ASRTaskConfig.metrics", ("wer", "werr"))
        assert "task 'asr' is scored with 'werr'" in refused(*spec)
    (tmp_path / "empty.jsonl").write_text("")
    code, _, err = call(capsys, train, "evaluate", "--model-path", model_path, tmp_path / "empty.jsonl")
    assert code == 2
    assert "empty.jsonl' has no lines" in err
    entry = {
        "type": "jsonl",
        "path": "clips.jsonl",
        "name": "clips",
        "task": {"type": "asr", "prompt_languages": ["xx"]},
    }
    (data / "no_prompts.yaml").write_text(yaml.safe_dump({"test": [entry]}))
    assert "xx" in refused("--dataset-config", data / "no_prompts.yaml")
    entry = {"type": "jsonl", "path": "clips.jsonl", "name": "clips", "task": "asr", "min_duration": 100}
    (data / "none_left.yaml").write_text(yaml.safe_dump({"test": [entry]}))
    code, _, err = call(
        capsys, train, "evaluate", "--model-path", model_path, "--dataset-config", data / "none_left.yaml"
    )
    assert code == 2
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_examples_without_a_reference_are_answered_and_told(capsys, data, model_path, tmp_path):
    user = {"role": "user", "content": [{"type": "audio", "path": str(data / "1.wav")}, {"type": "text", "text": "?"}]}
    rows = [{"messages": [user, {"role": "assistant", "content": text}], "id": name} for name, text in ("ab", "b ")]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ("--model-path", model_path, "--max-new-tokens", 2, "--output-dir", tmp_path / "e", tmp_path / "chats.jsonl")
    code, out, err = call(capsys, train, "evaluate", *argv, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["examples"], report["without_reference"], report["metrics"]["wer"]["answers"]) == (2, 1, 1)
    assert "1 of 2 examples of 'chats' have no answer to compare with" in err


def test_the_page_shows_videos(tmp_path):
    from speechlmm_train.evaluate.playable import playable

    with av.open(str(tmp_path / "v.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    found = playable({"type": "video", "path": str(tmp_path / "v.mp4"), "start": 1, "end": 2.5}, tmp_path)
    assert found.kind == "video"
    assert found.source.endswith(".mp4#t=1,2.5")
    assert (tmp_path / found.source.partition("#")[0]).read_bytes() == (tmp_path / "v.mp4").read_bytes()

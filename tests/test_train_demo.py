"""The demo from its command to its report, on a corpus and a schedule that are too small to learn anything."""

import contextlib
import io
import json
import random
import re
import shlex
from pathlib import Path

import pytest
import torch

from speechlmm_core.data.example import Example
from speechlmm_train.cli import main
from speechlmm_train.cli.commands import COMMANDS
from speechlmm_train.demo.denoise import DenoiseTaskConfig
from speechlmm_train.demo.recipe import shuffle_audio
from speechlmm_train.demo.report import DemoReport, save_learning_curve, table

SMALL = ("--num-train", "32", "--num-test", "6", "stages.0.max_steps=2", "stages.1.max_steps=3", "--no-progress")
REPORTED = {"wer", "wer_unseen_voice", "wer_shuffled_audio", "cer", "seconds", "peak_rss_bytes", "steps"}
PNG = b"\x89PNG\r\n\x1a\n"


def demo(*argv):
    """Exit code, and what was printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main(["demo", *map(str, argv)])
    return caught.value.code, out.getvalue(), err.getvalue()


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder that the demo has filled, and what it printed."""
    folder = tmp_path_factory.mktemp("a demo") / "out"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEECHLMM_CACHE", str(tmp_path_factory.mktemp("cache")))
        code, out, err = demo("--output-dir", folder, *SMALL)
        assert code == 0, err
        yield folder, out
    torch.set_num_threads(threads)


def test_the_output_folder_is_the_runs(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    expected = {"corpus", "tokenizer", "config.yaml", "metrics.jsonl", "model", "report.json", "learning_curve.png"}
    assert expected <= names
    assert {f"{name}.jsonl" for name in ("test", "unseen", "shuffled")} == set(files(folder / "evaluations"))
    assert (folder / "learning_curve.png").read_bytes().startswith(PNG)


def test_the_report(finished):
    folder, out = finished
    report = json.loads((folder / "report.json").read_text())
    assert report.keys() >= REPORTED
    assert report["steps"] == 5
    assert report["seed"] == 0
    assert 0 < report["peak_rss_bytes"] < 2**40
    for name in ("wer", "wer_unseen_voice", "wer_shuffled_audio", "cer"):
        assert report[name] >= 0
    lines = (folder / "evaluations" / "test.jsonl").read_text().splitlines()
    assert len(lines) == 6
    for name, value in table(DemoReport(**report)):
        assert name in out
        assert value in out
    assert out.count("said:") == 3


def test_the_corpus_holds_the_test_sets_apart(finished):
    folder, _ = finished
    texts = {
        name: [json.loads(line)["text"] for line in (folder / "corpus" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test", "test_unseen", "text", "text_denoise", "test_shuffled")
    }
    assert (len(texts["train"]), len(texts["test"]), len(texts["test_unseen"])) == (32, 6, 2)
    assert texts["text_denoise"] == texts["text"]
    assert texts["test_shuffled"] == texts["test"]
    assert not {*texts["test"], *texts["test_unseen"]} & {*texts["train"], *texts["text"]}


def test_every_word_is_one_token(finished):
    from transformers import AutoTokenizer

    folder, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    for line in (folder / "corpus" / "train.jsonl").read_text().splitlines():
        text = json.loads(line)["text"]
        words = len(text.split()) + text.count("'")  # what follows an apostrophe is a piece of its own
        assert len(tokenizer.encode(text, add_special_tokens=False)) == words
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_next_commands_work(finished, monkeypatch, tmp_path, capsys):
    from speechlmm_serve.cli import main as serve

    folder, out = finished
    commands = [shlex.split(line)[2:] for line in out.splitlines() if line.startswith("  uv run ")]
    by_name = {tuple(command[:2]): command for command in commands}
    monkeypatch.chdir(tmp_path)
    chat, infer = by_name["speechlmm-serve", "chat"], by_name["speechlmm-serve", "infer"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(SystemExit) as caught:
        serve([*chat[1:], "--max-new-tokens", "3"])
    assert caught.value.code == 0, capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        serve([*infer[1:], "--max-new-tokens", "3"])
    assert caught.value.code == 0, capsys.readouterr().err
    assert len((tmp_path / "transcripts.jsonl").read_text().splitlines()) == 6
    with pytest.raises(SystemExit) as caught:
        main(by_name["speechlmm-train", "plan"][1:])
    assert caught.value.code == 0, capsys.readouterr().err
    assert ["tensorboard", "--logdir", str(folder)] in commands
    assert list((folder / "tensorboard").iterdir())


def readme_commands():
    """The commands of the README that come after the demo, and the Python that loads a model."""
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    shell = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    lines = [line for line in shell.splitlines() if line.startswith("uv run speechlmm-")]
    load, _ = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[2:] for line in lines], load


def test_the_readmes_commands_work_after_the_demo(finished, monkeypatch, tmp_path, capsys):
    from speechlmm_serve.cli import main as serve

    commands, load = readme_commands()
    kinds = {tuple(command[:2]) for command in commands}
    assert kinds >= {("speechlmm-serve", name) for name in ("chat", "infer")}
    assert kinds >= {("speechlmm-train", name) for name in COMMANDS if name != "demo"}, "each is shown"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(finished[0])
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    monkeypatch.setenv("PRETRAINED_COMPONENTS", str(tmp_path / "pretrained"))
    fetched: list[str] = []  # its own tests fetch from a hub on the loopback
    monkeypatch.setattr(
        "speechlmm_train.download.download.download", lambda wanted, *_, **__: fetched.append(wanted.name)
    )
    imported: list[str] = []  # its own tests take over checkpoints of the first version's layout
    importing = "speechlmm_train.import_checkpoint.importing"
    monkeypatch.setattr(f"{importing}.plan_import", lambda first, *_, **__: imported.append(str(first)))
    monkeypatch.setattr(f"{importing}.import_checkpoint", lambda first, *_, **__: imported.append(str(first)))
    shorter = {"run": ["training.max_steps=1", "--no-progress"], "infer": ["--max-new-tokens", "2"]}
    shorter |= {"evaluate": ["--max-new-tokens", "2"], "chat": ["--max-new-tokens", "2"]}
    for program, name, *argv in commands:
        with pytest.raises(SystemExit) as caught:
            (serve if program == "speechlmm-serve" else main)([name, *argv, *shorter.get(name, [])])
        assert caught.value.code == 0, (name, capsys.readouterr().err)
    assert imported == ["checkpoints/speechlmm-pretrain-audio-paper_1a"] * 2
    assert fetched == ["openai/whisper-large-v3", "meta-llama/Llama-3.2-1B-Instruct"]
    exec(compile(load, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_a_folder_in_use_is_left_alone(finished):
    folder, _ = finished
    before = files(folder)
    code, _, err = demo("--output-dir", folder, *SMALL)
    assert (code, err.count("\n")) == (2, 1)
    assert "--resume" in err
    code, _, err = demo("--output-dir", folder, *SMALL, "--resume", "--seed", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert "seed 0 and not 1" in err
    code, _, err = demo("--output-dir", folder, *SMALL, "--resume", "--num-train", 33)
    assert (code, err.count("\n")) == (2, 1)
    assert "num_train 32 and not 33" in err
    code, _, err = demo("--output-dir", folder, *SMALL, "--resume", "training.seed=3")
    assert code == 2
    assert "--seed" in err
    assert files(folder) == before


def test_resume_takes_corpus_and_tokenizer_as_they_are(finished, monkeypatch):
    folder, _ = finished

    def refuse(*_, **__):
        raise AssertionError("there is nothing to learn anew")

    monkeypatch.setattr("speechlmm_train.demo.recipe.train_tokenizer", refuse)
    before = files(folder)
    code, out, err = demo("--output-dir", folder, *SMALL, "--resume")
    assert code == 0, err
    after = files(folder)
    for name in before:
        if name not in ("report.json", "learning_curve.png", "launch/state.json"):
            assert after[name] == before[name], name
    then, now = (json.loads(found["launch/state.json"]) for found in (before, after))
    changed = {key for key in then.keys() | now.keys() if then.get(key) != now.get(key)}
    assert now["state"] == "finished"
    assert changed <= {"started", "ended"}, "only when it was done"
    assert "said:" in out


@pytest.mark.slow
def test_overwrite_keeps_the_corpus(finished, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "corpus" / "audio").rglob("*.flac")}
    (folder / "mine.txt").write_text("keep")
    code, _, err = demo("--output-dir", folder, *SMALL, "--overwrite")
    assert code == 0, err
    assert stamps == {path: path.stat().st_mtime_ns for path in (folder / "corpus" / "audio").rglob("*.flac")}
    assert (folder / "mine.txt").read_text() == "keep"


def test_shuffled_audio_is_always_another_sentences():
    lines = [{"id": str(i), "audio": f"{i}.flac", "duration": float(i), "text": f"sentence {i}"} for i in range(9)]
    shuffled = shuffle_audio(lines, seed=3)
    assert [line["text"] for line in shuffled] == [line["text"] for line in lines]
    assert all(new["audio"] != old["audio"] for new, old in zip(shuffled, lines, strict=True))
    assert sorted(line["audio"] for line in shuffled) == [line["audio"] for line in lines]
    assert all(line["audio"] == f"{line['duration']:.0f}.flac" for line in shuffled)


def test_denoising_repeats_words_in_order_and_nothing_else():
    task = DenoiseTaskConfig()
    example = Example(task="denoise", text="turn on the lamp", source_language="en")
    for draw in random.Random(0).sample(range(2**31), 50):
        question, answer = task.messages(example, draw=draw)
        frames, prompt = (item["text"] for item in question.content)
        assert prompt in task.prompts("en")
        assert answer.content[0]["text"] == example.text
        words = frames.replace(task.blank, " ").split()
        assert all(1 <= words.count(word) <= task.max_repeats for word in example.text.split())
        assert list(dict.fromkeys(words)) == example.text.split()
    assert task.messages(example, draw=1) == task.messages(example, draw=1)
    assert len(task.messages(example, with_answer=False)) == 1
    assert task.check(Example(task="denoise")) is not None


def test_a_learning_curve_without_a_figure(tmp_path):
    save_learning_curve([], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


def test_a_demo_holds_its_folder(tmp_path, capsys):
    from speechlmm_train.launch.claim import claimed

    out = tmp_path / "out"
    with claimed(out, name="another"), pytest.raises(SystemExit) as caught:
        main(["demo", "--output-dir", str(out)])
    assert caught.value.code == 2
    assert "is running" in capsys.readouterr().err
    assert {entry.name for entry in out.iterdir()} == {"launch"}

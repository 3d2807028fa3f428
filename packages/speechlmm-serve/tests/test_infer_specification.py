"""Inference over what a dataset specification names."""

from __future__ import annotations

import json

import pytest

from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions, Request
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_serve.cli.main import main
from speechlmm_serve.infer.spec_inputs import open_inputs

SPEC = """
datasets:
  - type: jsonl
    path: "{partition}.jsonl"
    name: spoken
    task: {type: st, prompt_languages: [de], num_few_shots: 1}
    languages: [en-it]
    partitions: {dev: {}, held: {destination: test}}
  - {type: jsonl, path: dev.jsonl, name: heard, task: ASR, destination: eval}
"""


@pytest.fixture
def spec(tmp_path, clips, monkeypatch):
    folder = tmp_path / "conf" / "datasets"
    folder.mkdir(parents=True)
    lines = [{"audio": str(clip), "text": clip.stem} for clip in sorted(clips.rglob("*.wav"))[:4]]
    for name, part in (("dev", lines), ("held", lines[:3])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    (folder / "mine.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return folder / "mine.yaml"


@pytest.fixture
def call(capsys, toy_model_path):
    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["infer", "--model-path", str(toy_model_path), "--max-new-tokens", "8", *map(str, arguments)])
        return caught.value.code, *capsys.readouterr()

    return run


def test_the_requests_are_those_of_the_dataset(call, spec, toy_model_path):
    code, out, err = call("--dataset-config", "mine")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    (one,) = open_spec(read_spec(spec), base=spec.parent, destinations={"test"})
    chats = [one.examples.chat(index, with_answer=False) for index in range(len(one.examples))]
    assert "ins Italienische" in str(chats[0][-1].content) or "Italienisch" in str(chats[0][-1].content)
    assert [len(chat) for chat in chats] == [3, 3, 3]  # a shown example, its answer, and the question
    engine = InferenceEngine(
        SpeechLMM.from_pretrained(toy_model_path), SpeechLMMProcessor.from_pretrained(toy_model_path)
    )
    answers = engine.run((Request(chat, 0) for chat in chats), options=GenerationOptions(max_new_tokens=8))
    assert [line["text"] for line in lines] == [answer.text for answer in answers]
    assert [line["key"] for line in lines] == [f"spoken/held/en-it/{number}" for number in (1, 2, 3)]
    assert {
        name: lines[0][name] for name in ("dataset", "id", "task", "source_language", "target_language", "reference")
    } == {
        **{"dataset": "spoken/held/en-it", "id": "1", "task": "st"},
        **{"source_language": "en", "target_language": "it", "reference": one.examples[0].text},
    }
    assert lines[0]["path"] == one.examples[0].media["audio"]["path"]


def test_parts_of_a_specification(spec):
    assert len(open_inputs("mine")) == 3
    assert [one.dataset for one in open_inputs(str(spec), split="eval")] == ["spoken/dev/en-it"] * 3 + ["heard"] * 3
    (first, *_) = open_inputs("mine", split="eval", datasets=["heard"])
    assert (first.name, first.example.task) == ("heard/1", "asr")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset-config", "mien"], "there is no dataset specification 'mien'; did you mean 'mine'?"),
        (["--dataset-config", "mine", "--dataset", "spokn"], "did you mean 'spoken'?"),
        (
            ["--dataset-config", "mine", "--split", "guard"],
            "names nothing with the destination 'guard' (there is: eval, test)",
        ),
        (["--dataset-config", "mine", "--task", "asr"], "--task: the specification says that"),
        (["--audios-file-path", "x", "--split", "test"], "name one with --dataset-config"),
    ],
)
def test_what_does_not_go_together(call, spec, arguments, expected):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert "Traceback" not in err


def test_resuming(call, spec, tmp_path):
    out = tmp_path / "lines.jsonl"
    assert call("--dataset-config", "mine", "--output", out)[0] == 0
    before = out.read_text().splitlines()
    marked = json.dumps({**json.loads(before[0]), "text": "kept"})
    out.write_text(f"{marked}\n")
    assert call("--dataset-config", "mine", "--output", out, "--resume")[0] == 0
    assert out.read_text().splitlines() == [marked, *before[1:]]
    code, _, err = call("--audios-file-path", json.loads(before[0])["path"], "--output", out, "--resume")
    assert code == 2
    assert "is of another call" in err

"""`docs/how-to/add-a-dataset.md`, on a corpus as it describes: the specification, and every command of the page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.find import find_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_serve.cli.main import main as serve
from speechlmm_train.cli import main as train
from speechlmm_train.prepare.report import REPORT

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "add-a-dataset.md").read_text(encoding="utf-8")
RATE = 8000
SECONDS = (1.0, 1.0, 1.0, 25.0)
TINY = [
    *("model/audio_encoder=tiny_whisper_unrestricted", "model/audio_adapter=tiny_mlp", "model/text_decoder=tiny_llama"),
    *("training.output_dir=runs/first", "training.max_steps=1", "training.report_to=[]"),
]
"""What the page leaves to the reader by an ellipsis."""


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's corpus and specification, with the working folder beside `conf`."""
    (block,) = re.findall(r"```yaml\n# conf/datasets/kitchen.yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(block.splitlines()) <= 12
    corpus = tmp_path / "data" / "kitchen"
    (corpus / "wav").mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, round(RATE * SECONDS[-1])))
    for partition, sound in zip(("train", "dev"), noise, strict=True):
        rows = ["file,said,seconds,who"]
        for number, seconds in enumerate(SECONDS):
            name = f"{partition}{number}.wav"
            soundfile.write(corpus / "wav" / name, sound[number : number + round(seconds * RATE)], RATE)
            rows.append(f'{name},"{"turn on" if number else "stop"}",{seconds},anna')
        (corpus / f"{partition}.csv").write_text("\n".join(rows) + "\n")
    folder = tmp_path / "conf" / "datasets"
    folder.mkdir(parents=True)
    (folder / "kitchen.yaml").write_text(block)
    monkeypatch.setenv("DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("SPEECHLMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return corpus


def test_the_specification_is_read_as_the_page_says(kitchen: Path, tmp_path: Path) -> None:
    path = find_spec("kitchen", tmp_path)
    found, dev = open_spec(read_spec(path), base=path.parent)
    assert (found.name, found.destination, dev.name, dev.destination) == (
        *("kitchen/train/en", "train"),
        *("kitchen/dev/en", "eval"),
    )
    assert found.dropped == {"longer than 20 s": 1, "fewer than 2 words": 1}
    assert [example.text for example in found.examples] == ["turn on", "turn on"]
    assert len(dev.examples) == 4
    example = found.examples[0]
    assert example.media["audio"]["path"] == str(kitchen / "wav" / "train1.wav")
    assert (example.speaker, example.source_language, example.duration) == ("anna", "en", 1.0)


def test_the_commands_of_the_page_run_in_a_row(
    kitchen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    outputs: dict[str, str] = {}
    for line in block.splitlines():
        *launcher, program, name = (words := shlex.split(line, comments=True))[:4]
        arguments = words[4:]
        assert launcher == ["uv", "run"]
        if "…" in arguments:
            at = arguments.index("…")
            arguments[at : at + 1] = TINY
        if name in ("evaluate", "infer"):
            arguments += ["--max-new-tokens", "3"]  # for speed
        with pytest.raises(SystemExit) as caught:
            {"speechlmm-train": train, "speechlmm-serve": serve}[program]([name, *arguments])
        outputs[name], err = capsys.readouterr()
        assert caught.value.code == 0, (line, err)
    assert list(outputs) == ["prepare", "inspect", "run", "evaluate", "infer"]
    assert (tmp_path / "conf" / "datasets" / "kitchen.index" / REPORT).is_file()
    assert "turn on" in outputs["inspect"]
    lines = [json.loads(line) for line in outputs["infer"].splitlines()]
    assert [Path(line["path"]).name for line in lines] == [f"dev{number}.wav" for number in range(4)]

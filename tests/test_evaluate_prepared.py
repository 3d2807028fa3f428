"""An index changes nothing about what an evaluation counts: the same examples, and the same of them fail."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.cli import main
from speechlmm_train.compose import compose_config
from speechlmm_train.run import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = (
    "model/audio_encoder=tiny_whisper_unrestricted",
    "model/audio_adapter=tiny_mlp",
    "model/text_decoder=tiny_llama",
)
COUNT = 6
BROKEN = {"clip-1": "damaged", "clip-2": "missing", "clip-3": "cut off"}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    lines = []
    for number in range(COUNT):
        sound = np.random.default_rng(number).uniform(-0.1, 0.1, 8_000 + 800 * number)
        soundfile.write(tmp_path / f"{number}.flac", sound.astype(np.float32), 16_000)
        line = {"audio": f"{number}.flac", "text": f"word {number}", "language": "en", "id": f"clip-{number}"}
        lines.append(json.dumps(line) + "\n")
    (tmp_path / "clips.jsonl").write_text("".join(lines))
    (tmp_path / "1.flac").write_bytes(b"no sound")
    (tmp_path / "2.flac").unlink()
    (tmp_path / "3.flac").write_bytes((tmp_path / "3.flac").read_bytes()[:3_000])
    (tmp_path / "spec.yaml").write_text("test:\n- {type: jsonl, path: clips.jsonl, task: asr, name: clips}\n")
    return tmp_path / "spec.yaml"


def call(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(part) for part in argv])
    out, err = capsys.readouterr()
    return int(str(caught.value.code)), out, err


def test_an_index_leaves_an_evaluation_as_it_is(capsys: pytest.CaptureFixture[str], spec: Path, tmp_path: Path) -> None:
    given = [*TINY, "data.train=[none.jsonl]", f"training.output_dir={tmp_path / 'run'}", "training.max_steps=1"]
    config = compose_config("pretrain", given).config
    processor = SpeechLMMProcessor.from_config(config.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_model(build_model(config, None), processor, tmp_path / "model")
    seen = []
    for number in range(2):
        if number:
            code, out, _ = call(capsys, "prepare", spec, "--jobs", 0, "--no-progress")
            assert code == 0
            assert "6 rows, 6 used" in out
            assert "3 kept for evaluation" in out
        folder = tmp_path / f"evaluation-{number}"
        asked = ("--model-path", tmp_path / "model", "--dataset-config", spec, "--max-new-tokens", 4)
        code, out, err = call(capsys, "evaluate", *asked, "--output-dir", folder)
        assert code == 1, err
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        assert len(rows) == COUNT
        assert {row["id"] for row in rows if row["error"]} == set(BROKEN)
        shown = call(capsys, "inspect", spec, "--num-samples", COUNT, "--output-dir", tmp_path / f"shown-{number}")
        seen.append(({row["key"]: (row["error"], row["text"]) for row in rows}, shown[0], shown[1]))
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] == seen[1][1] == 1
    assert seen[0][2].replace("shown-0", "") == seen[1][2].replace("shown-1", "")

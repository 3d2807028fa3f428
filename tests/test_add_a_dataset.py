"""The specification in `docs/how-to/add-a-dataset.md`, on a corpus as it describes."""

from __future__ import annotations

import re
import wave
from pathlib import Path

from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.find import find_spec
from speechlmm_core.data.spec.open import open_spec

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "add-a-dataset.md"


def test_the_page_is_true(tmp_path: Path, monkeypatch) -> None:
    (block,) = re.findall(
        r"```yaml\n# conf/datasets/kitchen.yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(block.splitlines()) <= 12
    corpus = tmp_path / "kitchen"
    (corpus / "wav").mkdir(parents=True)
    for partition in ("train", "dev"):
        rows = ["file,said,seconds,who"]
        for number in range(4):
            name = f"{partition}{number}.wav"
            with wave.open(str(corpus / "wav" / name), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(b"\0\0" * 800)
            rows.append(f'{name},"{"turn on" if number else "stop"}",{25 if number == 3 else 0.1},anna')
        (corpus / f"{partition}.csv").write_text("\n".join(rows) + "\n")
    folder = tmp_path / "conf" / "datasets"
    folder.mkdir(parents=True)
    (folder / "kitchen.yaml").write_text(block)
    monkeypatch.setenv("DATA_HOME", str(tmp_path))
    path = find_spec("kitchen", tmp_path)
    train, dev = open_spec(read_spec(path), base=path.parent)
    assert (train.name, train.destination, dev.name, dev.destination) == (
        *("kitchen/train/en", "train"),
        *("kitchen/dev/en", "eval"),
    )
    assert train.dropped == {"longer than 20 s": 1, "fewer than 2 words": 1}
    assert [example.text for example in train.examples] == ["turn on", "turn on"]
    assert len(dev.examples) == 4
    example = train.examples[0]
    assert example.media["audio"]["path"] == str(corpus / "wav" / "train1.wav")
    assert (example.speaker, example.source_language, example.duration) == ("anna", "en", 0.1)

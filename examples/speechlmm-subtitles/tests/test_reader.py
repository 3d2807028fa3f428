"""The reader over a made folder."""

from pathlib import Path

import pytest
from speechlmm_subtitles.config import SubtitlesDatasetConfig

from speechlmm_core.errors import DataError
from speechlmm_core.interfaces.dataset import Selection

TALK = """1
00:00:00,000 --> 00:00:01,500
Good
morning.

2
00:00:01,500 --> 00:01:02,250
Bye.
"""


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "talk.srt").write_text(TALK, encoding="utf-8")
    return tmp_path


def test_each_subtitle_is_an_example(talks: Path) -> None:
    config = SubtitlesDatasetConfig(path=str(talks))
    examples = config.read(talks, Selection("train", "en"))
    assert config.partitions(talks) == ["train"]
    assert [(one.id, one.text) for one in examples] == [("talk-1", "Good morning."), ("talk-2", "Bye.")]
    recording = str(talks / "train" / "talk.wav")
    assert examples[1].media == {"audio": {"type": "audio", "path": recording, "start": 1.5, "end": 62.25}}
    assert examples[1].source_language == "en"
    assert examples.place(1).endswith("talk.srt:6")


def test_damage_is_named_with_its_place(talks: Path) -> None:
    (talks / "train" / "talk.srt").write_text("1\n00:00 --> x\nGood.\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"talk\.srt:1: expected a subtitle's number"):
        SubtitlesDatasetConfig(path=str(talks)).read(talks, Selection("train"))
    with pytest.raises(DataError, match="no subtitles"):
        SubtitlesDatasetConfig(path=str(talks)).read(talks, Selection("dev"))

"""OpenAssistant conversations and LRS2, made in their public layouts."""

from __future__ import annotations

import gzip
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from speechlmm_core.data.chats import chat_of
from speechlmm_core.errors import DataError
from speechlmm_core.media.video import VideoOptions, load_video_item
from speechlmm_train.readers import unpack


def message(name: str, role: str, text: str, quality: float | None = None, **more: Any) -> dict[str, Any]:
    labels = {"spam": {"value": 0.0, "count": 3}}
    if quality is not None:
        labels["quality"] = {"value": quality, "count": 3}
    return {"message_id": name, "role": role, "text": text, "lang": "en", "labels": labels, "replies": [], **more}


def trees() -> list[dict[str, Any]]:
    last = message("a4", "assistant", "You are welcome.", 0.5, rank=None)
    thanks = message("p3", "prompter", "Thanks!", replies=[last])
    hanging = message("p5", "prompter", "And then?")
    better = message("a2", "assistant", "Four.", 0.75, rank=0, replies=[thanks])
    worse = message("a1", "assistant", "Five.", 0.25, rank=1, replies=[hanging])
    gone = message("a0", "assistant", "Spam", 1.0, rank=2, deleted=True)
    first = message("p1", "prompter", "Two and two?", replies=[worse, gone, better])
    german = message("p9", "prompter", "Hallo", lang="de", replies=[message("a9", "assistant", "Guten Tag", lang="de")])
    return [{"message_tree_id": tree["message_id"], "tree_state": "ready_for_export", "prompt": tree} for tree in (
        first, german, message("p7", "prompter", "Nobody?"),
    )]  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
def test_oasst(made: Any, packed: bool) -> None:
    data = "".join(json.dumps(tree) + "\n" for tree in trees()).encode()
    name = "2023-04-12_oasst_ready.trees.jsonl"
    (made.root / f"{name}.gz").write_bytes(gzip.compress(data)) if packed else (made.root / name).write_bytes(data)
    found = made.examples("Oasst", task="MultiTurnTextInstruct")
    assert [(e.id, e.quality, e.source_language) for e in found] == [("a4", 0.5, "en"), ("a9", None, "de")]
    assert [(m.role, m.content[0]["text"]) for m in found[0].messages] == [
        ("user", "Two and two?"),
        ("assistant", "Four."),
        ("user", "Thanks!"),
        ("assistant", "You are welcome."),
    ]
    every = made.examples("oasst", task="multi_turn_text_instruct", threads="all")
    assert [(e.id, e.quality, len(e.messages)) for e in every] == [("a4", 0.5, 4), ("a1", 0.25, 2), ("a9", None, 2)]
    first = made.examples("oasst", task="TextInstruct", threads="all")
    assert [(e.instruction, e.text, e.quality, e.messages) for e in first] == [
        ("Two and two?", "Four.", 0.75, None),
        ("Two and two?", "Five.", 0.25, None),
        ("Hallo", "Guten Tag", None, None),
    ]
    (part,) = made.parts("oasst", task="multi_turn_text_instruct", languages=["en"], min_quality=0.4).values()
    assert ([e.id for e in part.examples], part.destination) == (["a4"], "train")
    assert dict(part.dropped) == {"another language": 1}


def test_what_is_wrong_with_oasst_is_one_line(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"holds no \*oasst\*_\{partition\}.trees.jsonl.gz or "):
        made.parts("oasst", task="text_instruct")
    path = made.text(
        "2023_oasst_ready.trees.jsonl", '{"prompt": {}}\n[\n{"prompt": {"role": "assistant", "message_id": 1}}\n'
    )
    with pytest.raises(DataError) as caught:
        made.parts("oasst", task="text_instruct")
    lines = str(caught.value).splitlines()
    assert ["jsonl:1: not a message tree" in lines[1], "jsonl:2: " in lines[2], "jsonl:3: message 1" in lines[3]] == [
        True
    ] * 3
    path.unlink()
    (made.root / "2023_oasst_ready.trees.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 99)[:20])
    with pytest.raises(DataError, match=r"trees.jsonl.gz: truncated or damaged .*; copy or download it again"):
        made.parts("oasst", task="text_instruct")
    monkeypatch.setattr(unpack, "PLAIN_BYTES", 1 << 20)
    (made.root / "2023_oasst_ready.trees.jsonl.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    with pytest.raises(DataError, match=r"trees.jsonl.gz: unpacks to more than 1 MiB"):
        made.parts("oasst", task="text_instruct")


def write_clip(path: Path, frames: int, seconds: float) -> None:
    """Writes grey frames at 25 a second with a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=25)
        video.width = video.height = 160
        video.pix_fmt = "yuv420p"
        sound = file.add_stream("aac", rate=16_000, layout="mono")
        for number in range(frames):
            grey = np.full((160, 160, 3), 16 * number % 256, np.uint8)
            file.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(video.encode())
        tone = (0.1 * np.sin(np.arange(round(seconds * 16_000)) * 0.05)).astype(np.float32)
        for start in range(0, len(tone), 1024):
            block = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16_000, start, Fraction(1, 16_000)
            file.mux(sound.encode(block))
        file.mux(sound.encode())


@pytest.mark.parametrize("top", ["", "mvlrs_v1/"])
def test_lrs2(made: Any, heard: Any, top: str) -> None:
    write_clip(made.root / f"{top}main/553/00001.mp4", 10, 0.4)
    write_clip(made.root / f"{top}pretrain/553/00009.mp4", 5, 0.2)
    made.text(f"{top}main/553/00001.txt", "Text:  WHEN YOU'RE COOKING CHIPS\nConf:  5\n")
    made.text(
        f"{top}pretrain/553/00009.txt",
        "Text:  AT HOME\nConf:  3\n\nWORD START END ASDSCORE\nAT 0.01 0.08 7.3\nHOME 0.08 0.2 6.1\n",
    )
    made.text(f"{top}test.txt", "553/00001 NF\n")
    made.text(f"{top}pretrain.txt", "553/00009\n")
    (clip,) = made.examples("LRS2VideoOnly", task="VSR", partitions=["test"])
    assert (clip.id, clip.text, clip.fields, clip.source_language) == (
        "main/553/00001",
        "WHEN YOU'RE COOKING CHIPS",
        {"confidence": "5"},
        "en",
    )
    assert clip.media.keys() == {"video"}
    assert len(load_video_item({**clip.media["video"], "type": "video"}, VideoOptions(crop="none")).values) == 10
    (spoken,) = made.examples("lrs2", task="asr", partitions=["pretrain"])
    assert spoken.fields["words"] == [
        {"word": "AT", "start": 0.01, "end": 0.08},
        {"word": "HOME", "start": 0.08, "end": 0.2},
    ]
    assert abs(heard(spoken) - 3_200) <= 1024  # AAC comes in blocks
    entry = {"task": "InterleavedTextAudioNTP", "task_options": {"min_words": 1, "max_words": 1}}
    (read,) = made.examples("LRS2", **entry, partitions=["pretrain"])
    texts = [item.get("transcript", item.get("text", "")) for item in chat_of(read)[0].content]
    assert " ".join(map(str.strip, texts)) == "AT HOME"
    made.text(f"{top}main/553/00001.txt", "Conf:  5\n")
    with pytest.raises(DataError, match=r"no example is left of 1.*\n.*1 unusable record"):
        made.parts("lrs2", task="vsr", partitions=["test"])
    with pytest.raises(DataError, match=r"no partition 'val'"):
        made.parts("lrs2", task="vsr", partitions=["val"])

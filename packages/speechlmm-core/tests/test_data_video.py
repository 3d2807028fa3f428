"""Manifest lines with a video, up to the processor's batch: lengths without decoding, kept per encoder's settings."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from speechlmm_core.config import ModelConfig
from speechlmm_core.data.chats import chat_of
from speechlmm_core.data.faults import FaultyDataError
from speechlmm_core.data.lengths import measure
from speechlmm_core.data.spec.open import open_datasets
from speechlmm_core.interfaces.encoder import EncoderConfig, encoders
from speechlmm_core.interfaces.modules import Preprocessor
from speechlmm_core.media import video, video_source
from speechlmm_core.media.medium import Medium
from speechlmm_core.media.video import VideoOptions, load_video_item, video_item_length
from speechlmm_core.processor.processor import SpeechLMMProcessor

TEXT = {
    "type": "causal_lm",
    "model": {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
    "tokenizer": "bytes",
    "chat_template": "chatml",
}


class Frames(Preprocessor):
    def __call__(self, media: Any) -> dict[str, Tensor]:
        lengths = torch.tensor([medium.num_samples for medium in media])
        rows = [medium.values.float() for medium in media]
        return {"pixel_values_videos": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), "lengths": lengths}


class VideoFileEncoderConfig(EncoderConfig):
    modality: ClassVar[str] = "video"

    type: Literal["speechlmm.test_video"] = "speechlmm.test_video"
    rate: int = 25

    sampling_rate = property(lambda self: self.rate)
    hidden_size = property(lambda self: 16)
    frame_rate = property(lambda self: Fraction(self.rate))

    @property
    def options(self) -> VideoOptions:
        return VideoOptions(frame_rate=self.rate, size=(32, 32), crop="none", max_duration_s=4.0)

    def output_lengths(self, num_samples: Any) -> Any:
        return num_samples

    def load(self, item: dict[str, Any]) -> Medium:
        return load_video_item(item, self.options)

    def num_samples(self, item: dict[str, Any]) -> int:
        return video_item_length(item, self.options)

    def build_preprocessor(self) -> Preprocessor:
        return Frames()

    def build(self, ctx: Any) -> Any:
        raise AssertionError("no model is built here")


@pytest.fixture
def processor(toy_types: tuple[str, str]) -> Any:
    if VideoFileEncoderConfig().type not in encoders.names():
        encoders.register(VideoFileEncoderConfig)

    def make(rate: int = 25) -> SpeechLMMProcessor:
        encoder = {"type": VideoFileEncoderConfig().type, "rate": rate}
        config = {"video_encoder": encoder, "video_adapter": {"type": toy_types[1]}, "text_decoder": TEXT}
        return SpeechLMMProcessor.from_config(ModelConfig.model_validate(config))

    return make


@pytest.fixture
def manifest(tmp_path: Path, write_video: Any) -> Path:
    write_video(tmp_path / "a.mp4", 40)
    write_video(tmp_path / "b.mkv", 61, rate=30, sound_s=1.0)
    turn = [{"type": "video", "path": "b.mkv", "end": 1.5}, {"type": "text", "text": "What is said?"}]
    lines: list[dict[str, Any]] = [
        {"video": "a.mp4", "text": "one", "task": "asr"},
        {"video": {"path": "b.mkv", "start": 0.5, "end": 1.0}, "text": "two"},
        {"messages": [{"role": "user", "content": turn}, {"role": "assistant", "content": "three"}]},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_lengths_are_those_of_what_is_loaded(manifest: Path, processor: Any) -> None:
    examples = open_datasets(["m.jsonl"], manifest)
    made = processor()
    lengths = measure(examples, made, cache=manifest / "cache")
    samples = [made.sample(chat_of(example), with_answer=True) for example in examples]
    loaded = [medium.num_samples for sample in samples for _, medium in sample.media]
    assert loaded == [40, 13, 38]
    assert lengths.seconds.tolist() == pytest.approx([n / 25 for n in loaded])
    assert lengths.frames.tolist() == loaded
    batch = made.collate(samples, packed=True)
    assert batch["media"]["video"]["inputs"]["pixel_values_videos"].shape == (3, 40, 32, 32)


def test_lengths_are_kept_for_the_encoders_settings(
    manifest: Path, processor: Any, write_video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[str] = []
    real = video_source.video_info

    def info(source: Any) -> Any:
        scanned.append(source.path.name)
        return real(source)

    monkeypatch.setattr(video_source, "video_info", info)

    def seconds(rate: int = 25) -> list[float]:
        scanned.clear()
        return measure(open_datasets(["m.jsonl"], manifest), processor(rate), cache=manifest / "cache").seconds.tolist()

    first = seconds()
    assert sorted(scanned) == ["a.mp4", "b.mkv", "b.mkv"]
    assert seconds() == first
    assert not scanned, "the second time nothing is opened"
    assert seconds(rate=10) == pytest.approx([1.6, 0.5, 1.5])
    assert len(scanned) == 3, "another rate, other lengths"
    seconds()
    scanned.clear()
    write_video(manifest / "a.mp4", 20)
    assert seconds()[0] == pytest.approx(20 / 25)
    assert scanned.count("a.mp4") == 1


def test_every_video_that_cannot_be_used_is_reported(manifest: Path, processor: Any, write_video: Any) -> None:
    write_video(manifest / "long.mp4", 110, size=(32, 32))
    (manifest / "text.mp4").write_text("no video")
    lines = [
        {"video": "long.mp4", "text": "x"},
        {"video": "a.mp4", "text": "x"},
        {"video": "text.mp4", "text": "x"},
        {"video": {"path": "a.mp4", "start": 3}, "text": "x"},
    ]
    (manifest / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(FaultyDataError) as caught:
        measure(open_datasets(["bad.jsonl"], manifest), processor(), cache=manifest / "cache")
    assert [fault.split(": ")[0].rpartition(":")[2] for fault in caught.value.faults] == ["1", "3", "4"]
    for fault, expected in zip(caught.value.faults, ("more than the limit", "not a video", "starts at 3"), strict=True):
        assert expected in fault


def test_a_video_in_memory_needs_no_file(processor: Any) -> None:
    frames = np.zeros((30, 32, 32), np.uint8)
    item = {"type": "video", "array": frames, "sampling_rate": 30}
    sample = processor().sample(
        [{"role": "user", "content": [item, {"type": "text", "text": "What is said?"}]}], with_answer=False
    )
    ((name, medium),) = sample.media
    assert (name, medium.num_samples) == ("video", 25)


def test_options_import_no_torch() -> None:
    code = "import sys; import speechlmm_core.media.video; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert video.MAX_MOUTH_SIDE == 112

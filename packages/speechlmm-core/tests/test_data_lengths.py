import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from speechlmm_core.data import header_cache
from speechlmm_core.data.faults import FaultyDataError
from speechlmm_core.data.lengths import measure
from speechlmm_core.data.spec.open import open_datasets
from speechlmm_core.errors import MediaError
from speechlmm_core.media.audio import load_audio_item


def check_length(num_samples: int) -> None:
    if num_samples > 10 * 16_000:
        raise MediaError("more than 10 s; cut it")


class Sizer:
    """A processor of words: one position a word, a frame every 160 samples, an adapter that halves them."""

    def __init__(self) -> None:
        encoder = SimpleNamespace(
            modality="audio",
            reads_audio_files=True,
            check_length=check_length,
            sampling_rate=16_000,
            frame_rate=Fraction(100),
            output_lengths=lambda n: n // 160,
            load=lambda item: load_audio_item(item, 16_000),
        )
        adapter = SimpleNamespace(max_output_lengths=lambda n, rate: n // 2)
        self.inputs: Any = {"audio": SimpleNamespace(encoder=encoder, adapter=adapter)}
        self.config: Any = SimpleNamespace(model_dump_json=lambda: "{}")
        backend = SimpleNamespace(to_str=lambda: "words")
        self.tokenizer = SimpleNamespace(template="", tokenizer=SimpleNamespace(backend_tokenizer=backend))
        self.calls = 0

    def sizes(
        self, messages: Sequence[Any], num_samples: Sequence[int], *, with_answer: bool = True
    ) -> tuple[int, int]:
        self.calls += 1
        words = sum(len(i["text"].split()) for m in messages for i in m.content if i["type"] == "text")
        frames = [n // 160 for n in num_samples]
        return words + sum(n // 2 for n in frames), sum(frames)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for number, (rate, length) in enumerate([(16_000, 16_000), (44_100, 50_000), (8_000, 12_345), (22_050, 22_051)]):
        soundfile.write(tmp_path / f"{number}.wav", rng.uniform(-0.1, 0.1, length), rate)
        lines.append({"audio": f"{number}.wav", "text": "w " * (number + 1)})
    lines.append({"audio": {"path": "1.wav", "start": 0.25, "end": 0.8}, "text": "part"})
    lines.append({"messages": [{"role": "user", "content": "no sound"}, {"role": "assistant", "content": "at all"}]})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_lengths_equal_what_loading_gives(manifest: Path) -> None:
    examples = open_datasets(["m.jsonl"], manifest)
    lengths = measure(examples, Sizer(), cache=manifest / "cache")
    loaded = [
        load_audio_item(example.media["audio"], 16_000).num_samples if example.media else 0 for example in examples
    ]
    assert lengths.frames.tolist() == [n // 160 for n in loaded]
    assert lengths.seconds.tolist() == pytest.approx([n / 16_000 for n in loaded])
    assert lengths.positions[-1] == 4
    assert len(lengths) == 6


def test_positions_hold_for_every_wording(manifest: Path) -> None:
    from speechlmm_core.data.chats import chat_of, draws_of

    examples = open_datasets(["m.jsonl"], manifest)
    sizer = Sizer()
    lengths = measure(examples, sizer, cache=manifest / "cache")
    for index, example in enumerate(examples):
        samples = [load_audio_item(item, 16_000).num_samples for item in example.media.values()]
        every = [sizer.sizes(chat_of(example, draw=draw), samples)[0] for draw in draws_of(example)]
        assert lengths.positions[index] == max(every)


def test_headers_and_sizes_are_read_once(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = manifest / "cache"
    first = measure(open_datasets(["m.jsonl"], manifest), Sizer(), cache=cache)
    opened: list[str] = []
    from speechlmm_core.media import audio

    real = audio.audio_info
    monkeypatch.setattr(audio, "audio_info", lambda path: opened.append(Path(path).name) or real(path))
    again = Sizer()
    second = measure(open_datasets(["m.jsonl"], manifest), again, cache=cache)
    assert not opened
    assert not again.calls
    soundfile.write(manifest / "2.wav", np.zeros(4000), 8_000)
    third = measure(open_datasets(["m.jsonl"], manifest), Sizer(), cache=cache)
    assert opened == ["2.wav"]
    for name in ("positions", "frames", "seconds"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert third.seconds[2] == 0.5
    assert third.frames[2] == 50


def test_a_cache_that_is_broken_or_cannot_be_written_is_no_fault(
    manifest: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = manifest / "cache"
    examples = open_datasets(["m.jsonl"], manifest)
    expected = measure(examples, Sizer(), cache=cache)
    for file in cache.iterdir():
        file.write_bytes(b"not numpy")
    np.testing.assert_array_equal(measure(examples, Sizer(), cache=cache).frames, expected.frames)
    (manifest / "file").touch()
    np.testing.assert_array_equal(measure(examples, Sizer(), cache=manifest / "file").frames, expected.frames)
    assert "cannot keep lengths" in caplog.text
    monkeypatch.setenv("SPEECHLMM_CACHE", str(manifest / "elsewhere"))
    assert header_cache.cache_folder() == manifest / "elsewhere"


def test_media_that_the_encoder_does_not_take_are_reported_before_training(manifest: Path) -> None:
    soundfile.write(manifest / "0.wav", np.zeros(11 * 16_000, np.float32), 16_000)
    with pytest.raises(FaultyDataError, match=r"m\.jsonl:1.*0\.wav: more than 10 s; cut it"):
        measure(open_datasets(["m.jsonl"], manifest), Sizer(), cache=manifest / "cache")


def test_all_media_that_cannot_be_used_are_reported(manifest: Path) -> None:
    (manifest / "text.wav").write_text("this is no audio at all")
    soundfile.write(manifest / "short.wav", np.zeros(100), 16_000)
    soundfile.write(manifest / "none.wav", np.zeros(0), 16_000)
    lines = [
        {"audio": "text.wav", "text": "x"},
        {"audio": "0.wav", "text": "x"},
        {"audio": "short.wav", "text": "x"},
        {"audio": "none.wav", "text": "x"},
        {"audio": {"path": "0.wav", "start": 5}, "text": "x"},
        {"audio": "0.wav", "media": {"video": "1.wav"}, "text": "x"},
    ]
    (manifest / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(FaultyDataError) as caught:
        measure(open_datasets(["bad.jsonl", "m.jsonl"], manifest), Sizer(), cache=manifest / "cache")
    places = [fault.split(": ")[0].rpartition(":")[2] for fault in caught.value.faults]
    assert places == ["1", "3", "4", "5", "6"]
    assert "too short" in caught.value.faults[1]
    assert "holds 'video', but this model takes audio" in caught.value.faults[4]

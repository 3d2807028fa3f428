"""Planned sizes of views: prepared or not, subsets, several in a row, few-shot examples, augmentation."""

import json
import pickle
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechlmm_core.data.example import Example
from speechlmm_core.data.examples import ConcatExamples, Examples, ListExamples, SubsetExamples
from speechlmm_core.data.faults import FaultyDataError
from speechlmm_core.data.header_cache import HeaderCache
from speechlmm_core.data.index.header import IndexHeader
from speechlmm_core.data.index.layout import part_digest, part_folder
from speechlmm_core.data.index.open import made_by
from speechlmm_core.data.index.prepared import PreparedExamples
from speechlmm_core.data.index.rows import encode_example, media_of
from speechlmm_core.data.index.sizes import StoredSizes
from speechlmm_core.data.index.state import FileState
from speechlmm_core.data.index.views import prepared_rows
from speechlmm_core.data.index.write import write_part
from speechlmm_core.data.jsonl.config import JsonlDatasetConfig
from speechlmm_core.data.lengths import Lengths, measure
from speechlmm_core.data.spec.task_examples import TaskExamples
from speechlmm_core.errors import MediaError
from speechlmm_core.interfaces.dataset import EVERYTHING
from speechlmm_core.interfaces.task import get_task
from speechlmm_core.media.audio import load_audio_item

RATE = 16_000
READER = JsonlDatasetConfig(path="m.jsonl")


def check_length(num_samples: int) -> None:
    if num_samples > 3 * RATE:
        raise MediaError("more than 3 s; cut it")


class Sizer:
    """A processor of words: one position a word, a frame every 160 samples, an adapter that halves them."""

    def __init__(self) -> None:
        encoder = SimpleNamespace(
            modality="audio",
            reads_audio_files=True,
            check_length=check_length,
            sampling_rate=RATE,
            frame_rate=Fraction(100),
            output_lengths=lambda n: n // 160,
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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    rng = np.random.default_rng(1)
    lines: list[dict[str, Any]] = []
    for number in range(9):
        rate = (8_000, RATE, 22_050)[number % 3]
        soundfile.write(folder / f"{number}.wav", rng.uniform(-0.1, 0.1, int(rate * (0.3 + number / 5))), rate)
        lines.append(
            {"audio": f"{number}.wav", "text": "w " * (1 + 3 * number % 5), "language": ("en", "de", "it")[number % 3]}
        )
    lines[4]["audio"] = {"path": "4.wav", "start": 0.2, "end": 0.9}
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def prepare(folder: Path) -> PreparedExamples:
    """The index of the manifest, with its fourth line in quarantine."""
    examples = READER.read(folder)
    count = len(examples)
    lines = [encode_example(example) for example in examples]
    (folder / "staged").write_bytes(b"".join(lines))
    paths = [Path(media_of(example)[0]["path"]) for example in examples]
    zeros = np.zeros(count)
    columns: dict[str, Any] = {
        **dict.fromkeys(("words", "characters", "quality", "status", "place_files", "place_numbers"), zeros),
        **dict.fromkeys(("measured", "peaks", "clipped", "keys"), zeros),
        "seconds": zeros,
        "lines": np.cumsum([0, *map(len, lines)]),
        "media_starts": np.arange(count + 1),
        "num_samples": [soundfile.info(path).frames for path in paths],
        "sampling_rates": [soundfile.info(path).samplerate for path in paths],
        "sizes": [path.stat().st_size for path in paths],
        "times": [path.stat().st_mtime_ns for path in paths],
        "hashes": np.zeros(16 * count, np.uint8),
    }
    digest = part_digest("m", READER, folder, EVERYTHING)
    header = IndexHeader(
        "m", digest, 0, 0, 0, "fast", "", made_by=made_by(READER), sources=(FileState.of(folder / "m.jsonl"),)
    )
    part = part_folder(folder / "m.index", "m", digest)
    write_part(part, header, columns, folder / "staged", kept=np.arange(count) != 3)
    return PreparedExamples(part, READER, folder, EVERYTHING)


def views(whole: Examples, shots: int) -> Examples:
    """Views as deep as they get: a task's over all, a subset of it, two of them in a row, and a subset of those."""
    task = get_task("asr", {"prompt_languages": ["en", "de"], "num_few_shots": shots} if shots else {})
    first = TaskExamples(whole, range(len(whole)), task=task)
    second = TaskExamples(whole, np.array([7, 2, 5, 1]), task=task)
    inner = SubsetExamples(first, [5, 0, 3])
    return ConcatExamples([inner, ConcatExamples([second, SubsetExamples(ConcatExamples([first, second]), [9, 1])])])


def longer(_name: str, num_samples: int) -> int:
    return num_samples * 11 // 10 + 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2), st.booleans(), st.booleans(), st.lists(st.integers(0, 2**63 - 1), min_size=3, max_size=3))
def test_planned_sizes_are_never_too_small(
    corpus: Path, tmp_path: Path, shots: int, is_prepared: bool, augmented: bool, draws: list[int]
) -> None:
    whole = prepare(corpus) if is_prepared else READER.read(corpus)
    examples = views(whole, shots)
    sizer = Sizer()
    lengths = measure(examples, sizer, cache=tmp_path, max_length=longer if augmented else None)
    for index in range(len(examples)):
        for number in [0, *draws]:
            chat = examples.chat(index, draw=number)
            samples = [load_audio_item(item, RATE).num_samples for message in chat for item in message.media]
            samples = [longer("audio", one) for one in samples] if augmented else samples
            positions, frames = sizer.sizes(chat, samples)
            assert positions <= lengths.positions[index]
            assert frames <= lengths.frames[index]
        own = load_audio_item(examples[index].media["audio"], RATE)
        assert lengths.seconds[index] == pytest.approx(own.duration_s)


@pytest.mark.parametrize("shots", [0, 2])
def test_prepared_headers_save_every_look_at_a_file(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shots: int
) -> None:
    kept = np.array([0, 1, 2, 4, 5, 6, 7, 8])
    expected = measure(views(SubsetExamples(READER.read(corpus), kept), shots), Sizer(), cache=tmp_path / "a")
    examples = views(prepare(corpus), shots)
    monkeypatch.setattr("speechlmm_core.media.audio.audio_info", lambda _: pytest.fail("opened a file"))
    monkeypatch.setattr(HeaderCache, "_read", lambda _, sources: [] if not sources else pytest.fail("looked at a file"))
    found = measure(examples, Sizer(), cache=tmp_path / "b")
    for name in ("positions", "frames", "seconds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_sizes_of_prepared_views_are_kept(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(corpus)
    asr = get_task("asr")

    def view(indices: Sequence[int] = range(6), task: Any = asr) -> TaskExamples:
        return TaskExamples(whole, indices, task=task)

    def calls(examples: Examples, **options: Any) -> int:
        sizer = Sizer()
        measure(examples, sizer, cache=tmp_path, **options)
        return sizer.calls

    assert calls(view())
    assert not calls(view())
    assert calls(view([5, 4, 3, 2, 1, 0]))
    assert calls(view(), max_length=longer)
    assert not calls(view(), max_length=longer)
    assert calls(view(task=get_task("asr", {"prompt_languages": ["de"]})))
    # In the index they are found whatever the cache.
    stored = StoredSizes.of(view(), Sizer(), None, cache=tmp_path / "other")
    assert stored is not None
    assert stored.load() is None
    lengths = measure(view(), Sizer(), cache=tmp_path)
    stored.save(lengths, in_index=True)
    kept = stored.load()
    assert kept is not None
    np.testing.assert_array_equal(kept.positions, lengths.positions)
    assert len(pickle.loads(pickle.dumps(whole))) == len(whole)  # the index is still whole with them
    # Another wording is noticed.
    monkeypatch.setattr(type(asr), "prompts", lambda self, language="en": ["a " * 50])
    assert stored.load() is None
    monkeypatch.undo()
    (whole.folder / f"sizes-{stored.digest}.npy").write_bytes(b"")
    assert stored.load() is None


def test_each_example_is_made_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(corpus)
    made: list[int] = []
    before = PreparedExamples.example
    monkeypatch.setattr(PreparedExamples, "example", lambda self, index: made.append(index) or before(self, index))
    measure(TaskExamples(whole, range(8), task=get_task("asr")), Sizer(), cache=tmp_path)
    assert set(made) == set(range(8))
    assert len(made) == 8 + 3  # one of each kind, here of each language, is looked at again for its wordings


def test_inputs_of_examples_are_counted_and_kept(corpus: Path, tmp_path: Path) -> None:
    """Of rows with audio, of one of text alone, and of several datasets in a row."""
    sizer = Sizer()
    sizer.inputs = {"video": sizer.inputs["audio"], **sizer.inputs}
    said = TaskExamples(prepare(corpus), [4, 1], task=get_task("asr"))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    written = ListExamples([Example.model_validate({"id": "t", "task": "chat", "messages": messages})])
    for _ in range(2):  # counted, then read
        found = measure(ConcatExamples([written, said]), sizer, cache=tmp_path)
        assert found.inputs.tolist() == [0, 2, 2]
        assert {kind[:2]: index for kind, index in found.kinds.items()} == {
            ("chat", None): 0,
            ("asr", "it"): 1,
            ("asr", "de"): 2,
        }


def test_what_augmentation_makes_too_long_is_named(corpus: Path, tmp_path: Path) -> None:
    examples = SubsetExamples(READER.read(corpus), [8])
    assert isinstance(measure(examples, Sizer(), cache=tmp_path), Lengths)
    with pytest.raises(FaultyDataError, match=r"8\.wav: as long as augmentation may make it: more than 3 s; cut it"):
        measure(examples, Sizer(), cache=tmp_path, max_length=lambda _, count: count * 2)


def test_rows_of_views(corpus: Path) -> None:
    whole = prepare(corpus)
    view = SubsetExamples(TaskExamples(whole, [7, 5, 3, 1]), [2, 0])
    found = prepared_rows(view)
    assert found is not None
    assert found[0] is whole
    assert found[1].tolist() == [3, 7]
    assert prepared_rows(ConcatExamples([view])) is None
    assert prepared_rows(SubsetExamples(READER.read(corpus), [0])) is None  # pyright: ignore[reportArgumentType]

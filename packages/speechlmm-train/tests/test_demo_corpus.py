"""The demo's corpus: grammar, synthesis, manifests, and what happens to an unfinished or another corpus."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from string import Formatter

import numpy as np
import pytest
import soundfile

from speechlmm_core.data.jsonl.config import JsonlDatasetConfig
from speechlmm_core.errors import DataError, MissingDependencyError, SpeechLMMError
from speechlmm_train.demo.corpus import KNOWN_SPEAKERS, UNSEEN_SPEAKER, Corpus, synthesise_corpus
from speechlmm_train.demo.corpus_audio import SAMPLING_RATE, Utterance, render
from speechlmm_train.demo.espeak import ESpeak, Voice
from speechlmm_train.demo.grammar import (
    SLOTS,
    TEMPLATES,
    num_sentences,
    sample_sentences,
    sentence_sets,
    vocabulary,
)

SIZES = {"num_train": 8, "num_test": 3, "num_unseen": 2, "num_text": 20}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return synthesise_corpus(tmp_path_factory.mktemp("demo") / "corpus", **SIZES, workers=1, progress=False)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestGrammar:
    def test_words(self):
        words = vocabulary()
        assert 110 <= len(words) <= 140
        assert set("".join(words)) <= set("abcdefghijklmnopqrstuvwxyz'")

    def test_every_sentence_has_four_to_nine_words(self):
        for template in TEMPLATES:
            parts = list(Formatter().parse(template))
            fixed = sum(len(literal.split()) for literal, *_ in parts)
            counts = [[len(option.split()) for option in SLOTS[slot]] for _, slot, *_ in parts if slot]
            assert fixed + sum(map(min, counts)) >= 4
            assert fixed + sum(map(max, counts)) <= 9

    def test_num_sentences_counts_them(self):
        template = next(template for template in TEMPLATES if template.count("{food}") == 2)
        assert num_sentences(template) == 6 * 5 * 6 * 5  # name, food, another food, when
        assert sum(map(num_sentences, TEMPLATES)) > 30_000

    def test_sets_are_disjoint_distinct_and_repeatable(self):
        sets = sentence_sets(3, num_train=4000, num_test=400)
        assert (len(set(sets.train)), len(set(sets.test)), len(set(sets.text))) == (4000, 400, 12_000)
        assert not set(sets.test) & set(sets.text)
        assert set(sets.train) <= set(sets.text)
        assert sets == sentence_sets(3, num_train=4000, num_test=400)
        assert sets.test != sentence_sets(4, num_train=4000, num_test=400).test

    def test_the_training_set_says_every_word_often(self):
        counts = dict.fromkeys(vocabulary(), 0)
        for sentence in sentence_sets(0, num_train=4000, num_test=400).train:
            for word in sentence.split():
                counts[word] += 1
        assert min(counts.values()) >= 20

    def test_no_sentence_says_one_thing_twice(self):
        source = sample_sentences(random.Random(0))
        drawn = [next(source) for _ in range(3000)]
        assert not any(f"{food} and {food}" in sentence for sentence in drawn for food in SLOTS["food"])

    def test_more_sentences_than_there_are(self):
        with pytest.raises(ValueError, match="expected at most half"):
            sentence_sets(0, num_train=60_000, num_test=0, num_text=60_000)


class TestESpeak:
    def test_samples_depend_on_the_arguments_alone(self):
        espeak = ESpeak()
        voices = [Voice("en-us", "f2", 150), Voice("en", "m3", 180, 30), Voice("en-gb-scotland", "", 165)]
        calls = [(text, voice) for text in ("call anna", "open the garden gate soon") for voice in voices]
        first = [espeak.synthesise(*call)[0] for call in calls]
        assert len({samples.tobytes() for samples in first}) == len(calls)
        for index in (3, 0, 5, 2, 1, 4):
            assert np.array_equal(espeak.synthesise(*calls[index])[0], first[index])

    def test_another_process_makes_the_same_samples(self):
        code = (
            "import hashlib, sys; from speechlmm_train.demo.espeak import ESpeak, Voice; "
            "samples, rate = ESpeak().synthesise('turn off the lamp', Voice('en-us', 'm3')); "
            "print(hashlib.sha256(samples.tobytes()).hexdigest(), rate, 'torch' in sys.modules)"
        )
        outputs = {
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
            for _ in range(2)
        }
        assert len(outputs) == 1
        assert outputs.pop().split()[1:] == ["22050", "False"]

    def test_faster_is_shorter(self):
        espeak = ESpeak()
        slow, fast = (
            espeak.synthesise("please check the budget report today", Voice(rate=rate))[0] for rate in (140, 190)
        )
        assert 1.2 < len(slow) / len(fast) < 1.5

    def test_an_unknown_voice(self):
        with pytest.raises(SpeechLMMError, match="no voice 'xx'; expected one such as 'en-us"):
            ESpeak().synthesise("hello", Voice("xx"))

    def test_without_the_wheel(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "espeakng_loader", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'speechlmm-train\[demo\]'"):
            ESpeak()


class TestCorpus:
    def test_manifests(self, corpus: Corpus):
        manifests = {"train": corpus.train, "test": corpus.test, "test_unseen": corpus.test_unseen}
        sizes = {"train": 8, "test": 3, "test_unseen": 2}
        seconds = 0.0
        for name, path in manifests.items():
            entries = lines(path)
            assert len(entries) == sizes[name]
            for entry in entries:
                assert set(entry) == {"id", "audio", "text", "task", "language", "duration", "speaker"}
                assert (entry["task"], entry["language"]) == ("asr", "en")
                info = soundfile.info(path.parent / entry["audio"])
                assert (info.format, info.samplerate, info.channels) == ("FLAC", 16000, 1)
                assert info.frames / 16000 == entry["duration"]
                seconds += entry["duration"]
        assert corpus.duration_s == pytest.approx(seconds, abs=1e-3)
        ids = [entry["id"] for path in manifests.values() for entry in lines(path)]
        assert len(set(ids)) == 13

    def test_the_reader_takes_the_manifests(self, corpus: Corpus):
        examples = JsonlDatasetConfig(path=corpus.train.name).read(corpus.folder)
        assert [example.text for example in examples] == [entry["text"] for entry in lines(corpus.train)]
        assert Path(examples[0].media["audio"]["path"]).is_file()

    def test_test_sentences_occur_nowhere_else(self, corpus: Corpus):
        tested = {entry["text"] for path in (corpus.test, corpus.test_unseen) for entry in lines(path)}
        text = {entry["text"] for entry in lines(corpus.text)}
        assert len(tested) == 5
        assert len(text) == 20
        assert not tested & text
        assert {entry["text"] for entry in lines(corpus.train)} <= text

    def test_one_voice_is_in_a_test_set_only(self, corpus: Corpus):
        known = {entry["speaker"] for path in (corpus.train, corpus.test) for entry in lines(path)}
        assert known == {speaker.name for speaker in KNOWN_SPEAKERS}
        assert {entry["speaker"] for entry in lines(corpus.test_unseen)} == {UNSEEN_SPEAKER.name}
        assert len({(s.language, s.variant) for s in (*KNOWN_SPEAKERS, UNSEEN_SPEAKER)}) == len(KNOWN_SPEAKERS) + 1

    def test_the_audio_is_like_speech(self, corpus: Corpus):
        for entry in lines(corpus.train):
            samples, _ = soundfile.read(corpus.folder / entry["audio"])
            assert 90 < 60 * len(entry["text"].split()) / entry["duration"] < 260  # words per minute
            frames = samples[: len(samples) // 400 * 400].reshape(-1, 400)
            loudness = 20 * np.log10(np.sqrt(np.mean(frames**2, axis=1)) + 1e-9)
            assert loudness.max() - loudness.min() > 30  # syllables and pauses
            assert -35 < 20 * np.log10(np.sqrt(np.mean(samples**2))) < -8
            assert np.abs(samples).max() < 1
            power = np.abs(np.fft.rfft(samples)) ** 2
            below_4_khz = power[: len(power) // 2].sum() / power.sum()
            assert below_4_khz > 0.7

    def test_any_number_of_workers_writes_the_same_files(self, corpus: Corpus, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("speechlmm_train.demo.corpus.CHUNK", 4)
        other = synthesise_corpus(tmp_path, **SIZES, workers=2, progress=False)
        assert not other.reused
        assert tree(other.folder) == tree(corpus.folder)

    def test_a_finished_corpus_is_reused(self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
        before = {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*")}
        again = synthesise_corpus(corpus.folder, **SIZES, progress=False)
        assert again == replace(corpus, reused=True)
        assert before == {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*")}

    def test_an_interrupted_corpus_is_completed(self, corpus: Corpus, tmp_path: Path, monkeypatch):
        import speechlmm_train.demo.corpus_audio as module

        rendered: list[str] = []

        def render_five(utterance: Utterance) -> np.ndarray:
            if len(rendered) == 5:
                raise KeyboardInterrupt
            rendered.append(utterance.id)
            return render(utterance)

        with monkeypatch.context() as patch:
            patch.setattr(module, "render", render_five)
            with pytest.raises(KeyboardInterrupt):
                synthesise_corpus(tmp_path, **SIZES, workers=1, progress=False)
        assert not (tmp_path / "train.jsonl").exists()
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
        assert len(kept) == 5
        (tmp_path / "audio/train/train-00001.flac").write_bytes(b"")  # as after a power failure
        completed = synthesise_corpus(tmp_path, **SIZES, workers=1, progress=False)
        assert not completed.reused
        assert tree(tmp_path) == tree(corpus.folder)
        unchanged = [path for path, time in kept.items() if path.stat().st_mtime_ns == time]
        assert len(unchanged) == 4

    def test_a_lost_file_is_made_again(self, corpus: Corpus, tmp_path: Path):
        whole = synthesise_corpus(tmp_path, **SIZES, workers=1, progress=False)
        next(whole.folder.rglob("*.flac")).unlink()
        assert not synthesise_corpus(tmp_path, **SIZES, workers=1, progress=False).reused
        assert tree(tmp_path) == tree(corpus.folder)

    def test_another_seed_replaces_the_corpus(self, corpus: Corpus, tmp_path: Path):
        first = synthesise_corpus(tmp_path, **SIZES, workers=1, progress=False)
        (tmp_path / "notes.txt").write_text("mine")
        texts = [entry["text"] for entry in lines(first.train)]
        second = synthesise_corpus(tmp_path, **{**SIZES, "num_train": 6}, seed=1, workers=1, progress=False)
        assert not second.reused
        assert [entry["text"] for entry in lines(second.train)] != texts
        assert len(list((tmp_path / "audio/train").iterdir())) == 6
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_a_folder_with_other_files_is_left_alone(self, tmp_path: Path):
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(DataError, match="holds other files"):
            synthesise_corpus(tmp_path, **SIZES, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_utterances_render_alone_as_in_the_corpus(self, corpus: Corpus):
        utterance = Utterance("x", "x.flac", "call peter", "alice", Voice("en-us", "f2"), seed=7)
        first = render(utterance)
        assert first.dtype == np.int16
        assert np.array_equal(first, render(utterance))
        assert not np.array_equal(first, render(replace(utterance, seed=8)))
        spoken, rate = ESpeak().synthesise("call peter", Voice("en-us", "f2"))
        assert len(first) == pytest.approx(len(spoken) * SAMPLING_RATE / rate, abs=1)

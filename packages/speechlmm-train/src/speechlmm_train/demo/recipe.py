"""The demo's steps: corpus, tokenizer, training by the same path as `run`, evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.task import get_task
from speechlmm_train.compose import Composed, compose_config
from speechlmm_train.demo.corpus import Corpus, synthesise_corpus
from speechlmm_train.demo.tokenizer import saved_vocab_size, train_tokenizer

if TYPE_CHECKING:
    from speechlmm_train.evaluate.evaluate import Evaluation, Prediction

BESIDE = ("corpus", "tokenizer")
"""What training starts from: it lies in the demo's folder beside the run's own files."""
PRETRAINING = "text_denoise.jsonl"
"""Name of the manifest of the text-only stage."""
SPECIFICATION = "corpus.yaml"
"""Name of the dataset specification of the recorded sets."""
SETS = """\
# The recorded sets of the demo, for `speechlmm-train prepare`, `inspect` and `evaluate`.
train:
  - { type: jsonl, name: demo, path: train.jsonl }
test:
  - { type: jsonl, name: known-voices, path: test.jsonl }
  - { type: jsonl, name: unseen-voice, path: test_unseen.jsonl }
"""
VOCAB_SIZE = 2048
"""Bytes, word pieces, and a token for each word of the grammar and of the prompts, at most."""


@dataclass(frozen=True)
class CorpusSize:
    """Numbers of utterances."""

    train: int = 4000
    test: int = 300
    unseen: int = 100


@dataclass(frozen=True)
class Prepared:
    """What training starts from."""

    corpus: Corpus
    shuffled: Path
    """Manifest of the test set with every sentence at another one's audio."""
    composed: Composed


def prepare(
    folder: Path,
    *,
    seed: int,
    size: CorpusSize | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
) -> Prepared:
    """Synthesises the corpus, learns the tokenizer and composes the configuration.

    Args:
        folder: The demo's folder, which is the run's output folder; `corpus/` and `tokenizer/` are made in it.
        seed: Decides the corpus and the training.
        size: Size of the corpus.
        overrides: Further overrides in Hydra's grammar.
        resume: Take the corpus and the tokenizer as an earlier demo left them.
        progress: Show progress bars.

    Raises:
        MissingDependencyError: eSpeak NG is not installed.
        ConfigError: An override is wrong, or `resume` is asked for and the corpus there is another one.
    """
    size = size or CorpusSize()
    # What is wrong with an override is told before anything is synthesised.
    _compose(folder, seed=seed, vocab_size=VOCAB_SIZE, overrides=overrides)
    corpus = synthesise_corpus(
        folder / "corpus",
        seed=seed,
        num_train=size.train,
        num_test=size.test,
        num_unseen=size.unseen,
        progress=progress,
        replace=not resume,
    )
    sentences = [line["text"] for line in _lines(corpus.text)]
    pretraining = folder / "corpus" / PRETRAINING
    lines = ({"task": "denoise", "text": text, "language": "en", "id": str(i)} for i, text in enumerate(sentences))
    write_text(folder / "corpus" / SPECIFICATION, SETS)
    write_text(pretraining, "".join(json.dumps(line) + "\n" for line in lines))
    prompts = get_task("asr").prompts("en")
    vocab_size = saved_vocab_size(folder / "tokenizer") if resume else None
    if vocab_size is None:
        vocab_size = train_tokenizer(folder / "tokenizer", sentences, prompts, vocab_size=VOCAB_SIZE)
    composed = _compose(folder, seed=seed, vocab_size=vocab_size, overrides=overrides)
    shuffled = folder / "corpus" / "test_shuffled.jsonl"
    write_text(shuffled, "".join(json.dumps(line) + "\n" for line in shuffle_audio(list(_lines(corpus.test)), seed)))
    return Prepared(corpus, shuffled, composed)


def _compose(folder: Path, *, seed: int, vocab_size: int, overrides: Sequence[str]) -> Composed:
    corpus = folder / "corpus"
    composed = compose_config(
        "pretrain",
        [
            "training_setting=demo",
            f"training.output_dir={_quoted(folder)}",
            f"training.seed={seed}",
            f"model.text_decoder.tokenizer={_quoted(folder / 'tokenizer')}",
            f"model.text_decoder.model.vocab_size={vocab_size}",
            f"data.train=[{_quoted(corpus / 'train.jsonl')}]",
            f"stages.0.data.train=[{_quoted(corpus / PRETRAINING)}]",
            *overrides,
        ],
    )
    training = composed.config.training
    if training.output_dir != str(folder) or training.seed != seed:
        raise ConfigError("the demo's folder and seed are given with --output-dir and --seed")
    return composed


def shuffle_audio(lines: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Gives every sentence the audio of another one."""
    order = list(range(len(lines)))
    random.Random(seed).shuffle(order)
    source = {this: order[(i + 1) % len(order)] for i, this in enumerate(order)}
    return [
        {**line, "audio": lines[source[i]]["audio"], "duration": lines[source[i]]["duration"]}
        for i, line in enumerate(lines)
    ]


def evaluate_all(model_path: Path, prepared: Prepared, folder: Path) -> dict[str, Evaluation]:
    """Scores the three test sets: known voices, the unseen one, and shuffled audio.

    Args:
        model_path: The trained model.
        prepared: The corpus.
        folder: Where the predictions go.
    """
    from speechlmm_core.data.spec.open import open_datasets
    from speechlmm_core.inference.options import GenerationOptions
    from speechlmm_core.model.speechlmm import SpeechLMM
    from speechlmm_core.processor.processor import SpeechLMMProcessor
    from speechlmm_train.evaluate.evaluate import evaluate

    model = SpeechLMM.from_pretrained(model_path)
    processor = SpeechLMMProcessor.from_pretrained(model_path)
    manifests = {"test": prepared.corpus.test, "unseen": prepared.corpus.test_unseen, "shuffled": prepared.shuffled}
    return {
        name: evaluate(
            model,
            processor,
            open_datasets([str(path)], Path.cwd()),
            options=GenerationOptions(max_new_tokens=32),
            predictions_path=folder / f"{name}.jsonl",
        )
        for name, path in manifests.items()
    }


def examples(predictions: Sequence[Prediction], number: int = 3) -> list[tuple[str, str]]:
    """Pairs of reference and answer to show; one with an error among them, where there is one."""
    wrong = [p for p in predictions if p.text != p.reference]
    chosen = [*(p for p in predictions if p.text == p.reference)][: number - bool(wrong)] + wrong
    return [(p.reference, p.text or "") for p in chosen[:number]]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _quoted(path: Path) -> str:
    """A path as a quoted string of Hydra's grammar."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

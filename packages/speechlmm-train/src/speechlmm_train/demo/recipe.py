"""The demo's steps: corpus, tokenizer, training by the same path as `run`, evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.interfaces.task import get_task
from speechlmm_train.compose import Composed, compose_config
from speechlmm_train.demo.corpus import Corpus, synthesise_corpus
from speechlmm_train.demo.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from speechlmm_train.evaluate.evaluate import Evaluation, Prediction

VOCAB_SIZE = 2048
"""Bytes, word pieces, and a token for each word of the grammar and of the prompts, at most."""


@dataclass(frozen=True)
class Prepared:
    """What training starts from."""

    corpus: Corpus
    shuffled: Path
    """Manifest of the test set with every sentence at another one's audio."""
    composed: Composed


def prepare(folder: Path, *, seed: int, overrides: Sequence[str] = (), progress: bool = True) -> Prepared:
    """Synthesises the corpus, learns the tokenizer and composes the configuration.

    Args:
        folder: The demo's folder; `corpus/`, `tokenizer/` and `run/` are made in it.
        seed: Decides the corpus and the training.
        overrides: Further overrides in Hydra's grammar.
        progress: Show progress bars.

    Raises:
        MissingDependencyError: eSpeak NG is not installed.
    """
    corpus = synthesise_corpus(folder / "corpus", seed=seed, progress=progress)
    sentences = [line["text"] for line in _lines(corpus.text)]
    pretraining = folder / "corpus" / "text_denoise.jsonl"
    lines = ({"task": "denoise", "text": text, "language": "en", "id": str(i)} for i, text in enumerate(sentences))
    write_text(pretraining, "".join(json.dumps(line) + "\n" for line in lines))
    vocab_size = train_tokenizer(folder / "tokenizer", sentences, get_task("asr").prompts("en"), vocab_size=VOCAB_SIZE)
    composed = compose_config(
        "pretrain",
        [
            "training_setting=demo",
            f"training.output_dir={_quoted(folder / 'run')}",
            f"training.seed={seed}",
            f"model.text_decoder.tokenizer={_quoted(folder / 'tokenizer')}",
            f"model.text_decoder.model.vocab_size={vocab_size}",
            f"data.train=[{_quoted(corpus.train)}]",
            f"stages.0.data.train=[{_quoted(pretraining)}]",
            *overrides,
        ],
    )
    shuffled = folder / "corpus" / "test_shuffled.jsonl"
    write_text(shuffled, "".join(json.dumps(line) + "\n" for line in shuffle_audio(list(_lines(corpus.test)), seed)))
    return Prepared(corpus, shuffled, composed)


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
    from speechlmm_core.data.spec import open_datasets
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
            predictions_path=folder / f"predictions_{name}.jsonl",
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

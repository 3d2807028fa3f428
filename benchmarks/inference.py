"""Offline inference on short clips: the engine against a loop at batch 1 and against fixed batches in file order.

A made model of the demo's size with random weights, whose language model ends its answers after different numbers of
tokens, as trained models do: the head's row of the end token is scaled until answers have about `--tokens` tokens.
Clips are files of noise of 1 to 5 s. All ways read the same files with the same processor and give the same texts,
which is checked.

- `engine`: `InferenceEngine.run`, batch size `auto`.
- `one_by_one`: a loop of `generate` at batch 1, which is what scripts do.
- `fixed`: batches of `--batch` in file order, each as long as its longest answer.

    python benchmarks/inference.py [--clips 256] [--repeats 3] [--device cpu] [--threads 1]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parent))
from _bench import compare, report
from _demo_model import demo_model

from speechlmm_core.chat.messages import Message
from speechlmm_core.config import ModelConfig
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.inference.options import GenerationOptions, Request
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor

RATE = 16_000
Chats = Sequence[list[Message]]


def clips(folder: Path, count: int, rng: np.random.Generator) -> list[list[Message]]:
    """Files of noise with a tone each, as conversations."""
    found: list[list[Message]] = []
    for number in range(count):
        samples = np.arange(int(RATE * rng.uniform(1, 5)))
        sound = rng.uniform(0.02, 0.3) * rng.standard_normal(len(samples))
        sound += 0.3 * np.sin(2 * np.pi * rng.uniform(100, 4000) / RATE * samples)
        path = folder / f"{number}.wav"
        soundfile.write(path, sound.clip(-1, 1).astype(np.float32), RATE)
        content = [{"type": "audio", "path": str(path)}, {"type": "text", "text": "Transcribe the speech."}]
        found.append([Message(role="user", content=content)])
    return found


def end_answers(engine: InferenceEngine, chats: Chats, options: GenerationOptions, tokens: float) -> float:
    """Scales the end token's row of the head until answers have about so many tokens; gives back how many."""
    head: Any = engine.model.get_output_embeddings().weight
    stops = list(engine.processor.tokenizer.stop_token_ids)
    rows = head.detach()[stops].clone()
    low, high, mean = 1.0, 8.0, 0.0
    for _ in range(8):
        middle = (low + high) / 2
        with torch.no_grad():
            head[stops] = rows * middle
        mean = float(np.mean([r.num_tokens for r in engine.run(map(Request, chats), options=options)]))
        low, high = (low, middle) if mean < tokens else (middle, high)
    return mean


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=float, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = ModelConfig.model_validate(demo_model(vocab_size=1024, tie_word_embeddings=False))
    model = SpeechLMM.from_model_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # answers that depend on the sound
    torch.nn.Module.to(model, args.device)
    engine = InferenceEngine(model, SpeechLMMProcessor.from_config(config))
    options = GenerationOptions(max_new_tokens=args.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        chats = clips(Path(folder), args.clips, np.random.default_rng(0))
        mean = end_answers(engine, chats[:64], options, args.tokens)
        texts: dict[str, list[str]] = {}

        def batched(rows: int) -> list[str]:
            processor, found = engine.processor, list[str]()
            stops = list(processor.tokenizer.stop_token_ids)
            end = {"eos_token_id": stops, "pad_token_id": processor.tokenizer.pad_token_id}
            for start in range(0, len(chats), rows):
                samples = [processor.sample(chat, with_answer=False) for chat in chats[start : start + rows]]
                batch = _moved(processor.collate(samples, packed=False, padding_side="left"), args.device)
                for ids in model.generate(batch, **options.kwargs(), **end).tolist():
                    upto = next((at for at, token in enumerate(ids) if token in stops), len(ids))
                    found.append(processor.tokenizer.decode(ids[:upto]).strip())
            return found

        def engine_run() -> None:
            results = list(engine.run(map(Request, chats), options=options))
            texts["engine"] = [result.text or "" for result in results]
            lengths[:] = [result.num_tokens for result in results]

        lengths: list[int] = []
        cases = {
            "engine": engine_run,
            "one_by_one": lambda: texts.__setitem__("one_by_one", batched(1)),
            "fixed": lambda: texts.__setitem__("fixed", batched(args.batch)),
        }
        medians = compare(cases, args.repeats)
        if not texts["engine"] == texts["one_by_one"] == texts["fixed"]:
            wrong = sum(a != b for a, b in zip(texts["engine"], texts["one_by_one"], strict=True))
            raise SystemExit(f"the texts differ ({wrong} from one by one)")
    report(
        "inference",
        {
            "device": args.device,
            "threads": args.threads,
            "clips": args.clips,
            "tokens": {"mean": mean, "quartiles": np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]).tolist()},
            "distinct_texts": len(set(texts["engine"])),
            "seconds": medians,
            "times_one_by_one": medians["one_by_one"] / medians["engine"],
            "times_fixed": medians["fixed"] / medians["engine"],
        },
    )


def _moved(batch: Any, device: str) -> Any:
    from speechlmm_core.inference.engine import to_device

    return to_device(batch, torch.device(device))


if __name__ == "__main__":
    main()

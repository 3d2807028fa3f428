"""Training with adapters whose lengths depend on the content: their losses in the logs, and answers afterwards."""

import json

import numpy as np
import pytest
import soundfile
import torch

from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_train.compose import validate
from speechlmm_train.run import build_model, run

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ("red", "green", "blue", "one", "two", "three")
RATE = 16_000
QUANTITY, CTC = "train/audio_adapter_quantity", "train/audio_adapter_ctc"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Clips of tones that stand for words, two of them without a transcript, and two conversations without audio."""
    root = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    lines, transcripts = [], []
    for i in range(14):
        words = generator.integers(len(WORDS), size=int(generator.integers(1, 4)))
        tones = [np.sin(2 * np.pi * (300 + 400 * word) * np.arange(RATE // 2) / RATE) for word in words]
        soundfile.write(root / f"{i}.flac", (0.1 * np.concatenate(tones)).astype("float32"), RATE)
        text = " ".join(WORDS[word] for word in words)
        audio = {"type": "audio", "path": f"{i}.flac"}
        if i >= 2:
            audio["transcript"] = text
            transcripts.append(text)
        lines.append([{"role": "user", "content": [audio]}, {"role": "assistant", "content": text}])
    for word in WORDS[:2]:
        lines.append([{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}])
    (root / "chat.jsonl").write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    return root, transcripts


def plain(root, out, adapter, **training):
    encoder = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    decoder = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    return {
        "model": {
            "audio_encoder": {
                "type": "whisper_unrestricted",
                "model": {**encoder, "encoder_ffn_dim": 64, "max_source_positions": 200},
            },
            "audio_adapter": adapter,
            "text_decoder": {
                "type": "causal_lm",
                "tokenizer": "bytes",
                "chat_template": "chatml",
                "model": {**decoder, **heads},
            },
        },
        "data": {"train": [str(root / "chat.jsonl")]},
        "training": {
            "output_dir": str(out),
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "micro_batches_per_step": 2,
            "logging_steps": 1,
            "save_steps": None,
            "report_to": [],
            **training,
        },
    }


CASES = {
    "cif": (
        {"type": "cif", "mean_frame_rate": 8, "quantity_loss_weight": 0.7, "ctc_loss_weight": [[0, 1], [1, 0.5]]},
        {QUANTITY: lambda progress: 0.7, CTC: lambda progress: 1 - 0.5 * progress},
    ),
    "ctc": (
        {"type": "ctc", "vocabulary": "characters", "merge": "weighted", "max_compressed_length": 20},
        {CTC: lambda progress: 0.1},
    ),
    "stack": (
        {"type": "stack", "stages": [{"type": "cif", "mean_frame_rate": 8}, {"type": "mlp", "hidden_size": 32}]},
        {"train/audio_adapter_cif_quantity": lambda progress: 0.05},
    ),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_losses_are_logged_and_fall(case, packed, corpus, tmp_path):
    adapter, expected = CASES[case]
    steps = 24
    config = plain(corpus[0], tmp_path / "out", adapter, max_steps=steps, packed=packed)
    report = run(validate(config), plain=config, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == steps
    for row in rows:
        progress = (row["step"] - 1) / steps
        total = row["train/lm"] + sum(weight(progress) * row[name] for name, weight in expected.items())
        assert row["train/loss"] == pytest.approx(total, rel=1e-5)
    for name in expected:
        first, last = (np.mean([row[name] for row in part]) for part in (rows[:4], rows[-4:]))
        assert last < 0.6 * first, name
    engine = InferenceEngine.from_pretrained(str(report.model_path))
    clip = {"type": "audio", "path": str(corpus[0] / "3.flac")}
    assert isinstance(engine.answer([{"role": "user", "content": [clip]}]), str)


@pytest.mark.parametrize("case", ["cif", "ctc"])
def test_each_loss_is_divided_by_its_own_count(case, corpus, tmp_path):
    """Over two micro-batches, with text alone and media without a transcript among them."""
    from speechlmm_core.data.chats import chat_of
    from speechlmm_core.data.jsonl.reader import JsonlExamples
    from speechlmm_core.processor.processor import SpeechLMMProcessor

    root, transcripts = corpus
    adapter, expected = CASES[case]
    config = plain(
        root, tmp_path / "out", adapter, max_steps=1, per_device_train_batch_size=4, micro_batches_per_step=4
    )
    run(validate(config), plain=config, progress=False)
    row = json.loads((tmp_path / "out" / "metrics.jsonl").read_text())
    parsed = validate(config)
    network, processor = build_model(parsed, None).train(), SpeechLMMProcessor.from_config(parsed.model)
    sums = dict.fromkeys(expected, 0.0)
    for example in JsonlExamples(root / "chat.jsonl"):
        sample = processor.sample(chat_of(example), with_answer=True)
        with torch.no_grad():
            losses = network(**processor.collate([sample])).losses
        for name in sums:
            if (own := name.removeprefix("train/")) in losses:
                sums[name] += float(losses[own].sum)
    counts = {QUANTITY: len(transcripts), CTC: sum(len(text) for text in transcripts)}
    for name, total in sums.items():
        assert row[name] == pytest.approx(total / counts[name], rel=1e-4)

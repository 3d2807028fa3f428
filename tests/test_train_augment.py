"""Training with augmentation: the same from any number of workers, by stage, planned for, never in evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlmm_core.errors import DataError
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.compose import validate
from speechlmm_train.run import run
from speechlmm_train.trainer.stage_data import open_stages

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 16_000
ENCODER = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
DECODER = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
MODEL = {
    "audio_encoder": {
        "type": "whisper_unrestricted",
        "model": {**ENCODER, "encoder_ffn_dim": 64, "max_source_positions": 400},
    },
    "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
    "text_decoder": {
        "type": "causal_lm",
        "tokenizer": "bytes",
        "chat_template": "chatml",
        "model": {**DECODER, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024},
    },
    "objectives": {"ctc": {"type": "ctc"}},
}
SPEED = {"type": "speed", "factors": [0.5, 0.9, 1.1]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    lines = []
    for number in range(8):
        samples = 0.1 * np.sin(2 * np.pi * (300 + 50 * number) * np.arange(RATE * (2 + number) // 4) / RATE)
        soundfile.write(root / f"{number}.flac", samples, RATE)
        lines.append({"audio": f"{number}.flac", "text": f"tone {number}", "task": "asr", "language": "en"})
    (root / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def config(corpus: Path, out: Path, augment: list, *, stages: list | None = None, **training: object) -> dict:
    manifest = [str(corpus / "m.jsonl")]
    settings = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": []}
    return {
        "model": MODEL,
        "data": {"train": manifest, "eval": manifest, "augment": augment},
        "training": {"output_dir": str(out), **settings, **({} if stages else {"max_steps": 4}), **training},
        "stages": stages or [],
    }


def losses(corpus: Path, out: Path, augment: list, **options: object) -> list[float]:
    plain = config(corpus, out, augment, **options)
    run(validate(plain), plain=plain, progress=False)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_workers_change_nothing_and_augmentation_does(corpus: Path, tmp_path: Path) -> None:
    augment = [SPEED, {"type": "gain"}, {"type": "spec_augment", "probability": 0.5}, {"type": "telephone"}]
    alone = losses(corpus, tmp_path / "a", augment)
    assert len(alone) == 4
    assert losses(corpus, tmp_path / "b", augment, num_workers=2) == alone
    assert losses(corpus, tmp_path / "c", []) != alone


def test_a_stage_may_have_its_own_and_the_plan_counts_on_it(corpus: Path, tmp_path: Path) -> None:
    stages = [
        {"name": "plain", "max_steps": 1, "data": {"augment": []}},
        {"name": "slow", "max_steps": 1, "learning_rate": 1e-4},
    ]
    checked = validate(config(corpus, tmp_path / "out", [SPEED], stages=stages))
    processor = SpeechLMMProcessor.from_config(checked.model)
    plain, slow = open_stages(checked, processor, base=Path.cwd(), world_size=1)
    assert plain.augment is None
    assert slow.augment is not None
    assert (abs(slow.plan.frames - 2 * plain.plan.frames) <= 1).all()  # a frame that half a clip fills is one
    for stage, some in ((plain, False), (slow, True)):
        batches = iter(stage.batches(0, rank=0))
        found = [next(batches) for _ in range(4)]
        frames = sum(int(batch["media"]["audio"]["encoder_lengths"].sum()) for batch in found)
        planned = 2 * int(plain.plan.frames.sum())  # two epochs
        assert (frames != planned) == some
        assert frames <= 2 * int(stage.plan.frames.sum())
        assert {batch["num_items"]["ctc_valid"] for batch in found} == {4}  # targets stay with their media


def test_faults_come_before_training(corpus: Path, tmp_path: Path) -> None:
    plain = config(corpus, tmp_path / "out", [{"type": "noise", "path": "nowhere"}, {"type": "gain", "inputs": ["x"]}])
    with pytest.raises(DataError) as caught:
        run(validate(plain), plain=plain, base=tmp_path, progress=False)
    assert f"data.augment.0 (noise): {tmp_path / 'nowhere'}: no such folder" in str(caught.value)
    assert "data.augment.1 (gain): the model has no input 'x', only audio" in str(caught.value)
    assert not (tmp_path / "out").exists()

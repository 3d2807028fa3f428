"""Prepared corpora in training: the same examples and sizes, and nothing is read or counted again."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlmm_core.data.index.open import index_dir_of
from speechlmm_core.data.lengths import measure
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.compose import validate
from speechlmm_train.prepare import sizes
from speechlmm_train.prepare.prepare import prepare
from speechlmm_train.prepare.settings import Settings
from speechlmm_train.prepare.sizes import ModelTarget, count_sizes
from speechlmm_train.trainer.stage_data import open_stages

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, the first with a file that is none, and its index."""
    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    for name, count in (("one", 6), ("two", 5)):
        lines = []
        for number in range(count):
            values = rng.uniform(-0.1, 0.1, int(RATE * (0.5 + number / 10))).astype(np.float32)
            soundfile.write(root / f"{name}-{number}.flac", values, RATE)
            lines.append({"audio": f"{name}-{number}.flac", "text": "red " * (number + 1), "language": "en"})
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "one-2.flac").write_bytes(b"no sound")
    text = "".join(
        f"- {{type: jsonl, path: {one}.jsonl, name: {one}, task: {{type: asr, num_few_shots: {shots}}}}}\n"
        for one, shots in (("one", 1), ("two", 0))
    )
    (root / "s.yaml").write_text(f"datasets:\n{text}")
    prepare(root / "s.yaml", index_dir=root / "s.index", settings=Settings(), jobs=0, progress=False)
    return root / "s.yaml"


def config(spec: Path, **data: object):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096}
    decoder = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    encoder = {"num_mel_bins": 16, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
    return validate(
        {
            "model": {
                "audio_encoder": {
                    "type": "whisper_unrestricted",
                    "model": {**encoder, "encoder_ffn_dim": 32, "max_source_positions": 400},
                },
                "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
                "text_decoder": {
                    "type": "causal_lm",
                    "tokenizer": "bytes",
                    "chat_template": "chatml",
                    "model": {**decoder, **heads},
                },
            },
            "data": {"data_config_path": str(spec), **data},
            "training": {"output_dir": str(spec.parent / "out"), "per_device_train_batch_size": 2, "max_steps": 1},
        }
    )


@pytest.mark.parametrize("augment", [[], [{"type": "speed"}]])
def test_training_starts_from_what_was_counted(spec: Path, monkeypatch: pytest.MonkeyPatch, augment: list) -> None:
    made = config(spec, augment=augment)
    target = ModelTarget(SpeechLMMProcessor.from_config(made.model), tuple(made.data.augment), spec.parent)
    counted: list[int] = []
    assert count_sizes(spec, [target], index_dir=index_dir_of(spec), jobs=1, progress=lambda *_: counted.append) == 10
    assert sum(counted) == 10
    assert not count_sizes(spec, [target], index_dir=index_dir_of(spec), jobs=1, progress=lambda *_: counted.append)
    # Prepared again, and nothing has changed.
    prepare(spec, index_dir=index_dir_of(spec), settings=Settings(), jobs=0, progress=False)
    monkeypatch.setattr(SpeechLMMProcessor, "sizes", lambda *_, **__: pytest.fail("counted again"))
    monkeypatch.setattr(soundfile, "SoundFile", lambda *_: pytest.fail("opened audio"))
    processor = SpeechLMMProcessor.from_config(made.model)
    stage = open_stages(made, processor, base=spec.parent, world_size=1)[0]
    monkeypatch.undo()
    # As if nothing was prepared; the broken file is taken out by hand.
    plain = spec.parent / "plain"
    plain.mkdir(exist_ok=True)
    for name in ("one", "two"):
        rows = [json.loads(line) for line in (spec.parent / f"{name}.jsonl").read_text().splitlines()]
        kept = [{**row, "audio": f"../{row['audio']}"} for row in rows if row["audio"] != "one-2.flac"]
        (plain / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (plain / "s.yaml").write_text(spec.read_text())
    expected = open_stages(config(plain / "s.yaml", augment=augment), processor, base=plain, world_size=1)[0]
    assert [one.text for one in stage.examples] == [one.text for one in expected.examples]
    max_length = target.max_length()
    found = measure(stage.examples, processor, max_length=max_length)
    wanted = measure(expected.examples, processor, max_length=max_length)
    for name in ("positions", "frames", "seconds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.slow
def test_several_processes_count_the_same(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(spec, augment=[{"type": "speed"}])
    target = ModelTarget(SpeechLMMProcessor.from_config(made.model), tuple(made.data.augment), spec.parent)
    from speechlmm_core.data.spec.file import read_spec
    from speechlmm_core.data.spec.open import open_spec

    one = open_spec(read_spec(spec), base=spec.parent, index_dir=index_dir_of(spec))[0].examples
    alone = sizes._count(one, target, 1, lambda _: None)
    monkeypatch.setattr(sizes, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(sizes, "CHUNK", 2)
    together = sizes._count(one, target, 2, lambda _: None)
    for name in ("positions", "frames", "seconds"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))

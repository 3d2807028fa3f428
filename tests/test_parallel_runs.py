"""Runs of two processes: every encoder under ZeRO's stage 3, evaluation that is shared, and faults of one process."""

import json
import warnings

import av
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_train.compose import compose_plain, validate
from speechlmm_train.run import run

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

ENCODERS = ("hubert", "wavlm", "w2v_bert_2", "seamless", "whisper", "hf_audio", "auto_avsr")
COMMON = (
    "model/text_decoder=tiny_llama",
    "training.report_to=[]",
    "training.logging_steps=1",
    "training.per_device_train_batch_size=1",
    "training.micro_batches_per_step=2",
    "training.learning_rate=1e-3",
    "training.lr_scheduler_type=constant",
    "training.save_steps=null",
    "training.preflight=false",
)
ALL = """
import json, sys
from pathlib import Path
from speechlmm_core.errors import SpeechLMMError
from speechlmm_train.process import prepare_process
prepare_process()
import torch
from speechlmm_core.text_decoder.decoder import CausalLMDecoder
from speechlmm_train.compose import validate
from speechlmm_train.run import run

before = CausalLMDecoder.load_base_weights
def load(self):
    held = {int(parameter.numel()) for parameter in self.model.parameters()}
    print("spread before it is loaded:", held == {0}, flush=True)
    before(self)
CausalLMDecoder.load_base_weights = load

for file in sys.argv[1:]:
    plain = json.loads(Path(file).read_text())
    try:
        run(validate(plain), plain=plain, base=Path(file).parent, progress=False)
    except SpeechLMMError as exc:
        print(f"fault: {exc}", flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four clips, one of text alone, a short video, and a language model to begin from."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    lines = [{"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "one"}]}]
    for i in range(3):
        soundfile.write(root / f"{i}.wav", generator.normal(0, 0.1, 8_000 + 800 * i).astype("float32"), 16_000)
        lines.append({"id": f"clip-{i}", "audio": f"{i}.wav", "text": f"word {i}", "task": "asr", "language": "en"})
    (root / "audio.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "dev.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    (root / "broken.jsonl").write_text(json.dumps({**lines[1], "audio": "gone.wav", "duration": 0.5}) + "\n")
    with av.open(str(root / "v.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for _ in range(20):
            pixels = generator.integers(0, 255, (96, 96, 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    seen = {"video": "v.mp4", "text": "word", "task": "vsr", "language": "en"}
    (root / "video.jsonl").write_text(json.dumps(seen) + "\n" + json.dumps(lines[0]) + "\n")
    base = plain_of(root, "x", "whisper", "training.max_steps=1", manifest="dev")
    torch.manual_seed(1)
    SpeechLMM.from_model_config(validate(base).model).text_decoder.model.save_pretrained(root / "llm")
    return root


def plain_of(data, name, encoder, *overrides, manifest="audio"):
    kind = "video" if encoder == "auto_avsr" else "audio"
    manifest = kind if kind == "video" else manifest
    return compose_plain(
        "pretrain",
        [
            *COMMON,
            f"model/{kind}_encoder=tiny_{encoder}",
            f"model/{kind}_adapter=tiny_mlp",
            f"data.train=[{data / manifest}.jsonl]",
            f"training.output_dir={data / name}",
            *overrides,
        ],
    )


def spread(data, encoder, name, *overrides):
    plain = plain_of(data, name, encoder, "training.max_steps=2", *overrides)
    plain["model"]["text_decoder"] |= {"pretrained": str(data / "llm"), "tokenizer": "bytes"}
    return plain


EVALUATED = (
    "training.max_steps=2",
    "training.eval_steps=2",
    "training.eval_samples=3",
    "training.eval_max_new_tokens=4",
)


@pytest.fixture(scope="module")
def two(data, run_script):
    """What two processes did, one after the other, and what the first of them printed."""
    jobs = {f"two-{name}": spread(data, name, f"two-{name}", "training.parallel=zero3") for name in ENCODERS}
    for mode in ("ddp", "zero3", "fsdp2"):
        settings = (*EVALUATED, f"data.eval=[{data}/dev.jsonl]", f"training.parallel={mode}")
        jobs[f"eval-{mode}"] = plain_of(data, f"eval-{mode}", "whisper_unrestricted", *settings)
    jobs["broken"] = plain_of(data, "broken", "whisper_unrestricted", "training.max_steps=1", manifest="broken")
    jobs["again"] = plain_of(data, "eval-ddp", "whisper_unrestricted", "training.max_steps=1")
    files = []
    for name, plain in jobs.items():
        (data / f"{name}.json").write_text(json.dumps(plain))
        files.append(data / f"{name}.json")
    done = run_script(ALL, *files, timeout=500)
    assert done.code == 0, done.err[-6000:]
    return done


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_under_zero_3(two, data, encoder):
    """Loaded before it is spread, while the language model is spread before it is loaded."""
    plain = spread(data, encoder, f"one-{encoder}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(validate(plain), plain=plain, base=data, progress=False)
    ours, theirs = data / f"two-{encoder}", data / f"one-{encoder}"
    for key in ("train/loss", "train/grad_norm"):
        assert [r[key] for r in rows(ours)] == pytest.approx([r[key] for r in rows(theirs)], rel=1e-4), key
    found, expected = (load_file(out / "model" / "model.safetensors") for out in (ours, theirs))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.allclose(value, expected[name], atol=5e-4, rtol=1e-3), name
    assert "spread before it is loaded: True" in two.out
    assert "spread before it is loaded: False" not in two.out


def test_a_shared_evaluation_says_what_one_process_says(two, data):
    plain = plain_of(data, "eval-one", "whisper_unrestricted", *EVALUATED, f"data.eval=[{data}/dev.jsonl]")
    run(validate(plain), plain=plain, base=data, progress=False)

    def told(out):
        answers = [json.loads(line) for line in (out / "evaluations" / "step-2.jsonl").read_text().splitlines()]
        figures = [{k: v for k, v in row.items() if k.startswith("eval/")} for row in rows(out)]
        return [(one["key"], one["text"]) for one in answers], [row for row in figures if row]

    expected = told(data / "eval-one")
    assert len(expected[0]) == 3
    for mode in ("ddp", "zero3", "fsdp2"):
        assert told(data / f"eval-{mode}") == expected, mode


def test_faults_are_the_same_on_every_process(two, data):
    assert "fault: " in two.out
    assert "gone.wav" in two.out
    assert "is not empty; go on with --resume" in two.out
    other = (two.logs / "rank-1.out").read_text()
    assert "gone.wav" in other
    assert "is not empty; go on with --resume" in other

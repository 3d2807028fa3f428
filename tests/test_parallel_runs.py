"""Runs of two processes: encoders under ZeRO's stage 3, evaluation that is shared, faults of one, kills of both."""

import json
import warnings

import av
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny_runs import rows, run_jobs

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
    "training.learning_rate=1e-2",
    "data.eval=[{dev}]",
    "data.guard=[{dev}]",
    "training.eval_steps=2",
    "training.eval_samples=3",
    "training.eval_max_new_tokens=4",
)


def evaluated(data, name, *overrides):
    settings = [setting.format(dev=data / "dev.jsonl") for setting in EVALUATED]
    return plain_of(data, name, "whisper_unrestricted", *settings, *overrides)


@pytest.fixture(scope="module")
def two(data, run_script):
    """What two processes did, one after the other, and what the first of them printed."""
    jobs = {f"two-{name}": spread(data, name, f"two-{name}", "training.parallel=zero3") for name in ENCODERS}
    for mode in ("ddp", "zero3", "fsdp2"):
        jobs[f"eval-{mode}"] = evaluated(data, f"eval-{mode}", f"training.parallel={mode}")
        half = (f"training.parallel={mode}", "training.bf16=true", "training.max_steps=1")
        jobs[f"half-{mode}"] = evaluated(data, f"half-{mode}", *half)
    jobs["broken"] = plain_of(data, "broken", "whisper_unrestricted", "training.max_steps=1", manifest="broken")
    jobs["again"] = plain_of(data, "eval-ddp", "whisper_unrestricted", "training.max_steps=1")
    return run_jobs(run_script, ALL, data, jobs)


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
    # Running statistics are those of the micro-batches that the first process saw: here one of the two.
    counted = {name for name in found if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert all(int(found[name]) == 1 for name in counted if name.endswith("num_batches_tracked"))
    for name in found.keys() - counted:
        assert torch.allclose(found[name], expected[name], atol=5e-4, rtol=1e-3), name
    assert "spread before it is loaded: True" in two.out
    assert "spread before it is loaded: False" not in two.out


def answers(out, name):
    rows = [json.loads(line) for line in (out / "evaluations" / name).read_text().splitlines()]
    return [(one["key"], one["text"]) for one in rows]


@pytest.fixture(scope="module")
def alone(data):
    """What one process says when it is evaluated."""
    plain = evaluated(data, "eval-one")
    run(validate(plain), plain=plain, base=data, progress=False)
    return data / "eval-one"


@pytest.mark.parametrize("mode", ["ddp", "zero3", "fsdp2"])
def test_a_shared_evaluation_says_what_one_process_says(two, data, alone, mode):
    """Three questions, two for one process and one for the other."""
    for name in ("guard-step-0.jsonl", "step-2.jsonl", "guard-step-2.jsonl"):
        expected = answers(alone, name)
        assert len(expected) == 3
        assert name == "guard-step-0.jsonl" or all(text for _, text in expected)
        assert answers(data / f"eval-{mode}", name) == expected, name
    for ours, theirs in zip(rows(data / f"eval-{mode}"), rows(alone), strict=True):
        figures = {key: value for key, value in theirs.items() if key.startswith(("eval/", "guard/"))}
        assert {key: ours[key] for key in figures} == figures
        losses = [row[key] for row in (ours, theirs) for key in row if key == "train/loss"]
        assert not losses or losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("mode", ["ddp", "zero3", "fsdp2"])
def test_mixed_precision_is_left_out_of_answers(two, data, alone, mode):
    """Before the first step the weights are the same, and so is what a model that is loaded again would answer."""
    assert answers(data / f"half-{mode}", "guard-step-0.jsonl") == answers(alone, "guard-step-0.jsonl")


def test_faults_are_the_same_on_every_process(two, data):
    assert "fault: " in two.out
    assert "gone.wav" in two.out
    assert "is not empty; go on with --resume" in two.out
    other = (two.logs / "rank-1.out").read_text()
    assert "gone.wav" in other
    assert "is not empty; go on with --resume" in other


LATE = """
import json, sys, time
from pathlib import Path
from speechlmm_core.errors import SpeechLMMError
from speechlmm_train.process import prepare_process
prepare_process()
from speechlmm_train import run as running
from speechlmm_train.compose import validate
from speechlmm_train.parallel.ranks import Ranks
from speechlmm_train.trainer.trainer import SpeechLMMTrainer

where, file = sys.argv[1:]
def late(before, busy):
    def work(*args, **kwargs):
        if Ranks.of_environment().rank == busy:
            time.sleep(12)
        return before(*args, **kwargs)
    return work

if where == "opening":
    running.open_stages = late(running.open_stages, 0)
else:
    SpeechLMMTrainer.compute_loss = late(SpeechLMMTrainer.compute_loss, 1)
plain = json.loads(Path(file).read_text())
try:
    running.run(validate(plain), plain=plain, base=Path(file).parent, progress=False)
except SpeechLMMError as exc:
    print(f"fault: {exc}", flush=True)
    time.sleep(15)
"""


@pytest.mark.parametrize(("where", "rank", "what"), [("opening", 1, "every rank"), ("step", 0, "in training")])
def test_how_long_processes_wait_is_a_setting(data, run_script, where, rank, what):
    """One is busy while files are opened, or in a step, for longer than the other waits."""
    plain = plain_of(data, f"late-{where}", "whisper_unrestricted", "training.max_steps=1", "training.ddp_timeout=6")
    (data / f"late-{where}.json").write_text(json.dumps(plain))
    done = run_script(LATE, where, data / f"late-{where}.json")
    told = (done.logs / f"rank-{rank}.out").read_text()
    assert f"fault: rank {rank}: another process did not answer within 6 s" in told, done.err[-3000:]
    assert what in told
    assert "raise training.ddp_timeout" in told


KILLED = """
import json, os, signal, sys
from pathlib import Path
from speechlmm_train.process import prepare_process
prepare_process()
from speechlmm_train.compose import validate
from speechlmm_train.run import run
from speechlmm_train.trainer.trainer import SpeechLMMTrainer

how, *files = sys.argv[1:]
before = SpeechLMMTrainer.training_step
def step(self, *args, **kwargs):
    found = before(self, *args, **kwargs)
    if how == "kill" and self.folder.path.name == "killed" and self.state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
SpeechLMMTrainer.training_step = step
for file in files:
    plain = json.loads(Path(file).read_text())
    run(validate(plain), plain=plain, base=Path(file).parent, progress=False, resume=how == "resume")
"""


def test_both_processes_killed_in_a_step_and_taken_up_again(data, run_script):
    """On two processes again the run ends with the same weights, bit for bit, as one that was never stopped."""
    settings = ("training.max_steps=6", "training.save_steps=2", "model.audio_encoder.model.dropout=0.2")
    for name in ("whole", "killed"):
        plain = plain_of(data, name, "whisper_unrestricted", *settings)
        (data / f"{name}.json").write_text(json.dumps(plain))
    done = run_script(KILLED, "kill", data / "whole.json", data / "killed.json")
    assert done.code == 128 + 9, done.err[-3000:]
    assert [path.name for path in (data / "killed").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (data / "killed" / "model").exists()
    done = run_script(KILLED, "resume", data / "killed.json")
    assert done.code == 0, done.err[-3000:]
    for key in ("step", "train/loss", "train/grad_norm"):
        assert [row[key] for row in rows(data / "killed")] == [row[key] for row in rows(data / "whole")], key
    ours, theirs = (load_file(data / name / "model" / "model.safetensors") for name in ("killed", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

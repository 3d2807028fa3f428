"""Planted faults: each is refused before anything is trained or written, with what is wrong, where, and what to do."""

import copy
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from speechlmm_core.errors import SpeechLMMError
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.tasks.asr.config import ASRTaskConfig
from speechlmm_core.wording import USAGE, word
from speechlmm_train.compose import validate
from speechlmm_train.run import run
from speechlmm_train.trainer.trainer import SpeechLMMTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000
ENCODER = {
    "type": "whisper_unrestricted",
    "model": {
        **{"num_mel_bins": 16, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2},
        **{"encoder_ffn_dim": 64, "max_source_positions": 200},
    },
}
DECODER = {
    **{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512},
}
MODEL = {
    "audio_encoder": ENCODER,
    "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
    "text_decoder": {"type": "causal_lm", "tokenizer": "bytes", "chat_template": "chatml", "model": DECODER},
    "objectives": {"ctc": {"type": "ctc"}},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A corpus of four tones without a fault, and a trained model."""
    root = tmp_path_factory.mktemp("whole")
    for i in range(4):
        samples = 0.1 * np.sin(np.arange(RATE * (i + 2) // 4) * 0.1 * (i + 1))
        soundfile.write(root / f"{i}.flac", samples.astype("float32"), RATE)
    rows = [{"id": f"u{i}", "audio": f"{i}.flac", "text": f"word {i}", "task": "asr"} for i in range(4)]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    SpeechLMM.from_model_config(validate(plain(root, root / "out")).model).save_pretrained(root / "model")
    return root


def plain(root, out, **training):
    settings = {"output_dir": str(out), "max_steps": 1, "token_budget": 400, "report_to": [], "save_steps": None}
    return {
        "model": copy.deepcopy(MODEL),
        "data": {"train": [str(root / "train.jsonl")]},
        "training": {**settings, **training},
    }


class Case:
    """A run to spoil: its files, which are copies, and its configuration."""

    def __init__(self, root, patch):
        self.root, self.patch = root, patch
        self.out = root / "runs" / "out"
        self.config = plain(root, self.out)
        self.env = {}

    def rows(self, change, manifest="train.jsonl"):
        """Rewrites the manifest: each row's fields that `change` gives."""
        file = self.root / manifest
        rows = [json.loads(line) for line in (self.root / "train.jsonl").read_text().splitlines()]
        rows = [{**row, **change(i)} for i, row in enumerate(rows)]
        rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    def training(self, **values):
        self.config["training"].update(values)

    def data(self, **values):
        self.config["data"].update(values)

    def evaluate(self, path, **values):
        self.data(eval=[path])
        self.training(eval_steps=1, **values)


LANGUAGES = {"source_language": "en", "target_language": "it"}
FAULTS = {}


def fault(expected):
    """Registers a way to spoil a run, and what is to be said of it."""

    def register(function):
        FAULTS[function.__name__] = (function, expected)
        return function

    return register


# Files.


@fault(r"train\.jsonl:3: .*2\.flac' does not exist")
def missing_file(case):
    (case.root / "2.flac").unlink()


@fault(r"train\.jsonl:2: .*1\.flac: .*(truncated|cut|ends)")
def truncated_flac(case):
    data = (case.root / "1.flac").read_bytes()
    (case.root / "1.flac").write_bytes(data[: len(data) // 2])


@fault(r"train\.jsonl:2: .*1\.flac: truncated or damaged: decoding failed near .*; copy or download it again")
def flac_damaged_within(case):
    data = bytearray((case.root / "1.flac").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    (case.root / "1.flac").write_bytes(data)


@fault(r"train\.jsonl:1: .*0\.flac' is empty")
def empty_file(case):
    (case.root / "0.flac").write_bytes(b"")


@fault(r"train\.jsonl:1: .*0\.wav: the file holds no audio samples; leave it out or record it again")
def zero_length_audio(case):
    soundfile.write(case.root / "0.wav", np.zeros(0, "float32"), RATE)
    case.rows(lambda i: {"audio": "0.wav"} if i == 0 else {})


@fault(r"stage 'train': 4 of 4 .* have a `duration` that is not that of their file; see its sampling rate")
def wrong_rate_in_the_header(case):
    """The samples of 16 kHz, in files that say 4 kHz."""
    for i in range(4):
        samples, _ = soundfile.read(case.root / f"{i}.flac")
        soundfile.write(case.root / f"{i}.flac", samples[: RATE // 2], 4_000)
    case.rows(lambda i: {"duration": 0.5})


@fault(r"train\.jsonl:1: .*0\.txt")
def no_audio_at_all(case):
    (case.root / "0.txt").write_text("this is text")
    case.rows(lambda i: {"audio": "0.txt"} if i == 0 else {})


@fault(r"stage 'train': none of the 4 examples lies between 9 and inf s; they last 0\.50 to 1\.25 s")
def durations_that_leave_nothing(case):
    case.data(min_duration_s=9)


@fault(r"train\.jsonl:1: .*clip\.mp4: .*video")
def missing_video_stream(case):
    with av.open(str(case.root / "clip.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    case.config["model"]["video_encoder"] = {"type": "auto_avsr", "model": small}
    case.config["model"]["video_adapter"] = {"type": "mlp", "num_layers": 1}
    case.rows(lambda i: {"audio": None, "video": "clip.mp4", "task": "vsr"} if i == 0 else {})


# Manifests and texts.


@fault(r"train\.jsonl:3: .*JSON")
def torn_line(case):
    file = case.root / "train.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2][:20]
    file.write_text("\n".join(lines) + "\n")


@fault(r"cannot read the manifest '.*nothing\.jsonl': it does not exist")
def missing_manifest(case):
    case.data(train=[str(case.root / "nothing.jsonl")])


@fault(r"stage 'train': [23] of 4 .* have the id of another of the same task; keep one of them \(.*train\.jsonl:\d")
def duplicate_ids(case):
    case.rows(lambda i: {"id": "same"})


@fault(r"train\.jsonl:1: task 'asr' needs a `text`, the answer, got ''")
def empty_transcript(case):
    case.rows(lambda i: {"text": ""})


@fault(r"stage 'train': 4 of 4 .* have answers of unknown tokens alone; choose a tokenizer that knows their script")
def unknown_tokens_alone(case):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant", "word"]
    own = Tokenizer(models.WordLevel({one: i for i, one in enumerate(words)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=own, additional_special_tokens=["<|im_start|>"], **special)
    fast.save_pretrained(case.root / "words")
    case.config["model"]["text_decoder"]["tokenizer"] = str(case.root / "words")
    case.config["model"]["text_decoder"]["model"] = {**DECODER, "vocab_size": len(fast)}
    case.config["model"].pop("objectives")
    case.rows(lambda i: {"text": "Привіт світ"})


@fault(r"the tokenizer needs \d+ rows .*embedding table")
def tokenizer_larger_than_the_embeddings(case):
    case.config["model"]["text_decoder"]["model"] = {**DECODER, "vocab_size": 100}


@fault(r"stage 'train': 4 of 4 .* have a transcript that objective 'ctc' needs more frames for .* \(.*train\.jsonl:\d")
def target_longer_than_the_frames(case):
    case.rows(lambda i: {"transcript": "abcdefghij" * 12, "text": "short", "task": "st", **LANGUAGES})


@fault(r"train\.jsonl:1: .*'klingon'")
def unknown_language(case):
    case.rows(lambda i: {"task": "st", "source_language": "en", "target_language": "klingon"})


@fault(r"train\.jsonl:1: .*task 'asrr'.*did you mean 'asr'")
def unknown_task(case):
    case.rows(lambda i: {"task": "asrr"})


@fault(r"train\.jsonl:1: .*'video', but this model takes audio")
def input_that_the_model_lacks(case):
    case.rows(lambda i: {"audio": None, "video": "0.flac", "task": "vsr"} if i == 0 else {})


@fault(r"task_weights.*'?st'?")
def task_weights_that_do_not_cover(case):
    case.data(task_weights={"st": 1.0})


# Sizes.


@fault(r"4 example\(s\) are longer than token_budget = 65; the longest, .*train\.jsonl:4, has \d+ positions. Raise")
def budget_below_the_longest(case):
    case.training(token_budget=65)


@fault(r"\d example\(s\) are longer than frame_budget = 20; the longest, .*train\.jsonl:4, has \d+ encoder frames")
def frame_budget_below_the_longest(case):
    case.training(frame_budget=20)


@fault(r"stage 'train': training\.token_budget=5 leaves no example; the shortest, .*train\.jsonl:\d, has \d+ positions")
def budget_below_all(case):
    case.training(token_budget=5)
    case.data(oversized="skip")


@fault(r"training\.token_budget=auto measures on a GPU.*: give .*training\.memory_limit_gib, or the budget as a number")
def auto_budget_without_a_gpu(case):
    case.training(token_budget="auto", use_cpu=True)


@fault(
    r"stage 'train': not even the longest example \(\d+ positions\) fits into .*; set training.gradient_checkpointing"
)
def memory_limit_below_everything(case):
    case.training(token_budget="auto", use_cpu=True, memory_limit_gib=1e-5)


@fault(r"training\.micro_batches_per_step: got 3; expected a multiple of the 2 processes of num_processes")
def ranks_that_do_not_divide_the_batch(case):
    case.training(num_processes=2, micro_batches_per_step=3)


@fault(r"stage 'train': the model cannot process the micro-batch of \d examples \(.*train\.jsonl:\d\): .*")
def longer_than_the_table_of_positions(case):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 48}
    case.config["model"]["text_decoder"]["model"] = {"model_type": "gpt2", **sizes}


@fault(r"stage 'train': the micro-batch of \d examples .* needs more memory than there is; lower training.token_budget")
def out_of_memory(case):
    def forward(self, *args, **kwargs):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    case.patch.setattr(SpeechLMM, "forward", forward)


@fault(r"stage 'train': the micro-batch of \d examples .* needs more memory than there is; lower training.token_budget")
def out_of_the_hosts_memory(case):
    def forward(self, *args, **kwargs):
        torch.empty(2**50, dtype=torch.uint8)

    case.patch.setattr(SpeechLMM, "forward", forward)


# The model.


@fault(r"stage 'train': the loss of .* is not finite before the first step: text_decoder.*norm.weight hold NaN")
def weights_that_are_no_numbers(case):
    file = case.root / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["text_decoder.model.model.norm.weight"][0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    case.training(pretrained_checkpoint=str(case.root / "model"))


@fault(r"stage 'train' trains nothing; every part of the model is frozen")
def everything_frozen(case):
    case.training(freeze_modules=["audio_encoder", "audio_adapter", "text_decoder", "objectives"])


@fault(r"freeze_modules: the model has no part 'audio_encodr'; did you mean 'audio_encoder'")
def frozen_name_that_is_none(case):
    case.training(freeze_modules=["audio_encodr"])


@fault(r"stage 'train': lr_groups: 'audio_adapter.nothing' matches no module")
def rates_of_nothing(case):
    case.training(lr_groups={"audio_adapter.nothing": 1e-3})


@fault(r"adapter 'x': the model has no module 'text_decoder\.nothing'")
def adapter_without_a_target(case):
    case.training(lora_adapters=[{"name": "x", "target_module": "text_decoder.nothing"}])


@fault(r"two adapters are called 'x'")
def two_adapters_of_one_name(case):
    case.training(lora_adapters=[{"name": "x", "target_module": "text_decoder.model"}] * 2)


@fault(r"no folder '.*nowhere'; give the path of a checkpoint folder, a name below \$PRETRAINED_COMPONENTS, or")
def base_checkpoint_missing(case):
    case.config["model"]["audio_encoder"]["pretrained"] = str(case.root / "nowhere")


@fault(r"no checkpoint at '.*nowhere': the folder does not exist; give the folder of a model that")
def pretrained_checkpoint_missing(case):
    case.training(pretrained_checkpoint=str(case.root / "nowhere"))


@fault(r"does not fit: text_decoder.*, expected \(32, 48\); configure text_decoder as it was trained")
def pretrained_checkpoint_of_another_shape(case):
    case.config["model"]["text_decoder"]["model"] = {**DECODER, "intermediate_size": 48}
    case.training(pretrained_checkpoint=str(case.root / "model"))


@fault(r"audio_adapter.*new_components")
def pretrained_checkpoint_without_a_component(case):
    file = case.root / "model" / "model.safetensors"
    tensors = {name: one for name, one in load_file(file).items() if not name.startswith("audio_adapter")}
    save_file(tensors, file, {"format": "pt"})
    case.training(pretrained_checkpoint=str(case.root / "model"))


@fault(r"attn_implementation.*'fast'")
def attention_that_there_is_not(case):
    case.config["model"]["attn_implementation"] = "fast"


@fault(r"model\.codec: unknown codec 'mimi_codec_that_is_none' \(available: .*is the plugin's package installed\?\)")
def codec_missing(case):
    case.config["model"]["codec"] = {"type": "mimi_codec_that_is_none"}


# Where it runs and what it writes.


@fault(r"training\.output_dir .*cannot be written to")
def folder_that_cannot_be_written_to(case):
    (case.root / "runs").write_text("a file in the way")


@fault(
    r"training\.output_dir .*: 2 checkpoints of .* and the model need .*, and 10\.0 KiB are free .*; make room, or set"
)
def disk_full(case):
    usage = namedtuple("usage", "total used free")
    case.patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10240, 10240))
    case.training(save_steps=1, max_steps=2)


@fault(r"training\.report_to names 'wandb', which is not installed: pip install")
def wandb_missing(case):
    case.patch.setitem(__import__("sys").modules, "wandb", None)
    case.training(report_to=["wandb"])


@fault(r"metric 'comet' needs unbabel-comet: pip install unbabel-comet")
def metric_missing(case):
    case.patch.setattr(ASRTaskConfig, "metrics", property(lambda self: ("comet",)))
    case.evaluate(str(case.root / "train.jsonl"))


@fault(r"the manifest '.*eval\.jsonl' has no lines")
def evaluation_set_empty(case):
    (case.root / "eval.jsonl").write_text("")
    case.evaluate(str(case.root / "eval.jsonl"))


@fault(r"eval\.jsonl:1: .*gone\.flac: no such file; check the path")
def evaluation_file_missing(case):
    case.evaluate(case.rows(lambda i: {"audio": "gone.flac"}, "eval.jsonl"))


@fault(r"metric_for_best_model: .* no figure 'eval/asr_were'.*did you mean 'eval/asr_wer'")
def figure_that_there_will_not_be(case):
    case.evaluate(str(case.root / "train.jsonl"), metric_for_best_model="eval/asr_were")


@fault(r"training\.deepspeed_config .*gradient_clipping is 7")
def deepspeed_file_that_contradicts(case):
    (case.root / "ds.json").write_text(json.dumps({"gradient_clipping": 7.0}))
    case.training(parallel="zero2", deepspeed_config=str(case.root / "ds.json"))


@fault(r"training\.deepspeed_config .*JSON")
def deepspeed_file_that_is_no_json(case):
    (case.root / "ds.json").write_text("{")
    case.training(parallel="zero2", deepspeed_config=str(case.root / "ds.json"))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_before_training(whole, tmp_path, monkeypatch, name):
    plant, expected = FAULTS[name]
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    case = Case(root, monkeypatch)
    plant(case)

    def train(*args, **kwargs):
        raise AssertionError("training has begun")

    monkeypatch.setattr(SpeechLMMTrainer, "train", train)
    with pytest.raises(SpeechLMMError) as caught:
        run(validate(case.config), plain=case.config, base=Path(root), progress=False)
    lines, code = word(caught.value)
    assert code == USAGE, caught.value
    assert re.search(expected, "\n".join(lines)), lines
    assert not case.out.exists()


def test_the_run_without_a_fault_trains(whole, tmp_path):
    config = plain(whole, tmp_path / "out")
    report = run(validate(config), plain=config, progress=False)
    assert report.steps == 1
    assert len(FAULTS) >= 25

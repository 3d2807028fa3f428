"""A tiny saved model of toy towers around a tiny Llama, whose random answers differ from clip to clip."""

from __future__ import annotations

import av
import numpy as np
import pytest
import soundfile
import torch

from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.config import ModelConfig
from speechlmm_core.inference.engine import InferenceEngine
from speechlmm_core.interfaces.adapter import adapters
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.testing.toy import ToyAdapterConfig, ToyEncoderConfig
from speechlmm_core.testing.toy_video import ToyVideoEncoderConfig

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


def save_toy_model(folder, inputs):
    """Saves a model of toy towers for some inputs."""
    for registry, cls in (
        (encoders, ToyEncoderConfig),
        (encoders, ToyVideoEncoderConfig),
        (adapters, ToyAdapterConfig),
    ):
        if cls.model_fields["type"].default not in registry.names():
            registry.register(cls)
    decoder = {"type": "causal_lm", "model": LLAMA, "tokenizer": "bytes", "chat_template": "chatml"}
    towers = {}
    for name, encoder in inputs.items():
        towers |= {f"{name}_encoder": {"type": encoder.type}, f"{name}_adapter": {"type": ToyAdapterConfig().type}}
    config = ModelConfig.model_validate({**towers, "text_decoder": decoder})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = SpeechLMM.from_model_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    save_model(model, SpeechLMMProcessor.from_config(config), folder)
    return folder


@pytest.fixture(scope="session")
def toy_model_path(tmp_path_factory):
    """A saved model."""
    return save_toy_model(tmp_path_factory.mktemp("toy") / "model", {"audio": ToyEncoderConfig()})


@pytest.fixture(scope="session")
def toy_video_model_path(tmp_path_factory):
    """A saved model that takes audio and, under another name, video."""
    inputs = {"audio": ToyEncoderConfig(), "lips": ToyVideoEncoderConfig()}
    return save_toy_model(tmp_path_factory.mktemp("toy_video") / "model", inputs)


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder of short videos without sound, and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name, frames in (("a.mp4", 20), ("b.mkv", 35)):
        shades = rng.integers(0, 256, (4, 4), np.uint8)
        with av.open(str(folder / name), "w") as file:
            stream = file.add_stream("mpeg4", rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for _ in range(frames):
                picture = np.kron(shades, np.ones((16, 16), np.uint8))
                frame = av.VideoFrame.from_ndarray(np.stack([picture] * 3, -1), format="rgb24")
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    (folder / "c.mp4").write_bytes(b"no video at all")
    return folder


@pytest.fixture(scope="session")
def engine(toy_model_path):
    return InferenceEngine.from_pretrained(str(toy_model_path))


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """A folder of clips of different lengths, with a subfolder and names that need care."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "ünder folder").mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a", "b", "it's c", "ünder folder/d e", "ünder folder/f", "g"]):
        samples = 0.1 * rng.standard_normal(int(rng.integers(1_000, 40_000)))
        soundfile.write(folder / f"{name}.{'flac' if number % 2 else 'wav'}", samples, 16_000)
    return folder


@pytest.fixture
def mixed(clips, tmp_path):
    """Good files and broken ones of every kind, in one folder."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = (clips / "b.flac").read_bytes()
    (folder / "1 good.flac").write_bytes(good)
    (folder / "2 empty.wav").write_bytes(b"")
    (folder / "3 text.wav").write_text("no audio at all")
    soundfile.write(folder / "4 nan.wav", np.array([0.1, np.nan] * 800, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(folder / "5 no samples.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "6 too short.wav", np.zeros(100), 16_000)
    (folder / "7 truncated.flac").write_bytes(good[: len(good) // 2])
    (folder / "8 good.wav").write_bytes((clips / "a.wav").read_bytes())
    return folder

"""What the tests of this package share: corpora that they make, opened as a user opens them."""

from __future__ import annotations

import pickle
import textwrap
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
import soundfile as sf
import yaml

from speechlmm_core.data.example import Example
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.data.spec.opened import OpenedDataset
from speechlmm_core.interfaces.decoder import DecoderConfig, decoders
from speechlmm_core.media.audio import audio_item_length, load_audio_item


class NarrowDecoderConfig(DecoderConfig):
    """The smallest model there can be, for configurations that are composed and never built."""

    type: Literal["test.narrow"] = "test.narrow"
    width: int = 8

    @property
    def hidden_size(self):
        return self.width

    @property
    def vocab_size(self):
        return 16

    def build_tokenizer(self, path=None):
        raise RuntimeError("a configuration is checked without building anything")

    def build(self, ctx):
        raise RuntimeError("a configuration is checked without building anything")


decoders.register(NarrowDecoderConfig)


class MadeCorpus:
    """A folder in which a test makes a corpus, and opens it through a specification."""

    def __init__(self, root: Path) -> None:
        self.root = root / "corpus"
        self.spec = root / "spec.yaml"
        self.root.mkdir()

    def text(self, name: str, text: str, encoding: str = "utf-8") -> Path:
        """Writes a text file."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding=encoding)
        return path

    def audio(self, name: str, seconds: float, rate: int = 16_000) -> Path:
        """Writes a tone of so many seconds; the format follows from the name."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = 0.1 * np.sin(np.arange(round(seconds * rate)) * 0.05)
        if path.suffix == ".opus":
            sf.write(path, samples, rate, format="OGG", subtype="OPUS")
        elif path.suffix == ".m4a":
            write_aac(path, samples, rate)
        else:
            sf.write(path, samples, rate)
        return path

    def parts(self, preset: str, **entry: Any) -> dict[str, OpenedDataset]:
        """Opens an entry of a specification; parts by partition and languages (`dev/en-de`)."""
        content = {"datasets": [{"preset": preset, "path": "corpus", "name": "made", **entry}]}
        self.spec.write_text(yaml.safe_dump(content))
        opened = open_spec(read_spec(self.spec), base=self.spec.parent)
        return {part.name.partition("/")[2]: part for part in opened}

    def examples(self, preset: str, **entry: Any) -> list[Example]:
        """The examples of all parts, in order, none left out."""
        found: list[Example] = []
        for part in self.parts(preset, **entry).values():
            assert not part.dropped
            elsewhere = pickle.loads(pickle.dumps(part.examples))  # as workers get it
            assert list(elsewhere) == list(part.examples)
            assert elsewhere.whole.sources
            assert all(path.is_file() for path in elsewhere.whole.sources)
            found += elsewhere
        return found


def write_aac(path: Path, samples: np.ndarray, rate: int) -> None:
    """Writes samples as AAC."""
    with av.open(str(path), "w", format="ipod") as file:
        stream = file.add_stream("aac", rate=rate, layout="mono")
        for start in range(0, len(samples), 1024):
            block = samples[None, start : start + 1024].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.fixture(scope="session")
def preset_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, str]], Path]:
    """Writes a user's folder of presets: texts by path, which may be indented."""

    def write(files: Mapping[str, str]) -> Path:
        root = tmp_path_factory.mktemp("conf")
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(textwrap.dedent(text).lstrip("\n"))
        return root

    return write


@pytest.fixture
def made(tmp_path: Path) -> MadeCorpus:
    """A corpus to make."""
    return MadeCorpus(tmp_path)


@pytest.fixture(scope="session")
def heard() -> Any:
    """Loads an example's audio at 16 kHz, and says how many samples it has, which must be as its header says."""

    def load(example: Example, kind: str = "audio") -> int:
        item = {**example.media[kind], "type": kind}
        samples = load_audio_item(item, 16_000).values
        assert len(samples) == audio_item_length(item, 16_000)
        return len(samples)

    return load

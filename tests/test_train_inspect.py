"""`inspect`: samples as the model sees them, in the terminal, on a page and in files."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread

from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.data.draw import draw
from speechlmm_core.media.medium import Medium
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_train.cli.main import main
from speechlmm_train.compose import compose_config
from speechlmm_train.inspection.pictures import feature_bands, spectrogram, wav
from speechlmm_train.inspection.tokens import Span, coloured, marked
from speechlmm_train.trainer.stage_data import open_stages

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 16_000
MODEL = (
    "model/audio_encoder=tiny_whisper_unrestricted",
    "model/audio_adapter=tiny_mlp",
    "model/text_decoder=tiny_llama",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("it's a corpus")
    lines = []
    for number in range(4):
        samples = 0.5 * np.sin(2 * np.pi * 500 * np.arange((1 + number) * RATE // 2) / RATE)
        soundfile.write(root / f"{number}.flac", samples, RATE)
        text = f"<|im_end|> & light {number}"
        lines.append({"audio": f"{number}.flac", "text": text, "task": "asr", "language": "en", "id": f"u{number}"})
    (root / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "bad.jsonl").write_text(json.dumps({**lines[0], "audio": "cut.flac"}) + "\n")
    (root / "cut.flac").write_bytes((root / "3.flac").read_bytes()[:3000])
    entry = "{type: jsonl, path: m.jsonl, name: made}"
    (root / "spec.yaml").write_text(f"datasets: [{entry}]\n")
    return root


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs `inspect`: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["inspect", *map(str, arguments), "--output-dir", str(tmp_path / "out")])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.sources += [value for key, value in attrs if key in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_manifest_and_no_model(call, corpus: Path, tmp_path: Path) -> None:
    code, out, err = call(corpus / "m.jsonl", "--num-samples", 2)
    assert code == 0
    assert "note: no model was named, so a stand-in counts: bytes as tokens" in err
    assert out.count("## ") == 2
    # The user's text that looks like a special token is learnt as text, then the real one ends the turn.
    assert re.search(r"\[\[<\|im_end\|> & light \d<\|im_end\|>\]\]", out)
    assert re.search(r"<audio x \d+>", out)
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list((tmp_path / "out").glob("*.wav"))) == 2


def test_the_page_holds_everything(call, corpus: Path, tmp_path: Path) -> None:
    assert call(corpus / "spec.yaml", "--index", 1)[0] == 0
    page = Page()
    page.feed((tmp_path / "out" / "index.html").read_text())
    assert [source.partition(",")[0] for source in page.sources] == ["data:image/png;base64", "data:audio/wav;base64"]
    image, sound = (base64.b64decode(source.partition(",")[2]) for source in page.sources)
    assert imread(io.BytesIO(image)).shape[2] == 4
    samples, rate = soundfile.read(io.BytesIO(sound))
    original, _ = soundfile.read(corpus / "1.flac")
    assert rate == RATE
    np.testing.assert_allclose(samples, original, atol=1e-4)
    assert "<|im_end|> & light 1" in page.text
    assert "Prompts of the first 3 epochs" in page.text
    assert "u1" in page.text


def test_counts_and_prompts_are_those_of_training(call, corpus: Path, tmp_path: Path) -> None:
    overrides = [*MODEL, f'data.train=["{corpus / "m.jsonl"}"]', "training.max_steps=2", "training.output_dir=x"]
    code, out, err = call(*overrides, "--index", 2, "--epochs", 2)
    assert (code, "note" in err) == (0, False)
    config = compose_config("pretrain", overrides).config
    processor = SpeechLMMProcessor.from_config(config.model)
    (stage,) = open_stages(config, processor, base=Path.cwd(), world_size=1)
    examples = stage.examples
    for epoch in range(2):
        chat = examples.chat(2, draw=draw(stage.plan.seed, epoch, 2))
        prompt = next(item["text"] for item in chat[0].content if item["type"] == "text")
        assert f"epoch {epoch}: <audio>{prompt.strip()}" in out
    sample = processor.sample(examples.chat(2, draw=draw(stage.plan.seed, 0, 2)), with_answer=True)
    learnt = int(sample.layout.supervised.sum())
    assert f"{sample.layout.num_positions} positions, {learnt} learnt, 1.50 s" in out
    assert f"<audio x {sample.layout.num_frames[0]}>" in out
    again = call(corpus / "m.jsonl", *MODEL, "--index", 2, "--epochs", 2)
    assert again[1].splitlines()[2:] == out.splitlines()[2:]


def test_a_saved_model_sees_the_same(call, corpus: Path, tmp_path: Path) -> None:
    overrides = [*MODEL, f'data.train=["{corpus / "m.jsonl"}"]', "training.max_steps=2", "training.output_dir=x"]
    model = SpeechLMM.from_model_config(compose_config("pretrain", overrides).config.model)
    save_model(model, SpeechLMMProcessor.from_config(model.model_config), tmp_path / "run" / "model")
    code, out, err = call(corpus / "m.jsonl", "--model-path", tmp_path / "run", "--index", 3)
    assert (code, "note" in err) == (0, False)
    assert out == call(corpus / "m.jsonl", *MODEL, "training.seed=0", "--index", 3)[1]
    assert f"Made for {tmp_path / 'run'}" not in (tmp_path / "out" / "index.html").read_text()  # written anew


def test_augmentation_when_asked(call, corpus: Path, tmp_path: Path) -> None:
    slow = "data.augment=[{type: speed, factors: [0.5]}]"
    code, out, err = call(corpus / "spec.yaml", *MODEL, slow, "--augment", "--index", 0)
    assert code == 0
    assert "augmented (speed), epoch 0" in err
    assert "1.00 s, 16000 samples" in out
    samples, _ = soundfile.read(next((tmp_path / "out").glob("*.wav")))
    spectrum = np.abs(np.fft.rfft(samples))
    assert len(samples) == RATE
    assert abs(int(spectrum.argmax()) - 250) <= 1  # half of 500 Hz
    assert "0.50 s, 8000 samples" in call(corpus / "spec.yaml", *MODEL, slow, "--index", 0)[1]


def test_a_saved_model_needs_only_what_is_said_of_the_data(call, corpus: Path, tmp_path: Path) -> None:
    overrides = [*MODEL, f'data.train=["{corpus / "m.jsonl"}"]', "training.max_steps=2", "training.output_dir=x"]
    model = SpeechLMM.from_model_config(compose_config("pretrain", overrides).config.model)
    save_model(model, SpeechLMMProcessor.from_config(model.model_config), tmp_path / "run" / "model")
    saved = ("--model-path", tmp_path / "run", "--augment", "--index", 0)
    slow = "data.augment=[{type: speed, factors: [0.5]}]"
    expected = call(corpus / "spec.yaml", *MODEL, slow, *saved[2:])
    assert call(corpus / "spec.yaml", slow, *saved)[:2] == expected[:2]
    path = str(corpus / "spec.yaml").replace("'", r"\'")
    code, out, _ = call(f"data.data_config_path='{path}'", slow, *saved)
    assert (code, out) == expected[:2]
    code, _, err = call(slow, *saved)
    assert (code, err) == (2, "error: data: no training data; give data.train=[manifest.jsonl]\n")


def test_a_page_takes_the_place_of_the_last_and_of_nothing_else(call, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(corpus / "m.jsonl", "--index", 0)[0] == 0
    before = set(out.iterdir())
    mine = [out / "notes.txt", out / "0-1-0-audio.txt"]
    for path in mine:
        path.write_text("mine")
    assert call(corpus / "m.jsonl", "--index", 1)[0] == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"index.html", ".inspection", "0-1-0-audio.png", "0-1-0-audio.wav", *(path.name for path in mine)}
    assert len(before - set(out.iterdir())) == 2


def test_a_sample_that_cannot_be_made_is_a_line(call, corpus: Path) -> None:
    code, out, err = call(corpus / "m.jsonl", corpus / "bad.jsonl", "--num-samples", 1)
    assert code == 1
    assert "error: " in out
    assert "cut.flac: truncated or damaged" in out
    assert "1 samples cannot be made" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected one dataset specification, or manifests"),
        (("nowhere.yaml",), "there is no dataset specification"),
        (("{}/m.jsonl", "{}/spec.yaml"), "expected one dataset specification, or manifests"),
        (("{}/m.jsonl", "--index", "9"), "--index 9"),
        (("{}/spec.yaml", "--dataset", "mode"), "did you mean 'made'?"),
        (("{}/spec.yaml", "--split", "guard"), "names nothing with the destination 'guard'"),
        (("{}/m.jsonl", "--augment"), "--augment: give what to apply"),
        (("{}/m.jsonl", "--model-path", "{}"), "m.jsonl"),
    ],
)
def test_mistakes_are_one_line(call, corpus: Path, arguments: tuple, message: str) -> None:
    code, _, err = call(*(one.format(corpus) for one in arguments))
    assert code == 2
    assert err.startswith("error: ")
    if "--model-path" not in arguments:
        assert message in err
    assert "Traceback" not in err


def test_features_lie_with_time_across() -> None:
    def bands(shape: tuple[int, ...], valid: int) -> tuple[int, ...]:
        found = feature_bands({"input_features": torch.zeros(shape), "lengths": torch.tensor([valid])})
        assert found is not None
        return found.shape

    assert bands((1, 80, 300), 300) == (80, 300)
    assert bands((1, 80, 304), 300) == (80, 300)
    assert bands((1, 300, 160), 300) == (160, 300)
    assert bands((1, 40, 160), 40) == (160, 40)
    assert bands((1, 80, 40), 40) == (80, 40)
    assert bands((3, 80, 100), 100) == (80, 300)  # chunks of one medium
    assert feature_bands({"input_values": torch.zeros(1, 9), "lengths": torch.tensor([9])}) is None


def test_the_spectrogram_of_a_waveform() -> None:
    samples = np.sin(2 * np.pi * 2000 * np.arange(RATE) / RATE).astype(np.float32)
    shown = spectrogram(samples, RATE)
    assert shown.shape == (201, 98)
    assert (shown.argmax(axis=0) == 50).all()  # 2000 Hz in steps of 40
    assert shown.max() - shown.min() <= 80.001
    assert np.isfinite(spectrogram(np.zeros(10, np.float32), RATE)).all()


def test_sound_beyond_full_scale_is_not_clipped() -> None:
    values = torch.linspace(-3, 3, 1001)
    samples, _ = soundfile.read(io.BytesIO(wav(Medium(values, RATE))))
    np.testing.assert_allclose(samples, values.numpy() / 3, atol=1e-4)


def test_sets_that_are_not_shown_count_for_the_draws(call, corpus: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (corpus / "m.jsonl").read_text().splitlines()]
    (corpus / "second.jsonl").write_text(
        "".join(json.dumps({**line, "id": f"s{i}"}) + "\n" for i, line in enumerate(lines))
    )
    sets = [("first", "m", "train"), ("asked", "m", "eval"), ("second", "second", "train"), ("third", "m", "train")]
    entries = [f"{{type: jsonl, path: {path}.jsonl, name: {name}, destination: {for_}}}" for name, path, for_ in sets]
    (corpus / "two.yaml").write_text(f"datasets: [{', '.join(entries)}]\n")
    named = f"data.data_config_path='{str(corpus / 'two.yaml').replace(chr(39), chr(92) + chr(39))}'"
    overrides = [*MODEL, named, "training.max_steps=2", "training.output_dir=x"]
    config = compose_config("pretrain", overrides).config
    (stage,) = open_stages(config, SpeechLMMProcessor.from_config(config.model), base=Path.cwd(), world_size=1)
    # What the loader does with the example 1 of the second set, the sixth of all that are trained on.
    prompts = []
    for epoch in range(6):
        chat = stage.examples.chat(5, draw=draw(stage.plan.seed, epoch, 5))
        prompts.append(next(item["text"] for item in chat[0].content if item["type"] == "text").strip())
    for arguments in (("--dataset", "second"), ("--dataset", "second", "--split", "train")):
        code, out, _ = call(corpus / "two.yaml", *MODEL, *arguments, "--index", 1, "--epochs", 6)
        assert (code, out.count("# second"), out.count("# first")) == (0, 1, 0)
        assert [line.partition("<audio>")[2] for line in out.splitlines() if "epoch" in line] == prompts
    whole = call(corpus / "two.yaml", *MODEL, "--index", 1, "--epochs", 6)[1]
    assert "".join(out.splitlines(keepends=True)).strip() in whole
    (corpus / "two.yaml").write_text(f"datasets: [{', '.join(entries).replace('m.jsonl', 'none.jsonl', 1)}]\n")
    code, out, err = call(corpus / "two.yaml", *MODEL, "--dataset", "second", "--index", 1)
    assert code == 0
    assert "note: prompts and augmentation are drawn otherwise than in training" in err
    assert "none.jsonl" in err


def test_the_folder_of_an_index_is_used_whatever_names_the_data(call, corpus: Path, tmp_path: Path) -> None:
    again = corpus / "again"
    again.mkdir()
    for file in (*corpus.glob("*.flac"), corpus / "spec.yaml", corpus / "m.jsonl"):
        (again / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SystemExit) as caught:
        main(["prepare", str(again / "spec.yaml"), "--index-dir", str(tmp_path / "index")])
    assert caught.value.code in (0, None)
    (again / "m.jsonl").write_text((again / "m.jsonl").read_text() + "\n")  # no longer what was prepared
    quoted = str(again / "spec.yaml").replace("'", "\\'")
    run = [*MODEL, f"data.data_config_path='{quoted}'", "training.max_steps=2", "training.output_dir=x"]
    for named in ([again / "spec.yaml"], run):
        code, _, err = call(*named, "--index", 0, "--index-dir", tmp_path / "index")
        assert code == 2
        assert "speechlmm-train prepare" in err
        assert call(*named, "--index", 0)[0] == 0
        code, _, err = call(*named, "--index", 0, "--index-dir", tmp_path / "nowhere")
        assert code == 2
        assert "--index-dir" in err
        assert "no such folder" in err


def test_what_a_corpus_holds_is_neither_obeyed_nor_taken_for_a_mark(call, corpus: Path) -> None:
    line = json.loads((corpus / "m.jsonl").read_text().splitlines()[0])
    rude = {**line, "id": "\x1b]0;x\x07", "text": "]] [[a]] \x1b[2J\u202eb\x9b1m]"}
    (corpus / "rude.jsonl").write_text(json.dumps(rude) + "\n")
    code, out, _ = call(corpus / "rude.jsonl")
    assert code == 0
    assert not set(out) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert r"\x1b]0;x\x07" in out
    assert r"[[\]] \[[a\]] \x1b[2J\u202eb\u009b1m]" in out
    spans = [Span("[[x]] [", 1), Span("[y\x1b]", 1, supervised=True), Span("] z\n", 1)]
    assert marked(spans) == "\\[[x\\]] \\[[[\\[y\\x1b\\]]]\\] z\n"
    assert re.sub(r"\x1b\[\d+m", "", coloured(spans)) == "[[x]] [[y\\x1b]] z\n"

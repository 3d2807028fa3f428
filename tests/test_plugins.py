"""A plugin of a third party: found, validated, trained and generated with, without an edit in any of our packages."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from speechlmm_core.checkpoint.save import save_model
from speechlmm_core.components import list_components
from speechlmm_core.config import ModelConfig
from speechlmm_core.data.spec.file import read_spec
from speechlmm_core.data.spec.open import open_spec
from speechlmm_core.errors import CheckpointError, ComponentLoadError, DataError, MediaError
from speechlmm_core.interfaces.dataset import datasets
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.media.audio import load_audio_item
from speechlmm_core.model.speechlmm import SpeechLMM
from speechlmm_core.processor.processor import SpeechLMMProcessor
from speechlmm_core.registry import KINDS, Registry
from speechlmm_core.schema import model_schema

TOY = Path(__file__).parents[1] / "examples" / "speechlmm-toy"
SUBTITLES = TOY.parent / "speechlmm-subtitles"
MODEL = {
    "text_decoder": {"type": "causal_lm"},
    "sensor_encoder": {"type": "toy.sensor", "channels": 3},
    "sensor_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
}


def install(source: Path, site: Path) -> None:
    """What an installer does with a pure package: copies its modules, and writes its metadata."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    shutil.copytree(source / "src", site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    fields = {"Metadata-Version": "2.1", "Name": project["name"], "Version": project["version"]}
    fields["Summary"] = project["description"]
    (info / "METADATA").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    lines: list[str] = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def forget() -> None:
    """As in a new process: neither the registry nor Python has the plugin loaded."""
    encoders.loaded.pop("toy.sensor", None)
    for name in [name for name in sys.modules if name.split(".")[0] == "speechlmm_toy"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    install(TOY, folder)
    return folder


@pytest.fixture
def toy(site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    yield
    forget()


@pytest.fixture
def readings(tmp_path):
    path = tmp_path / "a walk's.npy"
    np.save(path, np.random.default_rng(0).normal(size=(73, 3)).astype(np.float32))
    return path


@pytest.fixture
def model_and_processor(toy):
    config = ModelConfig.model_validate(MODEL)
    torch.manual_seed(0)
    return SpeechLMM.from_model_config(config).eval(), SpeechLMMProcessor.from_config(config)


def conversation(path, **item):
    content = [{"type": "sensor", "path": str(path), **item}, {"type": "text", "text": "What do I do?"}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "walk"}]


def test_the_plugin_is_listed_with_its_distribution(toy):
    (row,) = [row for row in list_components() if row.name == "toy.sensor"]
    assert (row.kind, row.distribution, row.version) == ("encoder", "speechlmm-toy", "0.1.0")
    assert "speechlmm_toy" not in sys.modules


def test_its_configuration_is_validated_and_in_the_schema(toy):
    config = ModelConfig.model_validate(MODEL)
    assert config.inputs["sensor"].encoder.hidden_size == 32
    with pytest.raises(ValidationError, match=r"sensor_encoder\.chanels"):
        ModelConfig.model_validate({**MODEL, "sensor_encoder": {"type": "toy.sensor", "chanels": 3}})
    validator = Draft202012Validator(model_schema())
    assert validator.is_valid(MODEL)
    assert not validator.is_valid({**MODEL, "sensor_encoder": {"type": "toy.sensor", "chanels": 3}})


def test_a_message_of_its_modality_flows_through_the_model(model_and_processor, readings):
    model, processor = model_and_processor
    sample = processor.sample(conversation(readings), with_answer=True)
    assert sample.layout.num_frames == [7]  # 73 readings, 14 frames, 7 stacked
    batch = processor.collate([sample, sample])
    output = model(**batch)
    output.loss.backward()
    assert model.sensor_encoder.model[0].weight.grad.abs().sum() > 0
    assert output.stages["sensor_encoder"].lengths.tolist() == [14, 14]

    prompt = processor.sample(conversation(readings)[:1], with_answer=False)
    ids = model.generate(processor.collate([prompt], padding_side="left"), max_new_tokens=3, do_sample=False)
    assert ids.shape[0] == 1


def test_what_the_sensor_says_matters(model_and_processor, readings, tmp_path):
    model, processor = model_and_processor
    other = tmp_path / "other.npy"
    np.save(other, np.load(readings) * -3)
    losses = [
        float(model(**processor.collate([processor.sample(conversation(path), with_answer=True)])).loss.detach())
        for path in (readings, other, readings)
    ]
    assert losses[0] == losses[2]
    assert abs(losses[0] - losses[1]) > 1e-5


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_a_broken_file_is_a_media_error(model_and_processor, tmp_path, content):
    _, processor = model_and_processor
    path = tmp_path / "broken.npy"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"broken\.npy"):
        processor.sample(conversation(path), with_answer=True)


def test_a_message_of_a_modality_that_the_model_lacks_is_refused(model_and_processor, readings):
    _, processor = model_and_processor
    messages = conversation(readings)
    messages[0]["content"][0]["type"] = "image"
    with pytest.raises(DataError, match="'image', but this model takes sensor"):
        processor.sample(messages, with_answer=True)


def test_a_checkpoint_names_the_plugin_that_it_needs(site, readings, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        config = ModelConfig.model_validate(MODEL)
        torch.manual_seed(0)
        model, processor = SpeechLMM.from_model_config(config).eval(), SpeechLMMProcessor.from_config(config)
        save_model(model, processor, tmp_path / "model")
        batch = processor.collate([processor.sample(conversation(readings), with_answer=True)])
        again = SpeechLMM.from_pretrained(tmp_path / "model")
        assert torch.equal(again(**batch).loss, model(**batch).loss)
    forget()
    with pytest.raises(CheckpointError, match=r"unknown encoder 'toy\.sensor'.*pip install 'speechlmm-toy==0\.1\.0'"):
        SpeechLMM.from_pretrained(tmp_path / "model")


def test_a_broken_plugin_harms_nobody_else(toy, tmp_path, monkeypatch, model_and_processor, readings):
    package = tmp_path / "broken"
    (package / "src" / "speechlmm_broken").mkdir(parents=True)
    (package / "src" / "speechlmm_broken" / "__init__.py").write_text("raise RuntimeError('built for another version')")
    (package / "pyproject.toml").write_text(
        '[project]\nname = "speechlmm-broken"\nversion = "0.3"\ndescription = "Broken"\n'
        '[project.entry-points."speechlmm.encoder"]\n"broken.ears" = "speechlmm_broken:Config"\n'
    )
    install(package, tmp_path / "broken-site")
    monkeypatch.syspath_prepend(tmp_path / "broken-site")
    assert "broken.ears" in {row.name for row in list_components("encoder")}
    ModelConfig.model_validate(MODEL)
    model, processor = model_and_processor
    assert model(**processor.collate([processor.sample(conversation(readings), with_answer=True)])).loss.isfinite()
    with pytest.warns(UserWarning, match=r"speechlmm-broken 0\.3 failed to import: built for another version"):
        assert "encoder.toy.sensor" in model_schema()["$defs"]
    told = r"encoder 'broken\.ears' from speechlmm-broken 0\.3 failed to import: built for another version"
    with pytest.raises(ComponentLoadError, match=told):
        ModelConfig.model_validate({**MODEL, "sensor_encoder": {"type": "broken.ears"}})


def test_the_template_passes_its_own_tests(site):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TOY / "tests")],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_shipped_entry_point_is_called_like_its_type(kind):
    __import__(f"speechlmm_core.interfaces.{kind}")
    for entry in entry_points(group=f"speechlmm.{kind}"):
        if entry.dist is not None and entry.dist.name.startswith("speechlmm-"):
            cls = Registry.by_kind[kind].get(entry.name)
            assert cls.model_fields["type"].default == entry.name
            assert cls().type == entry.name


@pytest.fixture
def subtitles(tmp_path, monkeypatch):
    install(SUBTITLES, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield tmp_path / "site"
    datasets.loaded.pop("subtitles.srt", None)
    for name in [name for name in sys.modules if name.split(".")[0] == "speechlmm_subtitles"]:
        del sys.modules[name]


def test_a_reader_of_a_third_party_serves_a_specification(subtitles, tmp_path):
    folder = tmp_path / "talks" / "train"
    folder.mkdir(parents=True)
    samples = np.random.default_rng(0).normal(0, 0.1, 32_000)
    soundfile.write(folder / "talk.wav", samples, 16_000)
    lines = ["1", "00:00:00,250 --> 00:00:01,000", "Good", "morning.", "", "2", "00:00:01,000 --> 00:00:02,000", "Bye."]
    (folder / "talk.srt").write_text("\n".join(lines))
    entry = {"name": "talks", "type": "subtitles.srt", "path": "talks", "task": "asr", "languages": ["en"]}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"datasets": [{**entry, "partitions": {"train": {}}}]}))
    (row,) = [row for row in list_components("dataset") if row.name == "subtitles.srt"]
    assert (row.distribution, row.version) == ("speechlmm-subtitles", "0.1.0")
    (opened,) = open_spec(read_spec(tmp_path / "spec.yaml"), base=tmp_path)
    assert [(one.text, one.source_language) for one in opened.examples] == [("Good morning.", "en"), ("Bye.", "en")]
    for example, (first, last) in zip(opened.examples, [(4_000, 16_000), (16_000, 32_000)], strict=True):
        values = load_audio_item(example.media["audio"], 16_000).values.numpy()
        np.testing.assert_allclose(values, samples[first:last], atol=1e-4)
    user, answer = opened.examples.chat(1)
    assert user.media[0]["start"] == 1.0
    assert answer.content == [{"type": "text", "text": "Bye."}]
    (folder / "talk.srt").write_text("1\nnonsense")
    with pytest.raises(DataError, match=r"talk\.srt:1: expected a subtitle's number"):
        open_spec(read_spec(tmp_path / "spec.yaml"), base=tmp_path)


def test_the_reader_template_passes_its_own_tests(subtitles):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUBTITLES / "tests")],
        env={**os.environ, "PYTHONPATH": str(subtitles)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout

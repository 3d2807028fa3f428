"""The editor schema: what it accepts, what it refuses, and that it covers every installed component."""

import json
from fractions import Fraction
from typing import Annotated, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speechlmm_core.config import ModelConfig
from speechlmm_core.interfaces.adapter import AdapterConfig, AnyAdapter, adapters
from speechlmm_core.interfaces.encoder import EncoderConfig, encoders
from speechlmm_core.schema import export_json_schema, model_schema, write_schema


class Size(BaseModel):
    """A part of a configuration."""

    model_config = ConfigDict(extra="forbid")

    width: Annotated[int, Field(gt=0)] = 8


class Eyes(EncoderConfig):
    type: Literal["test.eyes"] = "test.eyes"
    size: Size = Size()

    @property
    def sampling_rate(self):
        return 25

    @property
    def hidden_size(self):
        return self.size.width

    @property
    def frame_rate(self):
        return Fraction(25)

    def output_lengths(self, num_samples):
        return num_samples

    def build_preprocessor(self):
        raise AssertionError("never built here")

    def build(self, ctx):
        raise AssertionError("never built here")


class Chain(AdapterConfig):
    type: Literal["test.chain"] = "test.chain"
    stages: tuple[AnyAdapter, ...] = ()
    """Adapters, one after the other."""
    last: AnyAdapter | None = None

    def output_lengths(self, num_frames, frame_rate):
        return num_frames

    def output_frame_rate(self, frame_rate):
        return frame_rate

    def build(self, ctx):
        raise AssertionError("never built here")


class Document(BaseModel):
    """A whole configuration file."""

    model_config = ConfigDict(extra="forbid")

    model: ModelConfig
    steps: int = 1


@pytest.fixture(autouse=True, scope="module")
def _registered():
    encoders.register(Eyes)
    adapters.register(Chain)
    yield
    del encoders.loaded["test.eyes"]
    del adapters.loaded["test.chain"]


MODEL = {
    "text_decoder": {"type": "causal_lm", "chat_template": "chatml"},
    "video_encoder": {"type": "test.eyes", "size": {"width": 4}},
    "video_adapter": {
        "type": "test.chain",
        "stages": [{"type": "test.chain", "stages": [{"type": "test.chain"}]}, {"type": "test.chain"}],
        "last": None,
    },
    "objectives": {"ctc": {"type": "ctc", "stage": "video_encoder", "weight": [[0.0, 1.0], [1.0, 0.0]]}},
    "audio_encoder": None,
    "audio_adapter": None,
    "codec": None,
    "attn_implementation": {"text_decoder": "eager"},
}


def refused(schema, document):
    return [error.json_path for error in Draft202012Validator(schema).iter_errors(document)]


def changed(**changes):
    return {**MODEL, **changes}


def test_the_schema_is_itself_valid():
    schema = model_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "x-registry" not in json.dumps(schema)


def test_what_pydantic_accepts_the_schema_accepts():
    config = ModelConfig.model_validate(MODEL)
    assert refused(model_schema(), MODEL) == []
    assert refused(model_schema(), config.model_dump(mode="json")) == []


@pytest.mark.parametrize(
    "document",
    [
        changed(video_encoder={"type": "test.eyse"}),
        changed(video_encoder={"size": {"width": 4}}),
        changed(video_encoder={"type": "test.eyes", "size": {"width": 0}}),
        changed(video_encoder={"type": "test.eyes", "widht": 1}),
        changed(video_encoder={"type": "test.chain"}),
        changed(video_adapter={"type": "test.chain", "stages": [{"type": "test.chain", "stages": [{"type": "no"}]}]}),
        changed(video_adapter={"type": "test.chain", "stages": [{"type": "test.chain", "stage": []}]}),
        changed(video_encodr={"type": "test.eyes"}),
        changed(text_encoder={"type": "test.eyes"}),
        changed(objectives={"ctc": {"type": "ctc", "weight": -1}}),
        changed(objectives={"ctc": {"weight": 1}}),
        changed(attn_implementation=3),
        {key: value for key, value in MODEL.items() if key != "text_decoder"},
    ],
)
def test_what_is_wrong_is_refused(document):
    assert refused(model_schema(), document)
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(document)


def test_a_model_inside_a_document_is_covered():
    schema = export_json_schema(Document)
    assert refused(schema, {"model": MODEL, "steps": 2}) == []
    assert refused(schema, {"model": changed(video_encoder={"type": "test.eyse"})}) == ["$.model.video_encoder"]
    assert refused(schema, {"model": changed(whatever=1)}) == ["$.model"]


def test_every_installed_component_is_offered_with_its_documentation():
    definitions = model_schema()["$defs"]
    for kind in (encoders, adapters):
        offered = {option["$ref"].removeprefix(f"#/$defs/{kind.kind}.") for option in definitions[kind.kind]["oneOf"]}
        assert offered == set(kind.names())
    chain = definitions["adapter.test.chain"]
    assert chain["required"] == ["type"]
    assert chain["properties"]["stages"]["description"] == "Adapters, one after the other."
    assert chain["properties"]["stages"]["items"] == {"$ref": "#/$defs/adapter"}
    assert definitions["encoder.test.eyes.Size"]["properties"]["width"]["exclusiveMinimum"] == 0


def test_a_broken_plugin_is_left_out_with_a_warning(tmp_path, monkeypatch):
    info = tmp_path / "broken_pack-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-pack\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[speechlmm.encoder]\nbroken.ears = no_such_module_anywhere:Config\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match=r"left out of the schema: .*broken-pack 1\.2 failed to import"):
        schema = model_schema()
    assert "encoder.broken.ears" not in schema["$defs"]
    assert refused(schema, MODEL) == []


def test_a_plugin_without_a_schema_is_left_out_with_a_warning():
    class Opaque(Chain):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        type: Literal["test.opaque"] = "test.opaque"
        thing: slice | None = None

    adapters.register(Opaque)
    try:
        with pytest.warns(UserWarning, match=r"left out of the schema: adapter\.test\.opaque"):
            schema = model_schema()
    finally:
        del adapters.loaded["test.opaque"]
    assert "adapter.test.opaque" not in schema["$defs"]


def test_kinds_without_any_component_take_none():
    definitions = model_schema()["$defs"]
    assert definitions["talking_head"] == {"not": {}}
    assert refused(model_schema(), changed(talking_head={"type": "anything"})) == ["$.talking_head"]


def test_the_schema_is_written_whole(tmp_path):
    path = write_schema(tmp_path / ".schemas" / "model.json")
    assert json.loads(path.read_text()) == model_schema()
    before = path.read_text()
    write_schema(path)
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["model.json"]
    write_schema(path, Document)
    assert refused(json.loads(path.read_text()), {"model": MODEL}) == []

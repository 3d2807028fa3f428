"""The typed configuration of a model."""

from fractions import Fraction
from typing import Literal

import pytest
from pydantic import ValidationError

from speechlmm_core.config import RESERVED_INPUTS, ModelConfig
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.adapter import AdapterConfig, adapters
from speechlmm_core.interfaces.encoder import EncoderConfig, encoders
from speechlmm_core.wiring import refuse_speech_output, wire

TEXT = {"text_decoder": {"type": "causal_lm"}}
ENCODER = {"type": "test.ears"}
ADAPTER = {"type": "test.glue"}


class Ears(EncoderConfig):
    type: Literal["test.ears"] = "test.ears"
    width: int = 24

    @property
    def sampling_rate(self):
        return 16_000

    @property
    def hidden_size(self):
        return self.width

    @property
    def frame_rate(self):
        return Fraction(50)

    def output_lengths(self, num_samples):
        return num_samples // 320

    def build_preprocessor(self):
        raise AssertionError("never built here")

    def build(self, ctx):
        raise AssertionError("never built here")


class Glue(AdapterConfig):
    type: Literal["test.glue"] = "test.glue"
    keeps_width: bool = False

    def output_lengths(self, num_frames, frame_rate):
        return num_frames

    def output_frame_rate(self, frame_rate):
        return frame_rate

    def output_size(self, ctx):
        return ctx.input_size if self.keeps_width else ctx.output_size

    def build(self, ctx):
        raise AssertionError("never built here")


@pytest.fixture(autouse=True, scope="module")
def _registered():
    encoders.register(Ears)
    adapters.register(Glue)
    yield
    del encoders.loaded["test.ears"]
    del adapters.loaded["test.glue"]


def faults(document):
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(document)
    return [(".".join(str(part) for part in error["loc"]), error["msg"]) for error in caught.value.errors()]


def test_inputs_are_free_names_in_order():
    config = ModelConfig.model_validate(
        {
            **TEXT,
            "speaker_encoder": {**ENCODER, "width": 8},
            "speaker_adapter": ADAPTER,
            "audio_adapter": ADAPTER,
            "audio_encoder": ENCODER,
        }
    )
    assert list(config.inputs) == ["speaker", "audio"]
    assert config.inputs["speaker"].encoder == Ears(width=8)
    assert config.inputs["audio"].adapter == Glue()


def test_a_model_may_take_text_alone():
    assert ModelConfig.model_validate(TEXT).inputs == {}


def test_keys_that_are_no_text():
    """As YAML's bare `on:` or `5:` are."""
    told = faults({**TEXT, 5: 1, True: 2, "objectivs": {}})
    assert sum("strings" in one for _, one in told) == 2
    assert any("did you mean 'objectives'?" in one for _, one in told)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("audio_encodr", "did you mean 'audio_encoder'?"),
        ("text_decodr", "did you mean 'text_decoder'?"),
        ("objectivs", "did you mean 'objectives'?"),
        ("qqqq", "(known: "),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest(key, hint):
    ((_, told),) = faults({**TEXT, key: {"type": "test.ears"}})
    assert f"unknown key {key!r}" in told
    assert hint in told


@pytest.mark.parametrize(("key", "other"), [("audio_encoder", "audio_adapter"), ("audio_adapter", "audio_encoder")])
def test_an_unpaired_tower_is_told(key, other):
    ((_, told),) = faults({**TEXT, key: ENCODER if key.endswith("encoder") else ADAPTER})
    assert f"{key} has no {other}" in told


@pytest.mark.parametrize(
    "name", ["text", "get", "set", "add", "delete", "load", "a.b", "", "Audio", "1st", "_x", "a b"]
)
def test_names_that_an_input_may_not_have(name):
    with pytest.raises(ValidationError, match=f"an input may not be called {name!r}; use small letters"):
        ModelConfig.model_validate({**TEXT, f"{name}_encoder": ENCODER, f"{name}_adapter": ADAPTER})


@pytest.mark.parametrize("name", ["a.b", "", "Lm", "_x", "a b"])
def test_names_that_an_objective_may_not_have(name):
    with pytest.raises(ValidationError, match=f"an objective may not be called {name!r}; use small letters"):
        ModelConfig.model_validate({**TEXT, "objectives": {name: {"type": "next_token"}}})


def test_names_that_models_have_methods_for_are_reserved():
    from speechlmm_core.model.speechlmm import SpeechLMM

    taken = {name.rpartition("_")[0] for name in dir(SpeechLMM) if name.endswith(("_encoder", "_adapter"))}
    assert taken <= {*RESERVED_INPUTS}


@pytest.mark.parametrize("part", ["backfeeding_adapter", "conditioning_adapter"])
def test_parts_of_speech_output_are_refused_and_not_ignored(part):
    with pytest.raises(ConfigError, match=f"model.{part} is not built yet.*leave it out"):
        refuse_speech_output(ModelConfig.model_validate({**TEXT, part: ADAPTER}))


@pytest.mark.parametrize(
    ("change", "place", "text"),
    [
        ({"audio_encoder": {"type": "test.eras"}}, "audio_encoder", "did you mean 'test.ears'"),
        ({"audio_encoder": {"type": "test.ears", "width": "x"}}, "audio_encoder.width", "valid integer"),
        ({"audio_encoder": {"type": "test.ears", "widht": 1}}, "audio_encoder.widht", "not permitted"),
        ({"audio_adapter": ENCODER}, "audio_adapter", "unknown adapter 'test.ears'"),
        ({"text_decoder": {"type": "causal_ml"}}, "text_decoder", "did you mean 'causal_lm'"),
        ({"objectives": {"ctc": {"type": "ctc", "weight": -1}}}, "objectives.ctc.weight", "greater than or equal to 0"),
    ],
)
def test_errors_keep_their_path(change, place, text):
    found = faults({**TEXT, "audio_encoder": ENCODER, "audio_adapter": ADAPTER, **change})
    assert any(where.startswith(place) and text in told for where, told in found), found


def test_the_text_decoder_is_needed():
    assert faults({}) == [("text_decoder", "Field required")]


def test_null_stands_for_a_tower_that_is_left_out():
    config = ModelConfig.model_validate(
        {**TEXT, "audio_encoder": None, "audio_adapter": None, "codec": None, "talking_head": None}
    )
    assert config.inputs == {}
    assert config.codec is None


def test_a_dump_reads_back_the_same():
    config = ModelConfig.model_validate(
        {
            **TEXT,
            "audio_encoder": {**ENCODER, "width": 8},
            "audio_adapter": ADAPTER,
            "objectives": {"ctc": {"type": "ctc", "weight": [[0.0, 1.0], [1.0, 0.2]]}},
            "attn_implementation": {"audio_encoder": "eager"},
        }
    )
    again = ModelConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert again.inputs == config.inputs
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    assert ModelConfig.model_validate(config) == config


def test_a_configuration_cannot_be_changed():
    config = ModelConfig.model_validate(TEXT)
    with pytest.raises(ValidationError, match="frozen"):
        config.attn_implementation = "eager"


def test_the_attention_is_asked_for_by_component_or_for_all():
    config = ModelConfig.model_validate({**TEXT, "attn_implementation": {"text_decoder": "eager"}})
    assert config.attention_of("text_decoder") == "eager"
    assert config.attention_of("audio_encoder") == "auto"
    assert ModelConfig.model_validate({**TEXT, "attn_implementation": "sdpa"}).attention_of("any") == "sdpa"


def test_next_token_prediction_is_added_unless_it_is_named():
    plain = ModelConfig.model_validate(TEXT)
    assert [objective.type for objective in plain.all_objectives.values()] == ["next_token"]
    named = ModelConfig.model_validate({**TEXT, "objectives": {"lm": {"type": "next_token", "weight": 0.5}}})
    assert {name: objective.weight for name, objective in named.all_objectives.items()} == {"lm": 0.5}


def test_widths_are_wired():
    config = ModelConfig.model_validate({**TEXT, "audio_encoder": ENCODER, "audio_adapter": ADAPTER})
    contexts = wire(config).contexts
    assert contexts["audio_adapter"].input_size == 24
    assert contexts["audio_adapter"].output_size == config.text_decoder.hidden_size
    assert contexts["audio_adapter"].frame_rate == Fraction(50)


def test_an_encoder_whose_width_cannot_be_wired_is_told():
    config = ModelConfig.model_validate(
        {**TEXT, "audio_encoder": ENCODER, "audio_adapter": {**ADAPTER, "keeps_width": True}}
    )
    with pytest.raises(ConfigError, match=r"model\.audio_adapter \(test\.glue\) gives frames of width 24, but"):
        wire(config)


def test_an_objective_on_an_unknown_stage_is_told():
    config = ModelConfig.model_validate(
        {
            **TEXT,
            "audio_encoder": ENCODER,
            "audio_adapter": ADAPTER,
            "objectives": {"c": {"type": "ctc", "stage": "audi_encoder"}},
        }
    )
    with pytest.raises(
        ConfigError, match=r"objectives\.c reads the stage 'audi_encoder'; did you mean 'audio_encoder'"
    ):
        wire(config)

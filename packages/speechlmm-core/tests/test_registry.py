"""Registries: what is found, what is imported when, and what the errors say."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from speechlmm_core.errors import ComponentLoadError
from speechlmm_core.interfaces.adapter import AdapterConfig, AnyAdapter, adapters
from speechlmm_core.interfaces.encoder import encoders
from speechlmm_core.interfaces.metric import MetricConfig
from speechlmm_core.registry import KINDS, Registry

METRIC = """
from typing import Literal
import numpy
from speechlmm_core.interfaces.metric import MetricConfig

class Count(MetricConfig):
    type: Literal["{name}"] = "{name}"
    size: int = 1

    def statistics(self, answers):
        return numpy.ones((len(answers), 1))

    def score(self, total):
        return {{"count": float(total[0])}}
"""


class Stack(AdapterConfig):
    """An adapter that nests adapters."""

    type: Literal["test.nest"] = "test.nest"
    stages: tuple[AnyAdapter, ...] = ()
    num_layers: int = 1

    def output_lengths(self, num_frames, frame_rate):
        return num_frames

    def output_frame_rate(self, frame_rate):
        return frame_rate

    def build(self, ctx):
        raise AssertionError("never built here")


class Model(BaseModel):
    audio_adapter: AnyAdapter


@pytest.fixture
def metrics():
    """A registry of metrics that other tests do not share."""
    before = Registry.by_kind["metric"]
    yield Registry("metric", MetricConfig)
    Registry.by_kind["metric"] = before


@pytest.fixture
def nesting():
    adapters.register(Stack)
    yield
    del adapters.loaded["test.nest"]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a distribution by writing its metadata and a module."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(distribution: str, module: str, source: str, entries: dict[str, str], group: str = "speechlmm.metric"):
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))

    return make


def message(exc: ValidationError) -> tuple[str, str]:
    (error,) = exc.errors()
    return ".".join(str(part) for part in error["loc"]), error["msg"]


def test_an_unknown_name_is_told_with_the_nearest_and_all(metrics, install):
    install("acme", "acme_metrics", METRIC.format(name="acme.count"), {"acme.count": "acme_metrics:Count"})
    install("bold", "bold_metrics", METRIC.format(name="bold.other"), {"bold.other": "bold_metrics:Count"})
    with pytest.raises(PydanticCustomError) as caught:
        metrics.validate({"type": "acme.cuont"})
    told = str(caught.value)
    assert told.startswith("unknown metric 'acme.cuont'; did you mean 'acme.count'? (available: ")
    assert "bold.other" in told
    with pytest.raises(PydanticCustomError, match=r"unknown metric 'zzzz' \(available: "):
        metrics.validate({"type": "zzzz"})


def test_without_any_component_the_message_asks_for_the_package(monkeypatch, metrics):
    monkeypatch.setattr(Registry, "entry_points", lambda self: {})
    with pytest.raises(PydanticCustomError, match="none; is the plugin's package installed"):
        metrics.validate({"type": "wer"})


@pytest.mark.parametrize("value", [None, 3, "mlp", [], {}, {"type": 5}, {"size": 2}])
def test_a_value_without_a_type_is_refused(metrics, value):
    with pytest.raises(PydanticCustomError, match="expected a mapping with a `type:` that names one of the metrics"):
        metrics.validate(value)


@pytest.mark.parametrize(
    ("document", "place", "text"),
    [
        (
            {"audio_adapter": {"type": "test.nest", "stages": [{"type": "test.nest", "num_layers": "two"}]}},
            "audio_adapter.stages.0.num_layers",
            "valid integer",
        ),
        ({"audio_adapter": {"type": "test.nest", "num_layer": 2}}, "audio_adapter.num_layer", "not permitted"),
        (
            {"audio_adapter": {"type": "test.nest", "stages": [{"type": "test.nest"}, {"type": "test.nset"}]}},
            "audio_adapter.stages.1",
            "did you mean 'test.nest'",
        ),
    ],
)
def test_nested_errors_keep_their_path(nesting, document, place, text):
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(document)
    where, told = message(caught.value)
    assert where == place
    assert text in told


def test_nested_components_survive_a_round_trip(nesting):
    model = Model.model_validate(
        {"audio_adapter": {"type": "test.nest", "stages": [{"type": "test.nest", "num_layers": 3}]}}
    )
    assert isinstance(model.audio_adapter, Stack)
    assert model.audio_adapter.stages[0].num_layers == 3
    assert Model.model_validate(model.model_dump(mode="json")) == model
    assert Model.model_validate_json(model.model_dump_json()) == model


def test_two_distributions_that_claim_one_name_are_both_named_when_it_is_asked_for(metrics, install):
    install("acme", "acme_metrics", METRIC.format(name="acme.count"), {"acme.count": "acme_metrics:Count"})
    install("bold", "bold_metrics", METRIC.format(name="acme.count"), {"acme.count": "bold_metrics:Count"})
    assert metrics.names().count("acme.count") == 1
    with pytest.raises(
        ComponentLoadError, match=r"provided by (acme|bold) 1\.2 and by (acme|bold) 1\.2; uninstall one"
    ):
        metrics.get("acme.count")


def test_one_distribution_found_twice_is_no_rival(metrics, install, tmp_path, monkeypatch):
    install("acme", "acme_metrics", METRIC.format(name="acme.count"), {"acme.count": "acme_metrics:Count"})
    again = tmp_path / "again" / "acme-1.1.dist-info"
    again.mkdir(parents=True)
    (again / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-fork\nVersion: 1.1\n")
    (again / "entry_points.txt").write_text("[speechlmm.metric]\nacme.count = acme_metrics:Count\n")
    monkeypatch.syspath_prepend(again.parent)
    assert metrics.get("acme.count").__name__ == "Count"


@pytest.mark.parametrize("fault", ["import no_such_module_anywhere", "1 / 0", "raise KeyError('x')", "def ("])
def test_a_plugin_that_fails_to_import_breaks_nothing_but_itself(metrics, install, fault):
    install("broken-pack", "broken_metrics", fault, {"broken.one": "broken_metrics:Count"})
    install("acme", "acme_metrics", METRIC.format(name="acme.count"), {"acme.count": "acme_metrics:Count"})
    assert "broken.one" in metrics.names()
    assert metrics.validate({"type": "acme.count"}).type == "acme.count"
    with pytest.raises(
        ComponentLoadError, match=r"metric 'broken\.one' from broken-pack 1\.2 failed to import: "
    ) as caught:
        metrics.validate({"type": "broken.one"})
    assert caught.value.__cause__ is not None


def test_a_missing_class_is_told(metrics, install):
    install("acme", "acme_metrics", METRIC.format(name="acme.count"), {"acme.count": "acme_metrics:Cuont"})
    with pytest.raises(ComponentLoadError, match=r"from acme 1\.2 failed to import: .*Cuont"):
        metrics.get("acme.count")


@pytest.mark.parametrize("value", ["os:path", "os.path:join", "pathlib:Path"])
def test_an_entry_point_that_is_no_config_is_told(metrics, install, value):
    install("acme", "acme_metrics", "", {"acme.count": value})
    with pytest.raises(ComponentLoadError, match=r"'acme\.count' from acme 1\.2 is no MetricConfig"):
        metrics.get("acme.count")


def test_a_config_of_another_kind_is_told(metrics, install):
    install(
        "acme",
        "acme_metrics",
        METRIC.format(name="acme.count"),
        {"acme.count": "acme_metrics:Count"},
        "speechlmm.encoder",
    )
    with pytest.raises(ComponentLoadError, match="is no EncoderConfig"):
        encoders.get("acme.count")


def test_an_entry_point_whose_name_is_not_the_type_is_told(metrics, install):
    install("acme", "acme_metrics", METRIC.format(name="acme.count"), {"acme.kount": "acme_metrics:Count"})
    with pytest.raises(ComponentLoadError, match=r"calls itself 'acme\.count'.*must agree"):
        metrics.get("acme.kount")


def test_a_class_is_registered_by_hand_once(metrics, install):
    class Mine(MetricConfig):
        type: Literal["mine.exact"] = "mine.exact"

        def statistics(self, answers):
            return np.ones((len(answers), 1))

        def score(self, total):
            return {}

    assert metrics.register(Mine) is Mine
    assert "mine.exact" in metrics.names()
    assert metrics.validate({"type": "mine.exact"}) == Mine()
    with pytest.raises(ValueError, match=r"metric 'mine\.exact' already exists"):
        metrics.register(Mine)


def test_a_name_that_a_distribution_announces_cannot_be_registered_by_hand(metrics, install):
    install("acme", "acme_metrics", METRIC.format(name="acme.count"), {"acme.count": "acme_metrics:Count"})

    class Taken(MetricConfig):
        type: Literal["acme.count"] = "acme.count"

        def statistics(self, answers):
            return np.ones((len(answers), 1))

        def score(self, total):
            return {}

    with pytest.raises(ValueError, match="already exists"):
        metrics.register(Taken)


def test_a_config_passes_through_unchanged(nesting):
    config = Stack(num_layers=4)
    assert adapters.validate(config) is config


@pytest.mark.parametrize("kind", KINDS)
def test_entry_points_of_core_are_what_their_names_say(kind):
    __import__(f"speechlmm_core.interfaces.{kind}")
    for entry in entry_points(group=f"speechlmm.{kind}"):
        if entry.dist is not None and entry.dist.name == "speechlmm-core":
            cls = Registry.by_kind[kind].get(entry.name)
            assert cls.model_fields["type"].default == entry.name
            assert cls().type == entry.name


def test_core_announces_what_it_ships():
    shipped = {
        f"{kind}:{entry.name}"
        for kind in KINDS
        for entry in entry_points(group=f"speechlmm.{kind}")
        if entry.dist is not None and entry.dist.name == "speechlmm-core"
    }
    assert shipped == {
        "decoder:causal_lm",
        "objective:ctc",
        "objective:next_token",
        "task:asr",
        "task:st",
        "task:chat",
        "task:mt",
        "task:slu",
        "task:slu_intent",
        "task:sqa",
        "task:ssum",
        "task:tsum",
        "task:vsr",
        "task:text_instruct",
        "task:multi_turn_text_instruct",
        "task:ntp",
        "task:interleaved",
        "dataset:jsonl",
    }


def test_composing_and_listing_import_no_framework():
    code = """
import sys
import speechlmm_core
from speechlmm_core import ModelConfig, list_components, model_schema
from speechlmm_core.registry import Registry
document = {"text_decoder": {"type": "causal_lm"}, "objectives": {"lm": {"type": "next_token"}}}
config = ModelConfig.model_validate(document)
config.model_dump(mode="json")
config.text_decoder.hidden_size
list_components()
model_schema()
for registry in Registry.by_kind.values():
    registry.names()
print(sorted({"torch", "transformers", "click", "hydra"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_front_page_offers_few_names_that_all_exist():
    import speechlmm_core

    names = speechlmm_core.__all__
    assert 10 < len(names) <= 30
    assert all(getattr(speechlmm_core, name) is not None for name in names)
    assert (Path(speechlmm_core.__file__).parent / "py.typed").is_file()

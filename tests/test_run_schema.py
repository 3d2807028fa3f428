"""The schema that an editor checks files of a run's configuration with: it takes what can be composed."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from speechlmm_core.schema import export_json_schema
from speechlmm_train import presets
from speechlmm_train.run_file import RunFile

SETTINGS = Path(presets.__file__).parent / "training_setting"


@pytest.fixture(scope="module")
def validator():
    return jsonschema.Draft202012Validator(json.loads(json.dumps(export_json_schema(RunFile))))


@pytest.mark.parametrize("file", sorted(SETTINGS.rglob("*.yaml")), ids=lambda file: file.stem)
def test_it_takes_the_shipped_settings(validator, file):
    content = yaml.safe_load(file.read_text())
    content.pop("model", None)  # of a model, what presets give is not in the file
    assert list(validator.iter_errors(content)) == []


def test_it_refuses_what_there_is_not(validator):
    assert list(validator.iter_errors({"adjustments": ["zero3_issue"], "training": {"lr_min": 1e-6}})) == []
    for wrong in ({"trainig": {}}, {"training": {"lr_min": "low"}}, {"data": {"mixin": "random"}}):
        assert list(validator.iter_errors(wrong)) != []

"""The schema that an editor checks dataset specifications with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from speechlmm_train.cli.main import main

DOCS = Path(__file__).parents[1] / "docs"


def test_the_specifications_in_the_docs_fit_it(tmp_path: Path) -> None:
    output = tmp_path / "data.json"
    with pytest.raises(SystemExit) as caught:
        main(["schema", "--section", "data", "--output", str(output)])
    assert not caught.value.code
    validator = jsonschema.Draft202012Validator(json.loads(output.read_text()))
    pages = (
        DOCS / "how-to" / "add-a-dataset.md",
        DOCS / "reference" / "dataset-specs.md",
        DOCS / "reference" / "corpora.md",
    )
    blocks = [block for page in pages for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)]
    documents = [document for block in blocks if "datasets" in (document := yaml.safe_load(block))]
    assert len(documents) >= 3
    for document in documents:
        validator.validate(document)
    wrong = [
        {"datasets": [{"type": "jsonl", "pth": "x"}]},
        {"datasets": [{"type": "jsonl", "path": "x", "partitions": {"dev": {"destination": "tset"}}}]},
        {"dataset": []},
    ]
    assert not any(validator.is_valid(document) for document in wrong)

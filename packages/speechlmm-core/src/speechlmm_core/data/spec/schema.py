"""The JSON schema of dataset specifications, for editors. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from speechlmm_core.data.spec.config import PartitionSpec
from speechlmm_core.data.spec.entries import ALIASES
from speechlmm_core.data.spec.entry_fields import COMMON
from speechlmm_core.data.spec.presets import preset_files
from speechlmm_core.interfaces.dataset import datasets
from speechlmm_core.interfaces.task import tasks

ENTRY_REFERENCE = "#/$defs/dataset_entry"
Entries = Annotated[
    list[Any] | None,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"x-registry": ENTRY_REFERENCE}},
                {"x-registry": ENTRY_REFERENCE},
                {"type": "null"},
            ]
        }
    ),
]


class SpecFile(BaseModel):
    """A file that specifies datasets."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    datasets: Entries = None
    """Datasets whose partitions say what they are for."""
    data: Entries = Field(default=None, alias="DATA")
    """The same, as the first SpeechLMM calls it."""
    train: Entries = None
    """Datasets for training."""
    eval: Entries = None
    """Datasets that are evaluated on during training."""
    test: Entries = None
    """Datasets for a final evaluation."""
    guard: Entries = None
    """Datasets that are evaluated beside those of `eval`, to notice what gets worse."""


def entry_schemas(definitions: dict[str, Any]) -> None:
    """Adds the schema of an entry to a schema's definitions, which hold those of the readers and tasks."""
    if not any(name.startswith("dataset.") for name in definitions):
        return
    part = PartitionSpec.model_json_schema()
    definitions["dataset_partition"] = {**part, "type": ["object", "null"]}
    common = _common(part["properties"])
    options: list[dict[str, Any]] = [{"type": "string", "minLength": 1, "description": "Path of a JSONL manifest."}]
    for name in datasets.names():
        reader = definitions.get(f"dataset.{name}")
        if reader is not None:
            fields = {**common, **reader.get("properties", {})}
            required = ["type", *(key for key in reader.get("required", []) if key not in ("type", *ALIASES.values()))]
            options.append(
                {
                    "type": "object",
                    "description": reader.get("description", ""),
                    "properties": fields,
                    "required": required,
                    "additionalProperties": False,
                }
            )
    presets = sorted(preset_files())
    preset = {"enum": presets, "description": "Name of a corpus whose layout is known."}
    options.append(
        {
            "type": "object",
            "properties": {**common, "preset": preset if presets else {"type": "string"}},
            "required": ["preset"],
        }
    )
    options.append(
        {
            "type": "object",
            "description": "The form of the first SpeechLMM: the dataset's name, and its fields below it.",
            "minProperties": 1,
            "maxProperties": 1,
            "propertyNames": {"not": {"enum": ["type", "preset", *common]}},
            "additionalProperties": {"type": ["object", "null"], "properties": common},
        }
    )
    definitions["dataset_entry"] = {"anyOf": options}


def _common(part: dict[str, Any]) -> dict[str, Any]:
    code = {
        "anyOf": [
            {"type": "string", "minLength": 2},
            {
                "type": "object",
                "properties": {"source": {"type": "string"}, "target": {"type": ["string", "null"]}},
                "required": ["source"],
                "additionalProperties": False,
            },
        ]
    }
    words = {"type": "string", "minLength": 1}
    options = {"type": ["object", "null"], "description": "Settings of the task."}
    found: dict[str, Any] = {
        "name": {**words, "description": "What messages, reports and weights call it."},
        "task": {
            "description": "What its examples are used for.",
            "anyOf": [{"enum": tasks.names()}, words, {"$ref": "#/$defs/task"}, {"type": "null"}],
        },
        "task_options": options,
        "languages": {
            "description": "Languages (`en`) or pairs (`en-de`) that are used, or `all`.",
            "anyOf": [*code["anyOf"], {"type": "array", "items": code, "minItems": 1}, {"type": "null"}],
        },
        "partitions": {
            "description": "What becomes of its partitions, by name.",
            "anyOf": [
                {"type": "object", "additionalProperties": {"$ref": "#/$defs/dataset_partition"}},
                {"type": "array", "items": words},
                words,
                {"type": "null"},
            ],
        },
        "weight": {
            "type": ["number", "null"],
            "minimum": 0,
            "description": "How often its examples are drawn, in proportion to other weights.",
        },
        "whole": {"$ref": "#/$defs/dataset_partition"},
    }
    assert found.keys() == set(COMMON)
    aliases = {"datapath": {"type": "string"}, "additional_args": options}
    return {**part, **found, **aliases}

"""The editor schema: a JSON schema of the configuration that covers every installed component.

An editor with a YAML language server completes and checks a configuration file whose first line is::

    # yaml-language-server: $schema=.schemas/model.json

(a path relative to the file). Write the schema anew after installing or removing a plugin.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from speechlmm_core.checkpoint.atomic import write_text
from speechlmm_core.config import ModelConfig
from speechlmm_core.data.spec.schema import entry_schemas
from speechlmm_core.registry import KINDS, component_schemas

DIALECT = "https://json-schema.org/draft/2020-12/schema"
INPUT = "^(?!text_)[a-z][a-z0-9_]*"


def model_schema() -> dict[str, Any]:
    """The JSON schema of the `model:` section."""
    return export_json_schema(ModelConfig)


def export_json_schema(root_model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a configuration, in which every registry's field takes the installed components.

    Imports the config class of every installed component, hence neither torch nor transformers where plugins keep
    to the rules. A plugin that fails to import is left out, with a warning.

    Args:
        root_model: The model of the whole document, or any model that holds registry fields at any depth.
    """
    for kind in KINDS:  # a registry exists once its interface is imported
        import_module(f"speechlmm_core.interfaces.{kind}")
    root = component_schemas(root_model.model_json_schema())
    if '"#/$defs/dataset_entry"' in json.dumps(root):
        entry_schemas(root["$defs"])
    if root_model is ModelConfig:
        _take_inputs(root)
    elif "ModelConfig" in root["$defs"]:
        _take_inputs(root["$defs"]["ModelConfig"])
    return {"$schema": DIALECT, **root}


def _take_inputs(model: dict[str, Any]) -> None:
    # ``<input>_encoder`` and ``<input>_adapter`` are free keys of the model, each with a component or null.
    for kind in ("encoder", "adapter"):
        tower = {"anyOf": [{"$ref": f"#/$defs/{kind}"}, {"type": "null"}]}
        model.setdefault("patternProperties", {})[f"{INPUT}_{kind}$"] = tower
    model["additionalProperties"] = False


def write_schema(path: Path | str, root_model: type[BaseModel] = ModelConfig) -> Path:
    """Writes the editor schema atomically, creating the folder it stands in.

    Args:
        path: The file to write.
        root_model: The model of the documents that it describes.
    """
    target = Path(path)
    text = json.dumps(export_json_schema(root_model), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    write_text(target, text)
    return target

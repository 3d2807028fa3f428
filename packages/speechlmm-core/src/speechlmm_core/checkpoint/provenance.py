"""Where a checkpoint came from: versions of the distributions behind it, and fingerprints of base checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from speechlmm_core.checkpoint.weights import weight_files
from speechlmm_core.config import ModelConfig
from speechlmm_core.registry import ComponentConfig, Registry

SAMPLE_BYTES = 1 << 16
NUM_SAMPLES = 16


def component_versions(config: ModelConfig) -> dict[str, Any]:
    """The distribution and version behind every component of a model, and of the libraries underneath."""
    found: dict[str, Any] = {name: version(name) for name in ("speechlmm-core", "torch", "transformers")}
    found["components"] = {name: _provider(kind, component) for name, kind, component in _walk(config)}
    return found


def _walk(config: ModelConfig) -> list[tuple[str, str, ComponentConfig]]:
    rows: list[tuple[str, str, ComponentConfig]] = [("text_decoder", "decoder", config.text_decoder)]
    for name, towers in config.inputs.items():
        rows += [(f"{name}_encoder", "encoder", towers.encoder), (f"{name}_adapter", "adapter", towers.adapter)]
    rows += [(f"objectives.{name}", "objective", objective) for name, objective in config.all_objectives.items()]
    return rows


def _provider(kind: str, component: ComponentConfig) -> dict[str, str | None]:
    for entry in Registry.by_kind[kind].entry_points().get(component.type, []):
        if entry.dist is not None:
            return {"type": component.type, "distribution": entry.dist.name, "version": entry.dist.version}
    module = type(component).__module__.partition(".")[0]
    try:
        return {"type": component.type, "distribution": module, "version": version(module)}
    except PackageNotFoundError:
        return {"type": component.type, "distribution": None, "version": None}


def base_source(pretrained: str) -> dict[str, Any]:
    """The name and fingerprint of a base checkpoint, and its commit where it comes from the hub.

    Raises:
        CheckpointError: There is no such checkpoint, or it holds no weights.
    """
    files = weight_files(pretrained)
    # The hub's cache keeps a checkpoint's files under .../snapshots/<commit>/.
    folder = files[0].parent
    commit = folder.name if folder.parent.name == "snapshots" else None
    return {"pretrained": pretrained, "revision": commit, "fingerprint": fingerprint(files)}


def fingerprint(files: Sequence[Path]) -> str:
    """A quick fingerprint of weight files: their names, sizes and evenly spread samples of what they hold.

    A full hash of a 70-billion-parameter checkpoint takes minutes; samples tell different weights apart all the same.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as handle:
            for i in range(NUM_SAMPLES):
                handle.seek(max(0, (size - SAMPLE_BYTES) * i // (NUM_SAMPLES - 1)))
                digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]

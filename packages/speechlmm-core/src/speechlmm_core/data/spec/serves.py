"""Whether a dataset can serve a task, told from its fields before anything is read. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection

from speechlmm_core.data.spec.config import DatasetSpec

_LANGUAGES = {"source_language": ("language", "source_language"), "target_language": ("target_language",)}


def unserved(spec: DatasetSpec) -> str | None:
    """What the dataset lacks for its task, and what it has, for the user; None if nothing is known to be missing."""
    provides = spec.reader.provides
    if spec.task is None or provides is None or "messages" in provides:
        return None
    missing = [need for need in spec.task.needs if not any(_given(one, spec, provides) for one in need.split("|"))]
    if not missing:
        return None
    wanted = ", ".join(" or ".join(f"`{one}`" for one in need.split("|")) for need in missing)
    fields = ", ".join(f"`{one}`" for one in sorted(provides - {"media"})) or "nothing"
    has = f"it gives {fields}"
    columns = getattr(spec.reader, "columns", None)
    if columns:
        has += (
            f" (columns: {', '.join(f'{field}={source}' for field, source in columns.items() if source is not None)})"
        )
    hint = "map columns to them under `columns`" if columns is not None else "choose another task"
    if any(one in _LANGUAGES for need in missing for one in need.split("|")):
        hint += ", or name the `languages`"
    return f"{spec.name}: task {spec.task.type!r} needs {wanted}, which the dataset does not give; {has}; {hint}"


def _given(need: str, spec: DatasetSpec, provides: Collection[str]) -> bool:
    if need in provides:
        return True
    if need == "media":
        return any(field in ("audio", "video") or field.startswith("media.") for field in provides)
    if need.startswith("media."):
        return need.removeprefix("media.") in provides
    if need in _LANGUAGES:
        side = need.removesuffix("_language")
        named = spec.languages is not None and all(getattr(one, side) is not None for one in spec.languages)
        told = f"{{{need}}}" in str(getattr(spec.reader, "path", ""))
        return named or told or any(field in provides for field in _LANGUAGES[need])
    return False

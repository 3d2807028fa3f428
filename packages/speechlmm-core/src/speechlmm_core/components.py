"""What is installed: every component's kind, name and distribution, read from package metadata alone."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points

from speechlmm_core.registry import KINDS


@dataclass(frozen=True, order=True)
class ComponentRow:
    """One component that some distribution announces."""

    kind: str
    """Registry that it belongs to (`encoder`, `adapter`, …)."""
    name: str
    """Its `type:` in a configuration."""
    distribution: str
    """Distribution that announces it; empty where the metadata do not say."""
    version: str
    """Version of that distribution."""
    summary: str = ""
    """The distribution's one-line description."""


def list_components(kind: str | None = None) -> list[ComponentRow]:
    """Lists the components of the installed distributions, importing none of them.

    Two distributions that claim one name give two rows; asking the registry for that name is an error.

    Args:
        kind: Only components of this kind; all kinds by default.

    Raises:
        ValueError: There is no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} (kinds: {', '.join(KINDS)})")
    rows: set[ComponentRow] = set()
    for one in KINDS if kind is None else (kind,):
        for entry in entry_points(group=f"speechlmm.{one}"):
            if entry.dist is None:
                rows.add(ComponentRow(one, entry.name, "", ""))
            else:
                summary = str(entry.dist.metadata.json.get("summary", ""))
                rows.add(ComponentRow(one, entry.name, entry.dist.name, entry.dist.version, summary))
    return sorted(rows, key=lambda row: (KINDS.index(row.kind), row.name, row.distribution, row.version))

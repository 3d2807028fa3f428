"""`speechlmm-train components`."""

from __future__ import annotations

import click

from speechlmm_train.cli.options import debug_option


@click.command()
@debug_option
def components() -> None:
    """List every installed component with the distribution that brings it."""
    from speechlmm_core.components import list_components

    rows = [(row.kind, row.name, row.distribution or "-", row.version or "-") for row in list_components()]
    table = [("KIND", "NAME", "DISTRIBUTION", "VERSION"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

"""`cogenesis export adapters`: lists or removes the users' adapters in a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogenesis.options.output import JsonOption
from cogenesis.terminal.tables import printable

if TYPE_CHECKING:
    from edge_runtime.adapters.store import AdapterStore, StoredAdapter


def adapters(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory from `cogenesis export onnx`.", show_default=False)],
    remove: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="User whose adapter to remove; may be given again. For a damaged adapter, give its directory.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also read the weights, to find all damage.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the users' adapters in a bundle, or remove some of them.

    Examples:
      cogenesis export adapters bundles/smollm2

      cogenesis export adapters bundles/smollm2 --remove anna
    """
    from edge_runtime.adapters.store import ADAPTERS_DIRECTORY, AdapterStore
    from edge_runtime.bundle.reader import open_bundle

    opened = open_bundle(bundle, verify=False)
    store = AdapterStore(opened.root / ADAPTERS_DIRECTORY, opened.base)
    if remove:
        for user in remove:
            store.remove(user)
        typer.echo(json.dumps({"removed": remove}) if as_json else f"Removed: {', '.join(map(printable, remove))}.")
    elif as_json:
        entries = [_entry(store, entry) for entry in store.entries(whole=verify)]
        typer.echo(json.dumps({"bundle": str(bundle), "base": store.base, "adapters": entries}))
    else:
        _print_table(store, verify)


def _entry(store: AdapterStore, entry: StoredAdapter) -> dict[str, Any]:
    """Return an adapter as JSON; unknown values of a damaged adapter are null."""
    header = entry.header
    return {
        "directory": entry.directory,
        "user": header and header.user,
        "name": header and header.name,
        "ranks": header and header.ranks,
        "weights": header and header.weights,
        "size_bytes": header and header.size,
        "base": header and header.base,
        "base_name": header and header.base_name,
        "base_matches": header and header.base == store.base,
        "sha256": header and header.sha256,
        "created_by": header and header.created_by,
        "problem": entry.problem or None,
    }


def _print_table(store: AdapterStore, verify: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("user", "rank", "on", "weights", "kB", "problem")
    bad = 0
    for entry in store.entries(whole=verify):
        bad += bool(entry.problem)
        header = entry.header
        if header is None:
            cells = [f"{entry.directory}/", "", "", "", "", entry.problem]
        else:
            low, high = header.smallest_rank, header.largest_rank
            rank = str(high) if low == high else f"{low} to {high}"
            on = ", ".join(sorted(header.ranks))
            cells = [header.user, rank, on, header.weights, f"{header.size / 1e3:,.0f}", entry.problem]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console = Console()
    if table.row_count:
        console.print(table)
    console.print(f"{table.row_count:,} adapters in {store.root}, {bad:,} of them unusable.", soft_wrap=True)

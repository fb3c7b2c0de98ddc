"""The commands `cogenesis privacy ...`: check what left the device."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edge_runtime.privacy.audit import Leak

LEAKED = 8
"""Exit code where something private left."""

app = typer.Typer(name="privacy", help="What left this device, and what of it was private.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """What left this device, and what of it was private."""


@app.command()
def audit(
    ledger: Annotated[Path, typer.Option(metavar="FILE", help="The ledger of the generation.", show_default=False)],
    request: Annotated[Path, typer.Option(metavar="FILE", help="Its request (JSON).", show_default=False)],
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The bundle it ran with, to read the ledger's tokens exactly.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report every private unit that left, under any policy; ends with code 8 if there is one.

    Private units are what the request's context says and its instruction does not: names, numbers, dates, addresses,
    rare words, and runs of four words. They are recognised in other case, inflected, in other Unicode forms, spelled
    out, joined, and as other forms of a number. Words are found, not meanings.
    """
    from edge_runtime.privacy.audit import audit as find_leaks
    from edge_runtime.privacy.audit import read_ledger
    from edge_runtime.request import load_request

    asked = load_request(request)
    entries = read_ledger(ledger)
    token_bytes = None
    if bundle is not None:
        from edge_runtime.bundle.reader import open_bundle
        from edge_runtime.text.token_bytes import TokenBytes
        from edge_runtime.text.tokenizer import Tokenizer

        opened = open_bundle(bundle, verify=False)
        token_bytes = TokenBytes(Tokenizer.load(opened.path(opened.manifest.tokenizer.path))).__getitem__
    leaks = find_leaks(entries, asked.instruction, asked.context, token_bytes)
    up = sum(entry.direction == "up" for entry in entries)
    if as_json:
        typer.echo(json.dumps({"messages_up": up, "leaks": [asdict(leak) for leak in leaks]}, ensure_ascii=False))
    else:
        _show(leaks, up)
    if leaks:
        raise typer.Exit(LEAKED)


def _show(leaks: tuple[Leak, ...], up: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not leaks:
        console.print(f"No private unit left in {up:,} messages up.")
        return
    table = Table(title=f"Private units that left in {up:,} messages up", title_justify="left")
    for name in ("kind", "in the context", "as it left", "match"):
        table.add_column(name)
    table.add_column("ledger lines", justify="right")
    for leak in leaks:
        lines = ", ".join(map(str, leak.lines[:5])) + (" ..." if len(leak.lines) > 5 else "")
        table.add_row(leak.kind, escape(leak.surface), escape(leak.left), str(leak.match), lines)
    console.print(table)
    units = len({(leak.kind, leak.surface) for leak in leaks})
    console.print(f"{units:,} private units left. Use --policy guarded, or --mode sketch or edge, to keep them here.")

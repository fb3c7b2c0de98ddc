"""`cogenesis privacy audit`: reports the private units of a request that were sent to the cloud."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.fusion import LEDGER
from cogenesis.options.output import JsonOption
from cogenesis.options.request import RequestOption

if TYPE_CHECKING:
    from edge_runtime.privacy.audit import Leak

LEAKED = 8
"""Exit code if private text was sent."""


def audit(
    ledger: Annotated[Path, LEDGER],
    request: RequestOption,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            "-b",
            metavar="DIR",
            help="Bundle that wrote the answers, to decode the ledger's tokens exactly.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Report every private unit that was sent, under any policy; exit with code 8 if there is one.

    Private units are parts of the request's context that its instruction does not contain: names, numbers, dates,
    addresses, rare words, and sequences of four words. The audit recognises them in other case, inflected, in other
    Unicode forms, spelled out, joined, and as other forms of a number. It finds words, not meanings.

    Example: cogenesis privacy audit --ledger ledger.jsonl --request request.json
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
        console.print(f"{up:,} messages were sent; none contained a private unit.")
        return
    table = Table(title=f"Private units in the {up:,} sent messages", title_justify="left")
    for name in ("kind", "in the context", "as sent", "match"):
        table.add_column(name)
    table.add_column("ledger lines", justify="right")
    for leak in leaks:
        lines = ", ".join(map(str, leak.lines[:5])) + (" ..." if len(leak.lines) > 5 else "")
        table.add_row(leak.kind, escape(leak.surface), escape(leak.left), str(leak.match), lines)
    console.print(table)
    units = len({(leak.kind, leak.surface) for leak in leaks})
    console.print(
        f"{units:,} private units were sent. To keep them here, use --policy guarded, or --mode sketch or edge."
    )

"""`cogenesis export adapter` and `adapters`: users' adapters go into a bundle, are listed, and go again."""

from __future__ import annotations

import enum
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogenesis.terminal.progress_bar import progress_bar
from export.errors import AdapterExportError

if TYPE_CHECKING:
    from edge_runtime.adapters.store import AdapterStore, StoredAdapter
    from export.adapters.export import ExportedAdapter

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


class Weights(enum.StrEnum):
    """Choices of `--weights`."""

    fp16 = "fp16"
    int8 = "int8"
    fp32 = "fp32"


def adapter_command(
    peft: Annotated[
        Path, typer.Option(help="Directory of a trained adapter in PEFT's format, or of many users' directories.")
    ],
    bundle: Annotated[Path, typer.Option("--bundle", help="Bundle of the model that it was trained on.")],
    user: Annotated[
        str | None, typer.Option(metavar="ID", help="Whose it is; default: whose the training says.")
    ] = None,
    weights: Annotated[
        Weights, typer.Option(help="fp16: nearly exact. int8: half the size. fp32: exact.")
    ] = Weights.fp16,
    base: Annotated[
        str | None,
        typer.Option(help="The model that it was trained on, for adapters that [bold]cogenesis[/bold] didn't train."),
    ] = None,
    learned: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the profile and texts that it was trained on, for the same: what they say is kept "
            "from the cloud under the policy guarded."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the users' present adapters.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a user's trained LoRA adapter into a bundle, or every user's that a directory holds.

    Plain LoRA on linear layers, of any rank. The bundle must have been made from the model that the adapter was trained
    on; how it is quantized does not matter, nor which runtime it is for.

    Examples:
      cogenesis export adapter --peft adapters/anna --bundle bundles/smollm2 --user anna

      cogenesis export adapter --peft adapters --bundle bundles/smollm2 --weights int8 --force

      cogenesis export adapter --peft from-elsewhere --base models/smollm2 --bundle bundles/smollm2 --user ben
    """
    from export.adapters.export import export_adapter, export_adapters, trained_adapters
    from export.adapters.peft_files import CONFIG_NAME

    if user is not None or (peft / CONFIG_NAME).exists() or not trained_adapters(peft):
        exported = export_adapter(peft, bundle, user, weights.value, base=base, learned=learned, force=force)
        typer.echo(json.dumps(_document(exported)) if as_json else _sentence(exported))
        return
    began = time.monotonic()
    with progress_bar(not as_json) as report:
        done, failed = export_adapters(peft, bundle, weights.value, base=base, force=force, progress=report)
    if as_json:
        failures = [{"directory": str(one.directory), "error": one.error} for one in failed]
        typer.echo(json.dumps({"exported": [_document(one) for one in done], "failed": failures}))
    else:
        for one in failed:
            typer.echo(f"{one.directory}: {one.error}", err=True)
        size = sum(one.size for one in done) / 1e6
        typer.echo(
            f"{bundle}: {len(done):,} adapters, {size:.1f} MB, {sum(one.unchanged for one in done):,} of them there "
            f"already, in {time.monotonic() - began:.0f} s."
        )
    if failed:
        raise AdapterExportError(
            f"{len(failed):,} of {len(done) + len(failed):,} adapters were not exported, the first: {failed[0].error}"
        )


def adapters_command(
    bundle: Annotated[Path, typer.Argument(help="Directory made by `cogenesis export onnx`.")],
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Remove this user's adapter; may be given again. Damaged: its directory."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Read the weights, too, which tells all damage.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the users' adapters in a bundle, or remove some.

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
        typer.echo(json.dumps({"removed": remove}) if as_json else f"Removed: {', '.join(map(_printable, remove))}.")
    elif as_json:
        entries = [_entry(store, entry) for entry in store.entries(whole=check)]
        typer.echo(json.dumps({"bundle": str(bundle), "base": store.base, "adapters": entries}))
    else:
        _print_table(store, check)


def _document(exported: ExportedAdapter) -> dict[str, Any]:
    return {
        "user": exported.user,
        "path": str(exported.path),
        "size_bytes": exported.size,
        "unchanged": exported.unchanged,
    }


def _sentence(exported: ExportedAdapter) -> str:
    there = ", as it was there already" if exported.unchanged else ""
    return f"{exported.path}: the adapter of {_printable(exported.user)}, {exported.size / 1e6:.2f} MB{there}."


def _entry(store: AdapterStore, entry: StoredAdapter) -> dict[str, Any]:
    """An adapter for machines; what can't be known of a damaged one is null."""
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


def _print_table(store: AdapterStore, check: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("user", "rank", "on", "weights", "kB", "problem")
    bad = 0
    for entry in store.entries(whole=check):
        bad += bool(entry.problem)
        header = entry.header
        if header is None:
            cells = [f"{entry.directory}/", "", "", "", "", entry.problem]
        else:
            low, high = header.smallest_rank, header.largest_rank
            rank = str(high) if low == high else f"{low} to {high}"
            on = ", ".join(sorted(header.ranks))
            cells = [header.user, rank, on, header.weights, f"{header.size / 1e3:,.0f}", entry.problem]
        table.add_row(*(Text(_printable(cell)) for cell in cells))
    console = Console()
    if table.row_count:
        console.print(table)
    console.print(f"{table.row_count:,} adapters in {store.root}, {bad:,} of them unusable.", soft_wrap=True)


def _printable(text: str) -> str:
    """Text from a file with what would move a terminal's cursor spelled out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)

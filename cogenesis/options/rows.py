"""Options for what the cloud sends of each next-token distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

import typer

from edge_runtime.fusion.sparse import THIN, RowFormat, ValueType

ROWS = "Rows from the cloud"


@dataclass(frozen=True, kw_only=True)
class CloudRows:
    """How the cloud's rows are cut and coded; a row is the log-probabilities of one next token."""

    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            help=f"Most log-probabilities in a row. Default {THIN.top_k}.",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None
    mass: Annotated[
        float | None,
        typer.Option(
            help=f"A row ends where its most likely tokens reach this probability mass. Default {THIN.mass:g}.",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None
    floor: Annotated[
        float | None,
        typer.Option(
            help=f"A row leaves out tokens less likely than this. Default {THIN.floor:g}.",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None
    wire: Annotated[
        str | None,
        typer.Option(
            help=f"How the values are coded: float32 (exact), float16 or bits12. Default {THIN.value_type}.",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None

    def form(self) -> RowFormat | None:
        """The form that was asked for: the usual one but for what is given; None where nothing is."""
        if self == CloudRows():
            return None
        return RowFormat(
            THIN.top_k if self.top_k is None else self.top_k,
            THIN.mass if self.mass is None else self.mass,
            THIN.value_type if self.wire is None else cast("ValueType", self.wire),
            THIN.floor if self.floor is None else self.floor,
        )

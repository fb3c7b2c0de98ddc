"""Options for the part of each next-token distribution that the cloud sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

import typer

from edge_runtime.fusion.sparse import THIN, RowFormat, ValueType

ROWS = "Rows from the cloud"


@dataclass(frozen=True, kw_only=True)
class CloudRows:
    """How the cloud truncates and encodes its rows; a row holds the log-probabilities of one next token."""

    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            help=f"Maximum log-probabilities per row. Default: {THIN.top_k}.",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None
    mass: Annotated[
        float | None,
        typer.Option(
            help=f"Probability mass after which a row ends, most likely tokens first. Default: {THIN.mass:g}.",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None
    floor: Annotated[
        float | None,
        typer.Option(
            help=f"Minimum probability of a token in a row. Default: {THIN.floor:g}.",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None
    wire: Annotated[
        str | None,
        typer.Option(
            help=f"Encoding of the values: float32 (exact), float16 or bits12. Default: {THIN.value_type}.",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None

    def form(self) -> RowFormat | None:
        """Return the default format with the given options applied; None if no option is given."""
        if self == CloudRows():
            return None
        return RowFormat(
            THIN.top_k if self.top_k is None else self.top_k,
            THIN.mass if self.mass is None else self.mass,
            THIN.value_type if self.wire is None else cast("ValueType", self.wire),
            THIN.floor if self.floor is None else self.floor,
        )

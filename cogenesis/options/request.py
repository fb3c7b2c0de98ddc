"""Options for what is to be written and who writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_runtime.generation.options import Mode

RequestOption = Annotated[
    Path,
    typer.Option(
        "--request",
        metavar="FILE",
        help="The request (JSON): an instruction, and a context with profile and history.",
        show_default=False,
    ),
]
MODE = typer.Option(
    "--mode",
    help="Who writes: the device's model (edge), the cloud's (cloud), the device along an outline of the cloud "
    "(sketch), or both together (fused). `chat` takes fused with --cloud, else edge.",
)
ModeOption = Annotated[Mode, MODE]

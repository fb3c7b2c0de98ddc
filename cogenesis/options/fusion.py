"""Options for how device and cloud write together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edge_runtime.errors import RequestError
from edge_runtime.fusion.fuse import Fusion, Strategy, usual_weight
from edge_runtime.generation.schedule import LearnedSchedule, Schedule, parse_schedule
from edge_runtime.privacy.gate import Policy

FUSION = "Fusion of device and cloud"

LEDGER = typer.Option(
    "--ledger",
    metavar="FILE",
    help="The ledger: a JSON Lines file of all messages to the cloud. Commands that send messages append to it.",
    show_default=False,
)
LedgerOption = Annotated[Path | None, LEDGER]
PolicyOption = Annotated[
    Policy,
    typer.Option(
        help="What the device may send besides the instruction. guarded: the answer without private words. "
        "open: the whole answer. sketch: nothing.",
        rich_help_panel=FUSION,
    ),
]

WithoutOption = Annotated[
    bool,
    typer.Option(
        "--without",
        help="Also run the device's model without the context, for delta steering. The device then computes "
        "a second sequence.",
        rich_help_panel=FUSION,
    ),
]


@dataclass(frozen=True, kw_only=True)
class FusionOptions:
    """How the two distributions are fused, when the cloud is asked, and what the device may send."""

    policy: PolicyOption = Policy.GUARDED
    fusion: Annotated[
        Strategy,
        typer.Option(
            help="How the two distributions are fused. learned: by the bundle's combiner.", rich_help_panel=FUSION
        ),
    ] = Strategy.GEOMETRIC
    schedule: Annotated[
        str,
        typer.Option(
            metavar="P,K,T|learned[:SHARE]",
            help="Ask the cloud at the first P steps, then at T of every K+T steps. learned: at steps where the "
            "bundle's combiner expects a large gain. learned:0.5: at about half of the steps, those with the "
            "largest expected gain.",
            rich_help_panel=FUSION,
        ),
    ] = "0,0,1"

    def fused(self) -> Fusion:
        """The strategy with its weight."""
        return Fusion(self.fusion, usual_weight(self.fusion))

    def steps(self) -> Schedule | LearnedSchedule:
        """Return the schedule, which decides at which steps the cloud is asked.

        Raises:
            RequestError: the schedule has another form.
        """
        return parse_schedule(self.schedule)


@dataclass(frozen=True, kw_only=True)
class PacedFusionOptions(FusionOptions):
    """`FusionOptions` with the weight and the pace of the messages."""

    weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of the device's model, from 0 to 1; for the strategy delta its alpha. Default: 0.5, "
            "for delta 1.",
            rich_help_panel=FUSION,
            show_default=False,
        ),
    ] = None
    window: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Tokens per round trip. Changes only the speed, never the answer.",
            rich_help_panel=FUSION,
        ),
    ] = "auto"
    patience: Annotated[
        float,
        typer.Option(
            help="Maximum seconds that a token waits for the cloud before the device continues alone.",
            rich_help_panel=FUSION,
        ),
    ] = 5.0

    def fused(self) -> Fusion:
        """The strategy with its weight."""
        return Fusion(self.fusion, usual_weight(self.fusion) if self.weight is None else self.weight)

    def window_tokens(self) -> int | None:
        """Return the tokens per round trip; None lets the runtime choose.

        Raises:
            RequestError: the window is not a whole number.
        """
        if self.window == "auto":
            return None
        if not self.window.isdecimal():
            raise RequestError(f"--window must be a whole number or auto, not {self.window}.")
        return int(self.window)

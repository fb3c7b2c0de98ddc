"""`cogenesis adapter`: trains users' adapters, and measures what they are worth."""

from __future__ import annotations

import typer

from cogenesis.adapter.evaluate import evaluate
from cogenesis.adapter.train import train

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train an adapter for each user from what they wrote, and measure what it is worth.",
)
app.command()(train)
app.command()(evaluate)

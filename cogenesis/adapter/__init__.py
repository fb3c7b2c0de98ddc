"""`cogenesis adapter`: trains users' adapters and measures their gain."""

from __future__ import annotations

from cogenesis.adapter.evaluate import evaluate
from cogenesis.adapter.train import train
from cogenesis.terminal.flag_names import CommandApp

app = CommandApp(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train an adapter for each user on their own texts, and measure its gain.",
)
app.command()(train)
app.command()(evaluate)

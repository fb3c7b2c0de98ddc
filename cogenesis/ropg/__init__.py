"""`cogenesis ropg`: optimizes a retriever by what its items are worth to the model that reads them."""

from __future__ import annotations

import typer

from cogenesis.ropg.feedback import feedback
from cogenesis.ropg.train import train_kd, train_rl

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Optimize a retriever by what the items it finds are worth to a language model (ROPG).",
)
app.command()(feedback)
app.command("train-kd")(train_kd)
app.command("train-rl")(train_rl)

"""`cogenesis rspg`: selects for each question the retriever of a pool that serves the model best."""

from __future__ import annotations

import typer

from cogenesis.rspg.data import data, show_bounds
from cogenesis.rspg.export import export
from cogenesis.rspg.feedback import feedback
from cogenesis.rspg.predict import predict
from cogenesis.rspg.train import train

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Select for each question the retriever of a pool that serves the language model best (RSPG).",
)
app.command()(feedback)
app.command()(data)
app.command("bounds")(show_bounds)
app.command()(train)
app.command()(predict)
app.command()(export)

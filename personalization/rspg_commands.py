"""`cogenesis rspg`: selects for each question the retriever of a pool that serves the model best."""

from __future__ import annotations

import typer

from personalization.rspg_data_command import data, show_bounds
from personalization.rspg_export_command import export
from personalization.rspg_feedback_command import feedback
from personalization.rspg_predict_command import predict
from personalization.rspg_train_command import train

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

"""`cogenesis lamp`: LaMP's tasks from ranked profiles to scores."""

from __future__ import annotations

import typer

from personalization.lamp_avocado_command import avocado
from personalization.lamp_compare_command import compare
from personalization.lamp_evaluate_command import evaluate
from personalization.lamp_merge_command import merge
from personalization.lamp_rank_command import rank
from personalization.lamp_score_command import score
from personalization.lamp_split_command import split
from personalization.lamp_train_command import train

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Rank profiles, answer and score the tasks of LaMP, the benchmark of personalization.",
)
app.command()(split)
app.command()(rank)
app.command()(merge)
app.command()(train)
app.command()(evaluate)
app.command()(compare)
app.command()(score)
app.command()(avocado)

"""`cogenesis lamp`: runs LaMP's tasks, from ranked profiles to scores."""

from __future__ import annotations

from cogenesis.lamp.avocado import avocado
from cogenesis.lamp.compare import compare
from cogenesis.lamp.evaluate import evaluate
from cogenesis.lamp.merge import merge
from cogenesis.lamp.rank import rank
from cogenesis.lamp.score import score
from cogenesis.lamp.split import split
from cogenesis.lamp.train import train
from cogenesis.terminal.flag_names import CommandApp

app = CommandApp(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Rank profiles, answer questions and score answers for LaMP, a benchmark of personalization.",
)
app.command()(split)
app.command()(rank)
app.command()(merge)
app.command()(train)
app.command()(evaluate)
app.command()(compare)
app.command()(score)
app.command()(avocado)

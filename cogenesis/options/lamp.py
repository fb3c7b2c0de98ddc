"""Options for LaMP's questions, their gold outputs, and the profile items in a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WHOSE = "Data"

TASK = typer.Option(
    "--task",
    metavar="LaMP-N",
    help="The LaMP task of the questions: LaMP-1 to LaMP-7, or LaMP-2-news (also LaMP_2N).",
    rich_help_panel=WHOSE,
    show_default=False,
)
TaskOption = Annotated[str, TASK]
QUESTIONS = typer.Option(
    "--questions",
    "-q",
    help="A LaMP questions file. Commands that need ranked items or gold outputs take a file that `lamp merge` wrote.",
    rich_help_panel=WHOSE,
    show_default=False,
)
QuestionsOption = Annotated[Path, QUESTIONS]
OUTPUTS = typer.Option(
    "--outputs", help="A LaMP file with the questions' gold outputs.", rich_help_panel=WHOSE, show_default=False
)
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        metavar="N",
        help="Use only the first N users, questions or records of the file.",
        rich_help_panel=WHOSE,
        show_default=False,
    ),
]
DevQuestionsOption = Annotated[
    Path | None,
    typer.Option(
        "--dev-questions",
        help="Questions of other users, in the form of --questions. They select the best epoch.",
        rich_help_panel=WHOSE,
        show_default=False,
    ),
]
NumRetrievedOption = Annotated[
    int,
    typer.Option("--num-retrieved", "-k", min=0, help="Number of profile items in a prompt; 0: no personalization."),
]
ProfileSizeOption = Annotated[
    int,
    typer.Option(
        "--profile-size",
        min=1,
        help="Maximum number of profile items per question: the first items, in training the first with feedback.",
    ),
]
UseDateOption = Annotated[bool, typer.Option("--use-date", help="Append the date of each profile item to its text.")]
PartOption = Annotated[
    list[str],
    typer.Option(
        "--part",
        metavar="NAME=SHARE",
        help="Name and share of a part; give two or more. For a split by time, start with the earliest part.",
        show_default=False,
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option("--metric", help="Metric to use, if the feedback has several.", show_default=False),
]
ENCODER = typer.Option(
    "--encoder",
    metavar="DIR",
    help="Directory of a text encoder in Hugging Face format, such as Contriever or Longformer.",
    show_default=False,
)

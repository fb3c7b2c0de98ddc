"""Options for the questions of LaMP, their gold outputs and the profile items that a prompt shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WHOSE = "Whose data"

TASK = typer.Option(
    "--task",
    metavar="LaMP-N",
    help="The LaMP task of the questions: LaMP-1 to LaMP-7, or LaMP-2-news.",
    rich_help_panel=WHOSE,
    show_default=False,
)
TaskOption = Annotated[str, TASK]
QUESTIONS = typer.Option(
    "--questions",
    "-q",
    help="A questions file of LaMP. Where items are ranked or gold outputs needed: one that `lamp merge` wrote.",
    rich_help_panel=WHOSE,
    show_default=False,
)
QuestionsOption = Annotated[Path, QUESTIONS]
OUTPUTS = typer.Option(
    "--outputs", help="Gold outputs of the questions, a file of LaMP.", rich_help_panel=WHOSE, show_default=False
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
        help="Questions of other users, as --questions; they select the best epoch.",
        rich_help_panel=WHOSE,
        show_default=False,
    ),
]
NumRetrievedOption = Annotated[
    int, typer.Option("--num-retrieved", "-k", min=0, help="Profile items in a prompt; 0: no personalization.")
]
ProfileSizeOption = Annotated[
    int,
    typer.Option(
        "--profile-size",
        min=1,
        help="Most profile items of a question that are used: the first, in training the first with feedback.",
    ),
]
UseDateOption = Annotated[bool, typer.Option("--use-date", help="Append its date to the text of each profile item.")]
PartOption = Annotated[
    list[str],
    typer.Option(
        "--part",
        metavar="NAME=SHARE",
        help="Name and share of a part; give two or more. Parts by time are named from the earliest on.",
        show_default=False,
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option("--metric", help="Metric of the feedback, where it has several.", show_default=False),
]
ENCODER = typer.Option(
    "--encoder",
    metavar="DIR",
    help="Directory of a text encoder in Hugging Face format, such as Contriever or Longformer.",
    show_default=False,
)

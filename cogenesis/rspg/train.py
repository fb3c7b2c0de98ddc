"""`cogenesis rspg train`: trains a selector to choose the best retriever of a pool for each question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cogenesis.options.expand import expand
from cogenesis.options.lamp import ENCODER
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.training import HOW, SoftmaxTemperatureOption, TrainingOptions, say_trained, team_on
from cogenesis.rspg.options import SelectionOption
from cogenesis.terminal.progress_bar import progress_bar
from edge_runtime.retrieval.selector_card import SelectorMode
from personalization.models.libraries import prepare_command
from personalization.retrievers.selector_data import read_selection


@expand
def train(
    data: SelectionOption,
    encoder: Annotated[Path, ENCODER],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the selector to write.", show_default=False)],
    stage: Annotated[
        SelectorMode,
        typer.Option(help="Texts that the selector reads: prompts (pre), or prompts and the model's answers (post)."),
    ] = SelectorMode.PRE,
    dev_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Data of other users, in the form of --data. It selects the best epoch.",
            show_default=False,
        ),
    ] = None,
    max_candidate_tokens: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Maximum tokens per candidate. Default: the encoder's maximum.",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = None,
    *,
    training: TrainingOptions,
    softmax_temperature: SoftmaxTemperatureOption = 1.0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a selector of retrievers, which selects before generation (pre) or after it (post).

    An interrupted run resumes. Several processes can train together: start them with `accelerate launch -m cogenesis
    rspg train ...` or `torchrun`.

    Example:
      cogenesis rspg train --data train.json --dev-data dev.json --encoder longformer --stage post -o selector
    """
    settings = training.tuning(temperature=softmax_temperature)
    prepare_command()
    from personalization.retrievers.rspg import train_selector
    from personalization.retrievers.selector import Selector

    learned = read_selection(data)
    judging = None if dev_data is None else read_selection(dev_data)
    team = team_on(training.device)
    selector = Selector.new(encoder, stage, learned.retrievers, max_candidate_tokens, team.device)
    with progress_bar(visible=team.leads) as progress:
        trained = train_selector(selector, out, learned, judging, settings, team, force=force, progress=progress)
    numbers: dict[str, Any] = {"questions": len(learned.questions), "retrievers": ", ".join(learned.retrievers)}
    if judging is not None:
        numbers["dev_questions"] = len(judging.questions)
    say_trained(trained, team, numbers, as_json)

"""`cogenesis lamp rank`: orders every user's profile for what they ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.users import AddressOption, JsonOption, RunnerOption, ThreadsOption, WorkersOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.errors import SettingsError
from personalization.jobs.runners import RunnerName, runner_of
from personalization.lamp.questions import QuestionFile
from personalization.lamp.rankers import RankerName
from personalization.lamp.ranking import RankingSpec, rank_profiles
from personalization.lamp.tasks import find_task
from personalization.models.device import Device
from personalization.models.libraries import prepare_command

HOW = "How to rank"


def rank(
    task: Annotated[str, typer.Option(metavar="LaMP-N", help="LaMP-1 to LaMP-7, or LaMP-2-news.")],
    questions: Annotated[Path, typer.Option("--questions", "-q", help="A questions file of LaMP.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The ranking (JSON): each question's items, best first.")],
    ranker: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR",
            help="bm25, contriever, recency, random, hybrid (bm25 and contriever), mixed (recency and contriever), or "
            "the directory of an encoder.",
            rich_help_panel=HOW,
        ),
    ] = RankerName.BM25,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="For contriever, hybrid and mixed: a text encoder in Hugging Face format.",
            rich_help_panel=HOW,
            show_default=False,
        ),
    ] = None,
    use_date: Annotated[
        bool, typer.Option("--use-date", help="End each item's text in its date.", rich_help_panel=HOW)
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the ranker random.", rich_help_panel=HOW)] = 0,
    batch: Annotated[
        int, typer.Option("--batch-size", min=1, help="Texts through the encoder at once.", rich_help_panel=HOW)
    ] = 32,
    device: Annotated[Device, typer.Option(help="Where the encoder runs.", rich_help_panel=HOW)] = Device.CPU,
    threads: ThreadsOption = 1,
    runner: RunnerOption = RunnerName.LOCAL,
    address: AddressOption = None,
    workers: WorkersOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew where an unfinished run with other settings is.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Order the items of every profile by what they are worth for its question, best first.

    A run that was interrupted goes on where it was.

    Examples:
      cogenesis lamp rank --task LaMP-5 --questions dev_questions.json --ranker bm25 --out ranking.json

      cogenesis lamp rank --task LaMP-3 -q dev_questions.json --ranker models/contriever --device cuda -o ranking.json
    """
    where = runner_of(runner, address, workers, threads)
    name, directory = _ranker(ranker, encoder)
    digest = _digest(directory) if directory is not None else ""
    spec = RankingSpec(
        questions=QuestionFile(questions, find_task(task)),
        ranker=name,
        encoder=directory,
        encoder_sha256=digest,
        use_date=use_date,
        seed=seed,
        batch=batch,
        device=str(device),
        threads=threads,
    )
    with progress_bar(visible=not as_json) as progress:
        rank_profiles(
            spec, out, where, force=force, report=lambda done, total: progress("Ranking profiles", done, total)
        )
    if as_json:
        body = {"out": str(out), "questions": len(spec.questions), "ranker": str(name)}
        typer.echo(json.dumps(body))
    else:
        typer.echo(f"{len(spec.questions)} profiles ranked by {name}: {out}")


def _ranker(ranker: str, encoder: Path | None) -> tuple[RankerName, Path | None]:
    """The ranker, and the absolute path of its encoder.

    Raises:
        SettingsError: there is no such ranker, or the options contradict each other.
    """
    if ranker in list(RankerName):
        name = RankerName(ranker)
        if name.needs_encoder and encoder is None:
            raise SettingsError(
                f"--ranker {name} needs --encoder DIR: a text encoder in Hugging Face format, such as Contriever "
                "(`hf download facebook/contriever --local-dir DIR`)."
            )
        if encoder is not None and not name.needs_encoder:
            raise SettingsError(f"--ranker {name} takes no --encoder. Leave it out.")
        return name, None if encoder is None else encoder.absolute()
    if not Path(ranker).is_dir():
        raise SettingsError(
            f"There is no ranker '{ranker}', and no directory of this name. Use one of: {', '.join(RankerName)}, or an "
            "encoder's directory."
        )
    if encoder is not None:
        raise SettingsError("--ranker names an encoder already. Leave out --encoder.")
    return RankerName.DENSE, Path(ranker).absolute()


def _digest(directory: Path) -> str:
    """Identity of an encoder's weights and tokenizer."""
    prepare_command()
    from export.model.lineage import weights_digest

    files = [path for pattern in ("*.safetensors", "*.bin", "*.json", "*.txt") for path in directory.glob(pattern)]
    return weights_digest(sorted(files))

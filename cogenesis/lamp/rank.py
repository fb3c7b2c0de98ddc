"""`cogenesis lamp rank`: ranks each question's profile items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.answering import BatchSizeOption
from cogenesis.options.expand import expand
from cogenesis.options.lamp import ENCODER, QuestionsOption, TaskOption, UseDateOption
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.runner import DeviceOption, RunnerOptions
from cogenesis.options.sampling import SeedOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.errors import SettingsError
from personalization.lamp.questions import QuestionFile
from personalization.lamp.rankers import RankerName
from personalization.lamp.ranking import RankingSpec, rank_profiles
from personalization.lamp.tasks import find_task
from personalization.models.device import Device
from personalization.models.libraries import prepare_command

_ONE_THREAD = RunnerOptions(threads=1)


@expand
def rank(
    task: TaskOption,
    questions: QuestionsOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Ranking (JSON) to write: each question's items, best first.", show_default=False
        ),
    ],
    ranker: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR",
            help="Ranker: bm25, contriever, recency, random, hybrid (bm25 and contriever), mixed (recency and "
            "contriever), or the directory of an encoder.",
        ),
    ] = RankerName.BM25,
    encoder: Annotated[Path | None, ENCODER] = None,
    use_date: UseDateOption = False,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    device: DeviceOption = Device.CPU,
    where: RunnerOptions = _ONE_THREAD,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rank the items of each question's profile, best first.

    The rankers contriever, hybrid and mixed need an --encoder. An interrupted run resumes.

    Examples:
      cogenesis lamp rank --task LaMP-5 --questions dev_questions.json --ranker bm25 --out ranking.json

      cogenesis lamp rank --task LaMP-3 -q dev_questions.json --ranker models/contriever --device cuda -o ranking.json
    """
    runner = where.chosen()
    name, directory = _ranker(ranker, encoder)
    digest = _digest(directory) if directory is not None else ""
    spec = RankingSpec(
        questions=QuestionFile(questions, find_task(task)),
        ranker=name,
        encoder=directory,
        encoder_sha256=digest,
        use_date=use_date,
        seed=seed,
        batch=batch_size,
        device=str(device),
        threads=where.threads,
    )
    with progress_bar(visible=not as_json) as progress:
        rank_profiles(
            spec, out, runner, force=force, report=lambda done, total: progress("Ranking profiles", done, total)
        )
    if as_json:
        body = {"out": str(out), "questions": len(spec.questions), "ranker": str(name)}
        typer.echo(json.dumps(body))
    else:
        typer.echo(f"{len(spec.questions)} profiles ranked by {name}: {out}")


def _ranker(ranker: str, encoder: Path | None) -> tuple[RankerName, Path | None]:
    """Return the ranker and the absolute path of its encoder.

    Raises:
        SettingsError: the ranker does not exist, or the options contradict each other.
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
    """Return the identity of an encoder's weights and tokenizer."""
    prepare_command()
    from export.model.lineage import weights_digest

    files = [path for pattern in ("*.safetensors", "*.bin", "*.json", "*.txt") for path in directory.glob(pattern)]
    return weights_digest(sorted(files))

"""Options that the commands share which have LaMP's questions answered: by whom, how they are put, and where to run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.users import WHERE, base_of
from cogenesis.terminal.tables import ProgressLines
from edge_runtime.bundle.reader import open_bundle
from personalization.answering.writer import WriterSpec
from personalization.errors import DataError, SettingsError
from personalization.jobs.runners import RunnerName, runner_of
from personalization.jobs.shard import Shard
from personalization.lamp.answers import Answered, AnswerPlan, Asked, answer_all
from personalization.lamp.tasks import LampTask
from personalization.models.device import Device
from personalization.models.libraries import prepare_command

WHO, HOW = "Who answers", "How questions are put and answered"

_DEFAULTS = WriterSpec(Path(), "", is_bundle=False)

TaskOption = Annotated[str, typer.Option(metavar="LaMP-N", help="Whose questions: LaMP-1 to LaMP-7, or LaMP-2-news.")]
MergedOption = Annotated[
    Path, typer.Option("--questions", "-q", help="Questions, merged with ranking and outputs by `lamp merge`.")
]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Directory of what comes out, and of what is done so far.")
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model", "-m", help="A model directory in Hugging Face format.", rich_help_panel=WHO, show_default=False
    ),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", "-b", help="A bundle, on the edge runtime.", rich_help_panel=WHO, show_default=False),
]
BackendOption = Annotated[
    str | None,
    typer.Option(help="Of the bundle: onnx or executorch.", rich_help_panel=WHO, show_default=False),
]
AdaptersOption = Annotated[
    Path | None,
    typer.Option(
        help="Answer each user with their adapter: a directory that `adapter train` wrote, or a bundle's `adapters`.",
        rich_help_panel=WHO,
        show_default=False,
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where a model runs.", rich_help_panel=WHO)]
ItemsOption = Annotated[
    int,
    typer.Option(
        "--num-retrieved", "-k", min=0, help="Profile items in a prompt; 0: no personalization.", rich_help_panel=HOW
    ),
]
MaxLengthOption = Annotated[int, typer.Option(min=1, help="Most tokens of a prompt.", rich_help_panel=HOW)]
MaxNewTokensOption = Annotated[int, typer.Option(help="Most tokens of an answer.", rich_help_panel=HOW)]
BeamsOption = Annotated[
    int | None,
    typer.Option(help="Of the search; 4 for a model, 1 for a bundle.", rich_help_panel=HOW, show_default=False),
]
BatchOption = Annotated[
    int, typer.Option(min=1, help="Questions that go through a model together.", rich_help_panel=HOW)
]
OneLineOption = Annotated[
    bool,
    typer.Option(
        "--one-line/--all-lines", help="End an answer with its first line: chat models write on.", rich_help_panel=HOW
    ),
]
QuestionLimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the file's first so many questions.", show_default=False)
]
ShardOption = Annotated[
    str,
    typer.Option(
        metavar="I/N",
        help="Only the I-th of N parts; what comes out is written when all are there.",
        rich_help_panel=WHERE,
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Begin anew where a run with other settings is.")]

MAX_LENGTH, BATCH = 512, 8
MAX_NEW_TOKENS, THREADS, ONE_LINE = _DEFAULTS.most_tokens, _DEFAULTS.threads, _DEFAULTS.one_line


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What the options of a command say of who answers, how and where; see their help."""

    model: Path | None
    bundle: Path | None
    backend: str | None
    adapters: Path | None
    device: Device
    max_length: int
    max_new_tokens: int
    beams: int | None
    batch: int
    one_line: bool
    shard: str
    threads: int
    runner: RunnerName
    address: str | None
    workers: int | None
    force: bool

    def answers(
        self, task: LampTask, asked: Sequence[Asked], out: Path, *, keep_prompts: bool = False
    ) -> dict[str, Answered] | None:
        """Have questions answered; see `personalization.lamp.answers.answer_all`.

        Raises:
            DataError: nothing is asked.
            SettingsError: options contradict each other, or an earlier run had others.
            CogenesisError: there is no such model or bundle, it is damaged, or questions could not be answered.
        """
        if not asked:
            raise DataError(
                "There is nothing to answer: the file has no questions, or none of the profiles has an item."
            )
        where = runner_of(self.runner, self.address, self.workers, self.threads)
        shard = Shard.parse(self.shard)
        writer = writer_of(
            self.model,
            self.bundle,
            backend=self.backend,
            adapters=self.adapters,
            device=self.device,
            max_new_tokens=self.max_new_tokens,
            beams=self.beams,
            one_line=self.one_line,
            threads=self.threads,
        )
        plan = AnswerPlan(task.name, writer, self.max_length, self.batch, keep_prompts)
        lines = ProgressLines()

        def report(done: int, total: int) -> None:
            lines(out.name, "answered", done, total, worked=True)

        return answer_all(asked, plan, where, out.absolute(), shard=shard, force=self.force, report=report)


def writer_of(
    model: Path | None,
    bundle: Path | None,
    *,
    backend: str | None = None,
    adapters: Path | None = None,
    device: Device = Device.CPU,
    max_new_tokens: int,
    beams: int | None,
    one_line: bool,
    threads: int,
) -> WriterSpec:
    """Who answers, of a command's options; hashes the weights.

    Raises:
        SettingsError: options contradict each other.
        CogenesisError: there is no such model or bundle, or it is damaged.
    """
    if (model is None) == (bundle is None):
        raise SettingsError("Give either --model DIR or --bundle DIR.")
    spec = partial(
        WriterSpec,
        backend=backend,
        adapters=None if adapters is None else adapters.absolute(),
        most_tokens=max_new_tokens,
        threads=threads,
        device=str(device),
        one_line=one_line,
    )
    if bundle is not None:
        opened = open_bundle(bundle, verify=False)
        identity = opened.fingerprint(opened.decoder(backend))
        return spec(bundle.absolute(), identity, is_bundle=True, beams=1 if beams is None else beams)
    assert model is not None
    prepare_command()
    directory, base = base_of(model)
    return spec(directory, base.sha256, is_bundle=False, beams=_DEFAULTS.beams if beams is None else beams)


def say_incomplete(out: Path, as_json: bool) -> None:
    """Print that other shards are not done, so there is nothing to write yet."""
    words = f"This part is done. The other parts are not in {out} yet: the last of them writes what comes out."
    typer.echo(json.dumps({"out": str(out), "complete": False}) if as_json else words)

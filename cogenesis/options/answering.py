"""Options for the model that answers LaMP's questions, and for its prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.assistant import BackendOption
from cogenesis.options.runner import DeviceOption, RunnerOptions
from cogenesis.options.sampling import MaxNewTokensOption
from cogenesis.options.users import ADAPTERS, base_of
from cogenesis.terminal.tables import ProgressLines
from edge_runtime.bundle.reader import open_bundle
from personalization.answering.writer import WriterSpec
from personalization.errors import DataError, SettingsError
from personalization.lamp.answers import Answered, AnswerPlan, Asked, answer_all
from personalization.lamp.tasks import LampTask
from personalization.models.device import Device
from personalization.models.libraries import prepare_command

WHO, HOW = "Model that answers", "Prompts and answers"

_DEFAULTS = WriterSpec(Path(), "", is_bundle=False)

MaxPromptTokensOption = Annotated[
    int, typer.Option("--max-prompt-tokens", min=1, help="Maximum tokens per prompt.", rich_help_panel=HOW)
]
BatchSizeOption = Annotated[
    int,
    typer.Option("--batch-size", min=1, help="Prompts or texts per batch of the model.", rich_help_panel=HOW),
]


@dataclass(frozen=True, kw_only=True)
class LocalModelOptions:
    """A model on this machine: in Hugging Face format on torch, or a bundle on the edge runtime."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="DIR",
            help="A model directory in Hugging Face format.",
            rich_help_panel=WHO,
            show_default=False,
        ),
    ] = None
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            "-b",
            metavar="DIR",
            help="A bundle; the edge runtime runs it.",
            rich_help_panel=WHO,
            show_default=False,
        ),
    ] = None
    device: DeviceOption = Device.CPU

    def spec(
        self,
        *,
        backend: str | None = None,
        adapters: Path | None = None,
        max_new_tokens: int,
        beams: int | None,
        one_line: bool,
        threads: int,
    ) -> WriterSpec:
        """Return the specification of the model that answers; this hashes the weights.

        Raises:
            SettingsError: options contradict each other.
            CogenesisError: the model or bundle does not exist, or is damaged.
        """
        if (self.model is None) == (self.bundle is None):
            raise SettingsError("Give either --model DIR or --bundle DIR.")
        spec = partial(
            WriterSpec,
            backend=backend,
            adapters=None if adapters is None else adapters.absolute(),
            most_tokens=max_new_tokens,
            threads=threads,
            device=str(self.device),
            one_line=one_line,
        )
        if self.bundle is not None:
            opened = open_bundle(self.bundle, verify=False)
            identity = opened.fingerprint(opened.decoder(backend))
            return spec(self.bundle.absolute(), identity, is_bundle=True, beams=1 if beams is None else beams)
        assert self.model is not None
        prepare_command()
        directory, base = base_of(self.model)
        return spec(directory, base.sha256, is_bundle=False, beams=_DEFAULTS.beams if beams is None else beams)


@dataclass(frozen=True, kw_only=True)
class AnswererOptions(LocalModelOptions):
    """The model that answers, and its prompts."""

    backend: BackendOption = None
    max_prompt_tokens: MaxPromptTokensOption = 512
    max_new_tokens: MaxNewTokensOption = _DEFAULTS.most_tokens
    beams: Annotated[
        int | None,
        typer.Option(
            help="Beam width of the search. Default: 4 for a model directory, 1 for a bundle.",
            rich_help_panel=HOW,
            show_default=False,
        ),
    ] = None
    batch_size: BatchSizeOption = 8
    one_line: Annotated[
        bool,
        typer.Option(
            "--one-line/--all-lines",
            help="End an answer after its first line, because chat models continue after it.",
            rich_help_panel=HOW,
        ),
    ] = _DEFAULTS.one_line

    @property
    def users_adapters(self) -> Path | None:
        """Directory of users' adapters; None answers everybody with the base alone."""
        return None

    def answers(
        self,
        task: LampTask,
        asked: Sequence[Asked],
        out: Path,
        where: RunnerOptions,
        *,
        force: bool,
        keep_prompts: bool = False,
    ) -> dict[str, Answered] | None:
        """Answer the questions; see `personalization.lamp.answers.answer_all`.

        Raises:
            DataError: there are no questions.
            SettingsError: options contradict each other, or differ from those of an earlier run.
            CogenesisError: the model or bundle does not exist or is damaged, or questions could not be answered.
        """
        if not asked:
            raise DataError(
                "There is nothing to answer: the file has no questions, or none of the profiles has an item."
            )
        runner, shard = where.chosen(), where.part()
        writer = self.spec(
            backend=self.backend and self.backend.value,
            adapters=self.users_adapters,
            max_new_tokens=self.max_new_tokens,
            beams=self.beams,
            one_line=self.one_line,
            threads=where.threads,
        )
        plan = AnswerPlan(task.name, writer, self.max_prompt_tokens, self.batch_size, keep_prompts)
        lines = ProgressLines()

        def report(done: int, total: int) -> None:
            lines(out.name, "answered", done, total, worked=True)

        return answer_all(asked, plan, runner, out.absolute(), shard=shard, force=force, report=report)


@dataclass(frozen=True, kw_only=True)
class PersonalAnswererOptions(AnswererOptions):
    """The model that answers, and its prompts; optionally with each user's adapter."""

    adapters: Annotated[Path | None, ADAPTERS] = None

    @property
    def users_adapters(self) -> Path | None:
        """Directory of users' adapters; None answers everybody with the base alone."""
        return self.adapters


def say_incomplete(out: Path, as_json: bool) -> None:
    """Print that other shards are not finished, so the result can't be written yet."""
    words = f"This part is done. The other parts are not in {out} yet; the last of them writes the result."
    typer.echo(json.dumps({"out": str(out), "complete": False}) if as_json else words)

"""`cogenesis collab evaluate`: what each way to write is worth, on users whom nothing was trained on."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.collab.logprobs import model_of
from cogenesis.options.answering import ForceOption
from cogenesis.options.records import RecordsArgument, usable_records
from cogenesis.options.users import JsonOption, ThreadsOption
from cogenesis.terminal.tables import ProgressLines
from edge_runtime.fusion.combiner_file import read_combiner
from edge_runtime.generation.sampling import Sampling
from edge_runtime.privacy.gate import Policy
from personalization.answering.chat_endpoint import ChatEndpoint
from personalization.answering.checked_answers import EndpointSource, Sampler
from personalization.collab.evaluation.answers import AnswerSettings, Models
from personalization.collab.evaluation.evaluate_answers import judge_answers, measure_answers, write_answers
from personalization.collab.evaluation.evaluate_likelihood import Beside, measure_likelihood
from personalization.collab.evaluation.fusion_likelihood import Likelihood, by_learned_schedule, learned
from personalization.collab.evaluation.judge import JUDGE_TOKENS, Criterion
from personalization.collab.evaluation.report import evaluation_markdown, write_evaluation
from personalization.collab.evaluation.systems import parse_system
from personalization.collab.evaluation.tables import Evaluation
from personalization.collab.logprobs.file import read_logprobs
from personalization.collab.records.shown import Shown
from personalization.errors import SettingsError
from personalization.models.device import Device
from personalization.models.libraries import prepare_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personalization.answering.checked_answers import Source
    from personalization.collab.evaluation.evaluate_answers import Answers
    from personalization.collab.evaluation.systems import System
    from personalization.collab.evaluation.tables import Judged, Likelihoods
    from personalization.collab.logprobs.file import LogProbs
    from personalization.collab.records.records import CollabRecord

LIKELIHOOD, ANSWERS, JUDGE = "How likely references are", "Answers", "Who judges the answers"

BesideOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODEL",
        help="A bundle or model directory by itself, the context in its prompt; may be given again.",
        rich_help_panel=LIKELIHOOD,
        show_default=False,
    ),
]


def evaluate(
    records: RecordsArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory of the report, its pictures, and of what is done so far.")
    ],
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Log-probs of the records, by `collab logprobs`.", rich_help_panel=LIKELIHOOD, show_default=False
        ),
    ] = None,
    combiner: Annotated[
        Path | None,
        typer.Option(
            help="Directory of trained combiners, by `collab fuse-train`.",
            rich_help_panel=LIKELIHOOD,
            show_default=False,
        ),
    ] = None,
    beside: BesideOption = None,
    beside_without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="The same from the public instruction alone.",
            rich_help_panel=LIKELIHOOD,
            show_default=False,
        ),
    ] = None,
    beside_sketch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="The same with context and sketch.",
            rich_help_panel=LIKELIHOOD,
            show_default=False,
        ),
    ] = None,
    edge: Annotated[
        Path | None,
        typer.Option(
            help="The device's bundle; with it answers are written.", rich_help_panel=ANSWERS, show_default=False
        ),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Besides edge: edge-without, cloud, cloud-with, sketch, or a strategy, as arithmetic:0.8, learned, "
            "learned@learned; may be given again.",
            rich_help_panel=ANSWERS,
            show_default=False,
        ),
    ] = None,
    cloud: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Of the cloud.", rich_help_panel=ANSWERS, show_default=False),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="COGENESIS_API_KEY", help="Key that the cloud asks for.", rich_help_panel=ANSWERS),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt what the cloud gets.", rich_help_panel=ANSWERS)] = False,
    large: Annotated[
        Path | None,
        typer.Option(
            help="A bundle of the cloud's model, for cloud-with.", rich_help_panel=ANSWERS, show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Answer only the first so many records.", rich_help_panel=ANSWERS, show_default=False),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.", rich_help_panel=ANSWERS)
    ] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", rich_help_panel=ANSWERS)] = 0.7,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Sample within this likeliest mass.", rich_help_panel=ANSWERS)
    ] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.", rich_help_panel=ANSWERS)] = 0,
    policy: Annotated[
        Policy, typer.Option(help="What may leave besides the instruction.", rich_help_panel=ANSWERS)
    ] = Policy.GUARDED,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible endpoint, which gets instructions and answers.",
            rich_help_panel=JUDGE,
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the judge, as its endpoint knows it.", rich_help_panel=JUDGE),
    ] = None,
    criterion: Annotated[
        list[Criterion],
        typer.Option(
            help="What is judged; for overall and personalization the judge gets the private context, too. May be "
            "given again.",
            rich_help_panel=JUDGE,
        ),
    ] = [Criterion.PUBLIC],  # noqa: B006 (typer copies it)
    parallel: Annotated[int, typer.Option(min=1, help="Pairs judged at once.", rich_help_panel=JUDGE)] = 4,
    name: Annotated[str | None, typer.Option(help="Of the records in the report; default: the file's.")] = None,
    threads: ThreadsOption = 2,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure edge, cloud and every fusion: likelihood of the users' own texts, quality and cost of answers, a judge.

    What there is to measure is asked for by what is given: --rows for likelihoods, --edge for answers, --judge for
    verdicts on them. With --rows, the cloud's rows are cut for answers as they were there. Intervals are of paired
    bootstrap over users. An interrupted run goes on where it was. The report is in the directory as report.md with
    pictures, and as evaluation.json.

    Examples:
      cogenesis collab evaluate test.jsonl --rows scored/rows.logprobs --combiner combiner -o evaluated

      cogenesis collab evaluate test.jsonl -o evaluated --edge my-bundle --cloud 127.0.0.1:50051 --system learned
    """
    if rows is None and edge is None:
        raise SettingsError("There is nothing to measure. Give --rows FILE, --edge BUNDLE, or both.")
    if rows is None and (combiner or beside or beside_without or beside_sketch):
        raise SettingsError("--combiner and --beside belong to --rows. Give --rows FILE as well.")
    if edge is None and (system or judge):
        raise SettingsError("--system and --judge belong to answers. Give --edge BUNDLE as well.")
    if (judge is None) != (judge_model is None):
        raise SettingsError("A judge needs both: --judge URL and --judge-model NAME.")
    known = [record for record in usable_records(records) if record.context is not None]
    if not known:
        raise SettingsError(f"No record has a context, so there is nothing personal to measure: {records}.")

    work = _Work(known, out, threads, force)
    likelihood, form = None, None
    if rows is not None:
        scored = read_logprobs(rows)
        form = scored.about.rows
        shown = ((Shown.WITH, beside), (Shown.WITHOUT, beside_without), (Shown.SKETCH, beside_sketch))
        likelihood = work.likelihood(scored, combiner, [(how, one) for how, given in shown for one in given or ()])
    answered, judged = None, {}
    if edge is not None:
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        settings = AnswerSettings(max_new_tokens, sampling, policy, form, threads)
        systems = [parse_system(one) for one in system or ()]
        asked = known[:limit]
        with ExitStack() as stack:
            connection = None
            if cloud is not None:
                from cloud_bridge.client import connect

                connection = stack.enter_context(connect(cloud, api_key=api_key, tls=tls))
            answers = work.answers(asked, systems, Models(edge, connection, large), settings)
        answered = measure_answers(asked, answers)
        if judge is not None and judge_model is not None:
            sampler = Sampler(JUDGE_TOKENS, 0.0)
            source = EndpointSource(ChatEndpoint(judge, judge_model), sampler, parallel)
            judged = {str(one): work.judged(asked, answers, source, one) for one in dict.fromkeys(criterion)}
    users = len({record.user for record in known})
    body = Evaluation(name or records.stem, len(known), users, likelihood, answered, judged).document()
    write_evaluation(body, out)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **body}))
    else:
        typer.echo(evaluation_markdown(body, ""), nl=False)


@dataclass(frozen=True, slots=True)
class _Work:
    """What all parts of an evaluation have in common."""

    records: Sequence[CollabRecord]
    out: Path
    threads: int
    force: bool
    lines: ProgressLines = field(default_factory=ProgressLines)

    def likelihood(self, rows: LogProbs, combiner: Path | None, beside: Sequence[tuple[Shown, str]]) -> Likelihoods:
        """How likely references are; see `measure_likelihood`."""
        fused, scheduled = ([], []) if combiner is None else _learned(rows, combiner)
        models = [self._beside(shown, given) for shown, given in beside]
        alone = self.out / "beside"
        return measure_likelihood(
            self.records, rows, fused, scheduled, models, alone, force=self.force, report=self._report
        )

    def answers(
        self, records: Sequence[CollabRecord], systems: Sequence[System], models: Models, settings: AnswerSettings
    ) -> Answers:
        """What systems write; see `write_answers`."""
        out = self.out / "answers"
        return write_answers(records, systems, models, settings, out, force=self.force, report=self._report)

    def judged(self, records: Sequence[CollabRecord], answers: Answers, source: Source, criterion: Criterion) -> Judged:
        """What a judge says of them; see `judge_answers`."""
        out = self.out / "judged"
        return judge_answers(records, answers, source, criterion, out, force=self.force, report=self._report)

    def _beside(self, shown: Shown, given: str) -> Beside:
        """Read NAME=MODEL; hashes the weights of a directory."""
        name, _, path = given.partition("=")
        if not name or "/" in name or not path:
            raise SettingsError(f"A model beside is NAME=MODEL, such as untuned=models/edge, not {given}.")
        return Beside(name, model_of(Path(path), self.threads, Device.CPU), shown)

    def _report(self, what: str, done: int, total: int) -> None:
        self.lines(self.out.name, what, done, total, worked=True)


def _learned(rows: LogProbs, directory: Path) -> tuple[list[Likelihood], list[Likelihood]]:
    """What trained combiners say: the one that ships first, and that one where it asks less often."""
    prepare_command()
    from personalization.collab.combiner.reference import reference_nll
    from personalization.collab.combiner.train import COMBINER_NAME, REFERENCE_NAME, read_reference

    trained = read_combiner(directory / COMBINER_NAME)
    fused = [learned(rows, trained)]
    scheduled = by_learned_schedule(rows, fused[0], trained)
    if (directory / REFERENCE_NAME).exists():
        nll = reference_nll(rows, read_reference(directory / REFERENCE_NAME, rows.about.vocab_size))
        fused.append(Likelihood("CoGenesis' combiner", nll, 1.0))
    return fused, scheduled

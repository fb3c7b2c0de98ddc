"""`cogenesis collab evaluate`: what each way to write is worth, on users whom nothing was trained on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.collab.logprobs import model_of
from cogenesis.options.answering import ForceOption
from cogenesis.options.records import RecordsArgument, usable_records
from cogenesis.options.users import JsonOption, ThreadsOption
from cogenesis.terminal.tables import ProgressLines
from edge_runtime.generation.sampling import Sampling
from edge_runtime.privacy.gate import Policy
from personalization.answering.chat_endpoint import ChatEndpoint
from personalization.answering.checked_answers import EndpointSource, Sampler
from personalization.collab.evaluation.answers import AnswerSettings
from personalization.collab.evaluation.evaluate import AnswerPlan, EvaluationPlan, JudgePlan, evaluate_records
from personalization.collab.evaluation.evaluate_likelihood import Beside, LikelihoodPlan
from personalization.collab.evaluation.judge import JUDGE_TOKENS, Criterion
from personalization.collab.evaluation.report import evaluation_markdown, write_evaluation
from personalization.collab.evaluation.systems import parse_system
from personalization.collab.records.shown import Shown
from personalization.errors import SettingsError
from personalization.models.device import Device
from personalization.models.libraries import prepare_command

if TYPE_CHECKING:
    from cloud_bridge.client import CloudClient

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
    chosen = tuple(record for record in usable_records(records) if record.context is not None)
    if not chosen:
        raise SettingsError(f"No record has a context, so there is nothing personal to measure: {records}.")

    likelihood, answers, judged = None, None, None
    if rows is not None:
        if combiner is not None:
            prepare_command()
        shown = ((Shown.WITH, beside), (Shown.WITHOUT, beside_without), (Shown.SKETCH, beside_sketch))
        models = tuple(_beside(one, how, threads) for how, given in shown for one in given or ())
        likelihood = LikelihoodPlan(rows, combiner, models)
    if edge is not None:
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        settings = AnswerSettings(max_new_tokens, sampling, policy, threads=threads)
        connecting = None if cloud is None else partial(_connect, cloud, api_key, tls)
        systems = tuple(parse_system(one) for one in system or ())
        answers = AnswerPlan(edge, systems, settings, connecting, large, limit)
    if judge is not None and judge_model is not None:
        source = EndpointSource(ChatEndpoint(judge, judge_model), Sampler(JUDGE_TOKENS, 0.0), parallel)
        judged = JudgePlan(source, tuple(criterion))
    plan = EvaluationPlan(name or records.stem, chosen, out, likelihood, answers, judged, force)
    lines = ProgressLines()

    def report(what: str, done: int, total: int) -> None:
        lines(out.name, what, done, total, worked=True)

    body = evaluate_records(plan, report).document()
    write_evaluation(body, out)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **body}))
    else:
        typer.echo(evaluation_markdown(body, ""), nl=False)


def _beside(given: str, shown: Shown, threads: int) -> Beside:
    """Read NAME=MODEL; hashes the weights of a directory."""
    name, _, path = given.partition("=")
    if not name or "/" in name or not path:
        raise SettingsError(f"A model beside is NAME=MODEL, such as untuned=models/edge, not {given}.")
    return Beside(name, model_of(Path(path), threads, Device.CPU), shown)


def _connect(address: str, api_key: str | None, tls: bool) -> CloudClient:
    from cloud_bridge.client import connect

    return connect(address, api_key=api_key, tls=tls)

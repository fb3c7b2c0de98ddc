"""`cogenesis collab evaluate`: compares ways to write, on users that no model was trained on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.collab.scored_model import model_of
from cogenesis.options.cloud import ApiKeyOption, CloudOption, TlsOption
from cogenesis.options.fusion import PolicyOption
from cogenesis.options.models import EDGE, LARGE
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.records import RecordsArgument, usable_records
from cogenesis.options.runner import ThreadsOption
from cogenesis.options.sampling import MaxNewTokensOption, SeedOption, TemperatureOption, TopPOption
from cogenesis.options.source import ParallelOption
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

LIKELIHOOD, ANSWERS, JUDGE = "Likelihood of references", "Answers", "Judge of the answers"

BesideOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODEL",
        help="Another model to score alone, with the context in its prompt: a bundle or a model directory. "
        "May be given again.",
        rich_help_panel=LIKELIHOOD,
        show_default=False,
    ),
]


def evaluate(
    records: RecordsArgument,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Directory for the report, its pictures and the progress.", show_default=False
        ),
    ],
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Log-probs of the records, from `collab logprobs`.", rich_help_panel=LIKELIHOOD, show_default=False
        ),
    ] = None,
    combiner: Annotated[
        Path | None,
        typer.Option(
            "--combiners",
            metavar="DIR",
            help="Directory of trained combiners, from `collab fuse-train`.",
            rich_help_panel=LIKELIHOOD,
            show_default=False,
        ),
    ] = None,
    beside: BesideOption = None,
    beside_without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="Like --beside, with only the public instruction in the prompt.",
            rich_help_panel=LIKELIHOOD,
            show_default=False,
        ),
    ] = None,
    beside_sketch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="Like --beside, with context and sketch in the prompt.",
            rich_help_panel=LIKELIHOOD,
            show_default=False,
        ),
    ] = None,
    edge: Annotated[Path | None, EDGE] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="System that writes answers besides edge: edge-without, cloud, cloud-with, sketch, or a "
            "strategy such as arithmetic:0.8, learned or learned@learned. May be given again.",
            rich_help_panel=ANSWERS,
            show_default=False,
        ),
    ] = None,
    cloud: CloudOption = None,
    api_key: ApiKeyOption = None,
    tls: TlsOption = False,
    large: Annotated[Path | None, LARGE] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--answer-limit",
            min=1,
            metavar="N",
            help="Answer only the first N records.",
            rich_help_panel=ANSWERS,
            show_default=False,
        ),
    ] = None,
    max_new_tokens: MaxNewTokensOption = 256,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.9,
    seed: SeedOption = 0,
    policy: PolicyOption = Policy.GUARDED,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint of the judge. It receives instructions and answers.",
            rich_help_panel=JUDGE,
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the judge at its endpoint.", rich_help_panel=JUDGE, show_default=False
        ),
    ] = None,
    criterion: Annotated[
        list[Criterion],
        typer.Option(
            help="Criterion of the judge. For overall and personalization the judge also receives the private "
            "context. May be given again.",
            rich_help_panel=JUDGE,
        ),
    ] = [Criterion.PUBLIC],  # noqa: B006 (typer copies it)
    parallel: ParallelOption = 4,
    name: Annotated[
        str | None,
        typer.Option(
            "--label", help="Name of the records in the report. Default: the file's name.", show_default=False
        ),
    ] = None,
    threads: ThreadsOption = 2,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure edge, cloud and every fusion: likelihood of the users' own texts, quality and cost of answers, a judge.

    Choose the measurements by options: --rows for likelihoods, --edge for answers, --judge for verdicts on the answers.
    With --rows, answers use the row format of that file. Intervals come from a paired bootstrap over users. An
    interrupted run resumes. The command writes the report as report.md with pictures, and as evaluation.json.

    Examples:
      cogenesis collab evaluate test.jsonl --rows scored/rows.logprobs --combiners combiner -o evaluated

      cogenesis collab evaluate test.jsonl -o evaluated --edge my-bundle --cloud 127.0.0.1:50051 --system learned
    """
    if rows is None and edge is None:
        raise SettingsError("There is nothing to measure. Give --rows FILE, --edge BUNDLE, or both.")
    if rows is None and (combiner or beside or beside_without or beside_sketch):
        raise SettingsError("--combiners and --beside belong to --rows. Give --rows FILE as well.")
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
    """Parse NAME=MODEL; this hashes the weights of a directory."""
    name, _, path = given.partition("=")
    if not name or "/" in name or not path:
        raise SettingsError(f"A model beside is NAME=MODEL, such as untuned=models/edge, not {given}.")
    return Beside(name, model_of(Path(path), threads, Device.CPU), shown)


def _connect(address: str, api_key: str | None, tls: bool) -> CloudClient:
    from cloud_bridge.client import connect

    return connect(address, api_key=api_key, tls=tls)

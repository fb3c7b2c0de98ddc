"""Lets a language model judge two answers side by side, in both orders.

Judges prefer the answer they read first (Zheng et al., 2023, "Judging LLM-as-a-judge"), so each answer's score is the
mean over both orders.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.text.prompt import user_message
from personalization.answering.chat_endpoint import Reply, Usage
from personalization.answering.checked_answers import Source, ask_all, ask_until_usable

SCORE = "score"
"""Name of the measure."""

JUDGE_TOKENS = 512
"""Maximum tokens of a verdict."""

LOWEST, HIGHEST = 1, 10
_SCORE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_TRIES = 3


class Criterion(StrEnum):
    """The criterion of a judgement, as in CoGenesis.

    OVERALL and PERSONALIZATION: the whole answer, and its fit to the user; the judge sees profile and past texts.
    PUBLIC: the text alone; the judge sees only the public task.
    """

    OVERALL = "overall"
    PERSONALIZATION = "personalization"
    PUBLIC = "public"

    @property
    def sees_context(self) -> bool:
        """Whether the judge sees the private context."""
        return self is not Criterion.PUBLIC


_ASKED = {
    Criterion.OVERALL: "how well it does the task for this very user: content, use of what is known, style and clarity",
    Criterion.PERSONALIZATION: "how well it fits this very user alone: the facts of the profile that it rightly brings "
    "in, and how much it reads like the user's own past texts; whether it is otherwise good does not count",
    Criterion.PUBLIC: "how well it does the task: content, depth, structure and clarity",
}
_QUESTION = """You are a strict and fair judge of texts. Two texts were written for the same task.

{task}

## First text
{first}

## Second text
{second}

## What to judge
Give each text a whole number from 1 (useless) to 10 (could not be better) for {asked}. The order of the texts and \
their length mean nothing. Write one sentence about each text, then end with a line of exactly this form, the first \
text's number first:
[[n]] [[n]]"""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one task.

    Attributes:
        instruction: the public task.
        context: the private context, for criteria that need it.
        ours, theirs: the answers.
    """

    instruction: PublicInstruction = field(repr=False)
    context: PrivateContext = field(repr=False)
    ours: str = field(repr=False)
    theirs: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Scores of both answers, each the mean over both orders, and the usage."""

    ours: float
    theirs: float
    usage: Usage


def judge_pair(source: Source, pair: Pair, criterion: Criterion) -> Verdict:
    """Judge one pair.

    Raises:
        EndpointRefusedError: the judge rejects every request.
        EndpointError: the judge gave no verdict on this pair.
    """
    (ours, theirs), there = _scores(source, pair, criterion, pair.ours, pair.theirs)
    (second, first), back = _scores(source, pair, criterion, pair.theirs, pair.ours)
    return Verdict((ours + first) / 2, (theirs + second) / 2, there + back)


def judge_pairs(
    source: Source,
    pairs: Sequence[Pair],
    criterion: Criterion,
    path: Path,
    *,
    force: bool = False,
    report: Callable[[int, int], None],
) -> tuple[Verdict | None, ...]:
    """Judge pairs, except those that an earlier run has judged.

    Args:
        source: the judge.
        pairs: the pairs to judge.
        criterion: the criterion.
        path: path of the journal.
        force: whether to start over if an earlier run had other settings.
        report: called after each pair with the number of finished pairs and the total.

    Returns:
        A verdict per pair; None if the judge gave none, which a later run retries.

    Raises:
        SettingsError: an earlier run had other settings and `force` is not set.
        EndpointRefusedError: the judge rejects every request; verdicts so far are kept.
    """

    def work(_number: int, pair: Pair) -> dict[str, Any]:
        return asdict(judge_pair(source, pair, criterion))

    run = {"judge": source.document, "criterion": str(criterion), "pairs": _digest(pairs)}
    jobs = dict(enumerate(pairs))
    asked = ask_all(path, run, jobs, work, parallel=source.parallel, force=force, report=report)
    return tuple(_verdict(asked.results[number]) if number in asked.results else None for number in jobs)


def _digest(pairs: Sequence[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(asdict(pair), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _verdict(result: dict[str, Any]) -> Verdict:
    return Verdict(result["ours"], result["theirs"], Usage(**result["usage"]))


def _scores(
    source: Source, pair: Pair, criterion: Criterion, first: str, second: str
) -> tuple[tuple[float, float], Usage]:
    # The format of the device's own prompt, so that the judge sees the same text as the writer.
    context = pair.context if criterion.sees_context else PrivateContext()
    shown = user_message(pair.instruction, context, None, range(len(context.history)))
    task = shown if criterion.sees_context else f"## Task\n{shown}"
    question = _QUESTION.format(task=task, first=first, second=second, asked=_ASKED[criterion])
    return ask_until_usable(source, question, _read_scores, seed=0, tries=_TRIES)


def _read_scores(reply: Reply) -> tuple[float, float]:
    """Return the last two scores of a reply.

    Raises:
        ValueError: the scores are missing or out of range; the message says which.
    """
    found = [float(score) for score in _SCORE.findall(reply.text)[-2:]]
    if len(found) < 2:
        raise ValueError("it does not end with two numbers in double square brackets")
    if not all(LOWEST <= score <= HIGHEST for score in found):
        raise ValueError(f"its numbers are not within {LOWEST} .. {HIGHEST}")
    return found[0], found[1]

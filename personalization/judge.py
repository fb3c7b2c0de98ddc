"""Has a language model judge two answers beside each other, twice, the second time the other way round.

Judges prefer what they read first (Zheng et al., 2023, "Judging LLM-as-a-judge"), so both orders are asked and each
answer's score is the mean of both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.prompt import user_message
from personalization.chat_endpoint import ChatClient, EndpointError, EndpointRefusedError, Usage
from personalization.journal import Journal

LOWEST, HIGHEST = 1, 10
_SCORE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_MOST_TOKENS = 512
_ATTEMPTS = 3  # at a reply that is of the form


class Criterion(StrEnum):
    """What is judged, as in CoGenesis.

    OVERALL and PERSONALIZATION: the whole, and the fit to the user, with profile and past texts at hand. PUBLIC: the
    text by itself, where the judge gets nothing but the public task.
    """

    OVERALL = "overall"
    PERSONALIZATION = "personalization"
    PUBLIC = "public"

    @property
    def sees_context(self) -> bool:
        """Whether the judge gets the private context."""
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
        context: for criteria that need it.
        ours, theirs: the answers.
    """

    instruction: PublicInstruction = field(repr=False)
    context: PrivateContext = field(repr=False)
    ours: str = field(repr=False)
    theirs: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Scores of both answers, each the mean over both orders, and what asking cost."""

    ours: float
    theirs: float
    usage: Usage


def judge_pair(client: ChatClient, pair: Pair, criterion: Criterion) -> Verdict:
    """Judge one pair.

    Raises:
        EndpointRefusedError: the endpoint answers nothing at all.
        EndpointError: it gave no verdict on this pair.
    """
    (ours, theirs), there = _scores(client, pair, criterion, pair.ours, pair.theirs)
    (second, first), back = _scores(client, pair, criterion, pair.theirs, pair.ours)
    return Verdict((ours + first) / 2, (theirs + second) / 2, there + back)


def judge_pairs(
    client: ChatClient,
    pairs: Sequence[Pair],
    criterion: Criterion,
    path: Path,
    run: dict[str, Any],
    *,
    parallel: int,
    force: bool = False,
    report: Callable[[int, int], None],
) -> tuple[Verdict | None, ...]:
    """Judge pairs, those excepted that an earlier run has judged.

    Args:
        client: of the judge.
        pairs: what is judged.
        criterion: by what.
        path: of the journal.
        run: everything else that verdicts depend on, as JSON.
        parallel: pairs that are under way at once.
        force: begin anew where an earlier run was another.
        report: called after each with how many are done, and of how many.

    Returns:
        For each its verdict, None where the judge gave none.

    Raises:
        SettingsError: an earlier run was another, and `force` is not set.
        EndpointRefusedError: the endpoint answers nothing at all; what is done is kept.
    """
    endpoint = client.endpoint
    run = {"judge": endpoint.model, "url": endpoint.url, "criterion": str(criterion), **run}
    journal = Journal(path, run, force=force)
    todo = [number for number in range(len(pairs)) if number not in journal.results]
    try:
        with ThreadPoolExecutor(max_workers=parallel) as pool:
            futures = {pool.submit(_judged, client, pairs[number], criterion): number for number in todo}
            try:
                for future in as_completed(futures):
                    journal.add(futures[future], future.result())
                    report(len(journal.results), len(pairs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        journal.close()
    return tuple(_verdict(journal.results[number]) for number in range(len(pairs)))


def _judged(client: ChatClient, pair: Pair, criterion: Criterion) -> dict[str, Any]:
    try:
        return asdict(judge_pair(client, pair, criterion))
    except EndpointRefusedError:
        raise
    except EndpointError as error:
        return {"failed": str(error)}


def _verdict(result: dict[str, Any]) -> Verdict | None:
    if "failed" in result:
        return None
    return Verdict(result["ours"], result["theirs"], Usage(**result["usage"]))


def _scores(
    client: ChatClient, pair: Pair, criterion: Criterion, first: str, second: str
) -> tuple[tuple[float, float], Usage]:
    # The form of the device's own prompt, so that the judge sees what the writer saw.
    context = pair.context if criterion.sees_context else PrivateContext()
    shown = user_message(pair.instruction, context, None, range(len(context.history)))
    task = shown if criterion.sees_context else f"## Task\n{shown}"
    question = _QUESTION.format(task=task, first=first, second=second, asked=_ASKED[criterion])
    usage = Usage()
    for attempt in range(_ATTEMPTS):
        reply = client.ask([{"role": "user", "content": question}], most_tokens=_MOST_TOKENS, seed=attempt)
        usage += reply.usage
        if (scores := read_scores(reply.text)) is not None:
            return scores, usage
    raise EndpointError(f"The judge {client.endpoint.model} gave no two scores in {_ATTEMPTS} replies.")


def read_scores(reply: str) -> tuple[float, float] | None:
    """The last two scores of a reply, None where there are none or they are out of range."""
    found = [float(score) for score in _SCORE.findall(reply)[-2:]]
    if len(found) < 2 or not all(LOWEST <= score <= HIGHEST for score in found):
        return None
    return found[0], found[1]

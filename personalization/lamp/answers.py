"""Answers many questions on any runner, in batches that depend only on the data, and saves each batch immediately."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edge_runtime.adapters.store import directory_name
from edge_runtime.bundle.reader import sha256_of
from personalization.answering.open_writer import open_writer
from personalization.answering.writer import WriterSpec
from personalization.errors import DataError, SettingsError, listed
from personalization.jobs.journal import run_shard
from personalization.jobs.runners import Runner
from personalization.jobs.shard import Shard
from personalization.lamp.prompt import fit_prompt
from personalization.lamp.tasks import find_task


@dataclass(frozen=True, slots=True)
class Asked:
    """A question to answer with some profile items in the prompt.

    Attributes:
        key: unique name among all questions of a run.
        id: id of the question.
        question: the question's input.
        items: fields of the profile items to show, best first.
        user: whose adapter to use; None for the base alone.
    """

    key: str
    id: str
    question: str = field(repr=False)
    items: tuple[Mapping[str, str], ...] = field(repr=False)
    user: str | None = None

    @property
    def characters(self) -> int:
        """Approximate length of its prompt in characters, before truncation."""
        return len(self.question) + sum(len(value) for item in self.items for value in item.values())


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt as the model saw it, and the model's answer."""

    prompt: str = field(repr=False)
    output: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """How questions are asked and which model answers them; it is sent to other processes.

    Attributes:
        task: name of the task.
        writer: the model that answers.
        max_length: maximum number of tokens per prompt; see `personalization.lamp.prompt.fit_prompt`.
        batch: number of questions per batch.
        keep_prompts: whether to save the prompts as well.
    """

    task: str
    writer: WriterSpec
    max_length: int
    batch: int
    keep_prompts: bool = False

    def document(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """Return everything that the answers depend on, as JSON."""
        writer = asdict(self.writer)
        # Answers don't depend on the location of the weights.
        del writer["source"]
        adapters, weights = writer.pop("adapters"), writer.pop("identity")
        return {
            "task": self.task,
            "weights": weights,
            **writer,
            "adapters": "none" if adapters is None else _adapters_digest(Path(adapters), asked),
            "max_length": self.max_length,
            "batch": self.batch,
            "prompts_kept": self.keep_prompts,
            "questions": _digest([one.key, one.question, one.items, one.user] for one in asked),
        }


class AnswerWorker:
    """Answers batches of questions in a worker process that holds the model. Importing it loads no torch."""

    def __init__(self, plan: AnswerPlan) -> None:
        """Load the writer.

        Raises:
            CogenesisError: the writer can't be loaded.
        """
        self._plan = plan
        self._task = find_task(plan.task)
        self._writer = open_writer(plan.writer)

    def __call__(self, job: Sequence[Asked]) -> list[dict[str, str]]:
        """Answer questions of one user.

        Returns:
            For each question its key, the answer and, if requested, the prompt.

        Raises:
            CogenesisError: a question can't be put to the model.
        """
        room = self._plan.max_length - self._writer.added_tokens
        prompts = [self._prompt(one, room) for one in job]
        outputs = self._writer.write(prompts, job[0].user)
        answers = [{"key": one.key, "output": output} for one, output in zip(job, outputs, strict=True)]
        if self._plan.keep_prompts:
            return [answer | {"prompt": prompt} for answer, prompt in zip(answers, prompts, strict=True)]
        return answers

    def _prompt(self, one: Asked, room: int) -> str:
        try:
            return fit_prompt(self._task.prompt, one.question, one.items, self._writer.tokens, room)
        except DataError as error:
            raise DataError(f"Question '{one.id}': {error}.") from None


def answer_all(
    asked: Sequence[Asked],
    plan: AnswerPlan,
    runner: Runner,
    directory: Path,
    *,
    shard: Shard | None = None,
    force: bool = False,
    report: Callable[[int, int], None],
) -> dict[str, Answered] | None:
    """Answer questions, except those that an earlier run has answered.

    Args:
        asked: the questions, each with a unique key.
        plan: how to ask, and which model answers.
        runner: where to run.
        directory: directory for the results so far.
        shard: the part of the batches to do; None for all.
        force: start over if an earlier run was a different one.
        report: called after each batch with the number of finished batches, including earlier runs, and of all batches.

    Returns:
        Every question's answer, in the order of the questions; None while answers of other shards are missing.

    Raises:
        SettingsError: an earlier run was a different one, and `force` is not set.
        PersonalizationError: the model, the adapters or the runner can't be used.
    """
    results = run_shard(
        partial(AnswerWorker, plan),
        dict(enumerate(_batches(asked, plan.batch))),
        runner,
        directory,
        "answers",
        plan.document(asked),
        shard=shard or Shard(),
        force=force,
        report=report,
    )
    if results is None:
        return None
    answers = {answer["key"]: answer for batch in results.values() for answer in batch}
    return {one.key: Answered(answers[one.key].get("prompt", ""), answers[one.key]["output"]) for one in asked}


def _batches(asked: Sequence[Asked], size: int) -> list[tuple[Asked, ...]]:
    """Group each user's questions by length, longest first, so that a lack of memory shows immediately."""
    ordered = sorted(asked, key=lambda one: (one.user or "", -one.characters, one.key))
    batches: list[list[Asked]] = []
    for one in ordered:
        if batches and len(batches[-1]) < size and batches[-1][0].user == one.user:
            batches[-1].append(one)
        else:
            batches.append([one])
    return [tuple(batch) for batch in batches]


def _adapters_digest(root: Path, asked: Sequence[Asked]) -> str:
    """Digest of all files of the users' adapters.

    Raises:
        SettingsError: some users have no adapter.
    """
    directories = {one.user: root / directory_name(one.user) for one in asked if one.user is not None}
    missing = [user for user, directory in directories.items() if not directory.is_dir()]
    if missing:
        raise SettingsError(
            f"{len(missing)} of {len(directories)} users have no adapter in {root}: {listed(missing)}. Train them with "
            "`cogenesis adapter train`, or leave out `adapters`."
        )
    files = sorted(file for directory in directories.values() for file in directory.iterdir() if file.is_file())
    return _digest([str(file.relative_to(root)), sha256_of(file)] for file in files)


def _digest(parts: Iterator[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, default=dict).encode() + b"\n")
    return digest.hexdigest()

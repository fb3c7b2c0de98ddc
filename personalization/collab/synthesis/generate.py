"""Makes records with a large model in four steps, as CoGenesis did: groups of people, people, their tasks, their texts.

Source of the steps: Zhang et al., "CoGenesis", ACL 2024, section 3 and appendix; prompts and checks are our own.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from personalization.answering.chat_endpoint import Reply, Usage
from personalization.answering.checked_answers import Asked, Source, ask_all, ask_until_usable
from personalization.collab.records.records import CollabRecord
from personalization.collab.synthesis.near_duplicates import distinct
from personalization.collab.synthesis.prompts import (
    character_prompt,
    portraits_prompt,
    prompts_digest,
    tasks_prompt,
    text_prompt,
)
from personalization.collab.synthesis.replies import read_character, read_portraits, read_tasks, read_text
from personalization.errors import SettingsError
from personalization.users.data import user_seed

_BATCH = 10  # portraits of a question; more are listed with ever less care
_SAME_PORTRAIT, _SAME_PERSON, _SAME_TASK, _SAME_TEXT = 0.7, 0.5, 0.6, 0.3
"""Shares of common runs of words from which on two of a kind are taken for the same."""


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """How much is made.

    Attributes:
        portraits: groups of people.
        people: of each group.
        tasks: texts of each person.
        history: of these, the first so many that become past texts; each other one becomes a record.
        tries: the most for a reply that can be used.
        seed: of all that is random.
    """

    portraits: int = 10
    people: int = 2
    tasks: int = 8
    history: int = 4
    tries: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.portraits, self.people, self.tries) < 1 or self.history < 0:
            raise SettingsError("--portraits, --people and --tries must be at least 1, --history at least 0.")
        if self.tasks <= self.history:
            raise SettingsError(
                f"With {self.tasks} texts a person and {self.history} of them as history there is none left for a "
                "record. Raise --tasks."
            )


@dataclass(slots=True)
class Generated:
    """What was made, and what it took.

    Attributes:
        records: one for each text that is not history.
        steps: by the name of the step, how many there are of `asked`, `done`, `failed` and `repeated` (left out since
            they say again what another says).
        failed: `step number: why`, for all that failed.
        usage: of all questions, those of earlier runs that are used here included.
        short: people who have too few texts for a record.
    """

    records: list[CollabRecord] = field(default_factory=list)
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    short: int = 0


def generate_records(
    source: Source,
    settings: GenerateSettings,
    directory: Path,
    *,
    report: Callable[[str, int, int], None],
    force: bool = False,
) -> Generated:
    """Make records; what an earlier run has made is not asked for again, what failed then is.

    Args:
        source: who is asked.
        settings: how much.
        directory: what is known so far is kept here, a journal for each step.
        report: called with the step, how many of its questions are done and how many there are.
        force: begin anew where a run with other settings is.

    Raises:
        EndpointRefusedError: nothing will be answered; what is done is kept.
        SettingsError: an earlier run was another, and `force` is not set.
        WriteError: the directory can't be written.
    """
    return _Run(source, settings, directory, report, force).all()


class _Run:
    def __init__(
        self,
        source: Source,
        settings: GenerateSettings,
        directory: Path,
        report: Callable[[str, int, int], None],
        force: bool,
    ) -> None:
        self._source, self._settings, self._directory = source, settings, directory
        self._report, self._force = report, force
        self._document = asdict(settings) | {"source": source.document, "prompts": prompts_digest()}
        self._made = Generated()

    def all(self) -> Generated:
        portraits = self._distinct("portraits", self._portraits(), _SAME_PORTRAIT, words=1)
        people = self._people(portraits)
        tasks = self._tasks(people)
        self._records(people, tasks, self._texts(people, tasks))
        return self._made

    def _portraits(self) -> dict[int, str]:
        """By number; batches one after the other, since each is told of those before."""
        settings, found = self._settings, dict[int, str]()
        for start in range(0, settings.portraits, _BATCH):
            count = min(_BATCH, settings.portraits - start)
            prompt = portraits_prompt(count, list(found.values()))
            batch = self._step("portraits", {start: prompt}, read_portraits)
            found |= {start + index: text for index, text in enumerate(batch.get(start, [])[:count])}
        return found

    def _people(self, portraits: Mapping[int, str]) -> dict[int, dict[str, str]]:
        count = self._settings.people
        letters = random.Random(self._settings.seed).choices(string.ascii_uppercase, k=count * self._settings.portraits)
        prompts = {
            number * count + index: character_prompt(text, index + 1, count, letters[number * count + index])
            for number, text in portraits.items()
            for index in range(count)
        }
        found = self._step("people", prompts, read_character)
        by_name = {person["name"].casefold(): number for number, person in reversed(found.items())}
        first = {number: person["profile"] for number, person in found.items() if number in set(by_name.values())}
        kept = self._distinct("people", first, _SAME_PERSON, words=2, before=len(found))
        return {number: found[number] for number in kept}

    def _tasks(self, people: Mapping[int, Mapping[str, str]]) -> dict[int, dict[str, str]]:
        """By the person's number times tasks a person, plus the task's."""
        count = self._settings.tasks
        prompts = {number: tasks_prompt(person["profile"], count) for number, person in people.items()}
        found = self._step("tasks", prompts, lambda reply: read_tasks(reply, count))
        kept: dict[int, dict[str, str]] = {}
        for number, tasks in found.items():
            titles = [task["title"] for task in tasks]
            for index in distinct(titles, words=1, similar=_SAME_TASK):
                kept[number * count + index] = tasks[index]
        self._made.steps["tasks"]["repeated"] = sum(map(len, found.values())) - len(kept)
        return kept

    def _texts(self, people: Mapping[int, Mapping[str, str]], tasks: Mapping[int, dict[str, str]]) -> dict[int, str]:
        prompts = {
            number: text_prompt(people[number // self._settings.tasks]["profile"], _whole(task))
            for number, task in tasks.items()
        }
        found = self._step("texts", prompts, read_text)
        return self._distinct("texts", found, _SAME_TEXT, words=4)

    def _records(
        self, people: Mapping[int, Mapping[str, str]], tasks: Mapping[int, dict[str, str]], texts: Mapping[int, str]
    ) -> None:
        settings = self._settings
        for person, facts in people.items():
            own = [number for number in sorted(texts) if number // settings.tasks == person]
            if len(own) <= settings.history:
                self._made.short += 1
                continue
            past = tuple(HistoryItem(_whole(tasks[one]), texts[one]) for one in own[: settings.history])
            user = "_".join(map(str, divmod(person, settings.people)))
            for one in own[settings.history :]:
                task = tasks[one]
                self._made.records.append(
                    CollabRecord(
                        f"{user}_{one % settings.tasks}",
                        user,
                        PublicInstruction(task["title"]),
                        _whole(task),
                        PrivateContext(facts["profile"], past),
                        texts[one],
                    )
                )

    def _step(self, name: str, prompts: Mapping[int, str], read: Callable[[Reply], Any]) -> dict[int, Any]:
        def work(number: int, prompt: str) -> Any:
            seed = user_seed(self._settings.seed, f"{name} {number}") % 2**31  # some endpoints take no more
            value, usage = ask_until_usable(self._source, prompt, read, seed=seed, tries=self._settings.tries)
            return {"value": value, "usage": asdict(usage)}

        asked = ask_all(
            self._directory / f"{name}.jsonl",
            self._document,
            prompts,
            work,
            parallel=self._source.parallel,
            report=lambda done, total: self._report(name, done, total),
            force=self._force,
        )
        self._count(name, len(prompts), asked)
        return {number: result["value"] for number, result in asked.results.items()}

    def _count(self, name: str, total: int, asked: Asked) -> None:
        counts = self._made.steps.setdefault(name, dict.fromkeys(("asked", "done", "failed", "repeated"), 0))
        counts["asked"] += total
        counts["done"] += len(asked.results)
        counts["failed"] += len(asked.failed)
        self._made.failed += [f"{name} {number}: {why}" for number, why in asked.failed.items()]
        used: Iterator[Usage] = (Usage(**result["usage"]) for result in asked.results.values())
        self._made.usage = sum(used, self._made.usage + asked.usage)

    def _distinct(
        self, name: str, found: Mapping[int, str], similar: float, *, words: int, before: int | None = None
    ) -> dict[int, str]:
        """What is unlike all before it, by number."""
        numbers = sorted(found)
        kept = [numbers[index] for index in distinct([found[one] for one in numbers], words=words, similar=similar)]
        self._made.steps[name]["repeated"] = (len(found) if before is None else before) - len(kept)
        return {number: found[number] for number in kept}


def _whole(task: Mapping[str, str]) -> str:
    """As in the authors' data, where the public part ends at the first ": "."""
    return f"{task['title']}: {task['detail']}"

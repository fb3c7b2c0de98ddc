"""Generates records with a large model in four steps, as CoGenesis did: groups of people, people, tasks, texts.

Source of the steps: Zhang et al., "CoGenesis", ACL 2024, section 3 and appendix. Prompts and checks are our own.
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

_BATCH = 10  # portraits per request; models get careless in longer lists
_SAME_PORTRAIT, _SAME_PERSON, _SAME_TASK, _SAME_TEXT = 0.7, 0.5, 0.6, 0.3
"""Share of common word n-grams from which two items of a kind count as duplicates."""


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """How much to generate.

    Attributes:
        portraits: number of groups of people.
        people: people per group.
        tasks: texts per person.
        history: how many of these, from the first, become past texts; each other text becomes a record.
        tries: maximum number of replies until one can be used.
        seed: seed of everything random.
    """

    portraits: int = 10
    people: int = 2
    tasks: int = 8
    history: int = 4
    tries: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("portraits", 1), ("people", 1), ("tries", 1), ("history", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"`{name}` must be at least {least}, not {getattr(self, name)}.")
        if self.tasks <= self.history:
            raise SettingsError(
                f"`tasks` must be above `history`, so that texts are left for records: {self.tasks} texts per person, "
                f"{self.history} of them history. Raise `tasks`."
            )


@dataclass(slots=True)
class Generated:
    """The generated records, and their cost.

    Attributes:
        records: one for each text that is not history.
        steps: by the name of the step, the counts `asked`, `done`, `failed` and `repeated` (dropped as
            near-duplicates).
        failed: `step number: why`, for everything that failed.
        usage: usage of all requests, including those of earlier runs whose results are used.
        short: number of people with too few texts for a record.
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
    """Generate records; results of an earlier run are reused, and its failures are retried.

    Args:
        source: the model to ask.
        settings: how much to generate.
        directory: directory for the results so far, with one journal per step.
        report: called with the step, and the number of its finished requests and of all its requests.
        force: start over if the directory belongs to a run with other settings.

    Raises:
        EndpointRefusedError: the endpoint will answer nothing; finished results are kept.
        SettingsError: an earlier run was a different one, and `force` is not set.
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
        """Return portraits by number; batches run one after another, since each prompt lists the earlier ones."""
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
        """Return tasks, keyed by the person's number times tasks per person, plus the task's number."""
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
            seed = user_seed(self._settings.seed, f"{name} {number}") % 2**31  # the maximum of some endpoints
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
        """Return, by number, the items that do not resemble an earlier one."""
        numbers = sorted(found)
        kept = [numbers[index] for index in distinct([found[one] for one in numbers], words=words, similar=similar)]
        self._made.steps[name]["repeated"] = (len(found) if before is None else before) - len(kept)
        return {number: found[number] for number in kept}


def _whole(task: Mapping[str, str]) -> str:
    """Join title and detail as in the authors' data, where the public part ends at the first ": "."""
    return f"{task['title']}: {task['detail']}"

"""Compares what a model answers with profile items in the prompt to what it answers without, on the same questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.files.whole_file import whole_file
from personalization.errors import SettingsError
from personalization.jobs.runners import LocalRunner
from personalization.lamp.answers import Answered, Asked
from personalization.lamp.merging import merge
from personalization.lamp.metrics import metrics_of, statistics
from personalization.lamp.outputs import write_outputs
from personalization.lamp.questions import QuestionFile
from personalization.lamp.rankers import RankerName
from personalization.lamp.ranking import RankingSpec, rank_profiles
from personalization.lamp.shown_items import all_gold_outputs, with_first_items
from personalization.lamp.tasks import LampTask
from personalization.measures.significance import Comparison, compare_systems

NO_PROFILE = "no profile"


@dataclass(frozen=True, slots=True)
class System:
    """One way to put questions: with so many of the items that a ranker puts first.

    Attributes:
        ranker: who ranks; None for no items at all.
        items: of a profile in the prompt.
    """

    ranker: RankerName | None = None
    items: int = 0

    @property
    def name(self) -> str:
        """For people."""
        return NO_PROFILE if self.ranker is None else f"{self.ranker}, k = {self.items}"

    @property
    def directory(self) -> str:
        """Where its answers are."""
        return "no-profile" if self.ranker is None else f"{self.ranker}-{self.items}"


@dataclass(frozen=True, slots=True)
class Compared:
    """Scores of one system, and how they differ from those without a profile (None for those themselves)."""

    system: System
    scores: Mapping[str, float]
    against: Mapping[str, Comparison] | None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        body: dict[str, Any] = {"system": self.system.name, "scores": dict(self.scores)}
        if self.against is not None:
            body["against"] = {name: found.document() for name, found in self.against.items()}
        return body


@dataclass(frozen=True, slots=True)
class CompareSpec:
    """What is compared.

    Attributes:
        task: whose questions.
        questions: a questions file.
        outputs: its gold outputs.
        limit: only the first so many questions.
        rankers: that order the profiles.
        items: numbers of items in a prompt.
        out: directory of all that is made.
    """

    task: LampTask
    questions: Path
    outputs: Path
    limit: int | None
    rankers: Sequence[RankerName]
    items: Sequence[int]
    out: Path

    def __post_init__(self) -> None:
        wrong = [ranker for ranker in self.rankers if ranker.needs_encoder]
        if wrong:
            raise SettingsError(
                f"The ranker {wrong[0]} needs an encoder. Use `lamp rank`, `lamp merge` and `lamp evaluate` for it and "
                "`lamp score --against`."
            )


def compare(
    spec: CompareSpec, answer: Callable[[Sequence[Asked], Path], Mapping[str, Answered]]
) -> tuple[Compared, ...]:
    """Rank, merge, answer and score, without a profile and with each ranker and number of items.

    All that is made stays in the directory, so that a run which was interrupted goes on where it was: `RANKER.json`
    (rankings), `merged.RANKER.json`, and a directory for each system's answers.

    Args:
        spec: what is compared.
        answer: has questions answered, and keeps what is done in a directory.

    Returns:
        The systems, the one without a profile first.

    Raises:
        CogenesisError: a file can't be used, or questions could not be answered.
    """
    systems = [System(), *(System(ranker, items) for ranker in spec.rankers for items in spec.items)]
    merged = {ranker: _ranked(spec, ranker) for ranker in spec.rankers}
    any_order = next(iter(merged.values()))
    golds = all_gold_outputs(any_order, spec.limit)
    found: dict[System, NDArray[np.float64]] = {}
    for system in systems:
        questions = any_order if system.ranker is None else merged[system.ranker]
        asked = with_first_items(questions, spec.limit, system.items, own_adapter=False)
        directory = spec.out / system.directory
        answers = answer(asked, directory)
        write_outputs(directory / "predictions.json", spec.task, {name: one.output for name, one in answers.items()})
        rows = [statistics(spec.task, gold, answers[identity].output) for identity, gold in golds.items()]
        found[system] = np.array(rows)
    scores = {name: metric.score for name, metric in metrics_of(spec.task).items()}
    return tuple(
        Compared(
            system,
            {name: float(score(rows.mean(axis=0))) for name, score in scores.items()},
            None if system.ranker is None else compare_systems(rows, found[System()], scores),
        )
        for system, rows in found.items()
    )


def write_comparison(spec: CompareSpec, compared: Sequence[Compared]) -> None:
    """Write `comparison.json` and `table.md` into the directory.

    Raises:
        WriteError: they can't be written.
    """
    with whole_file(spec.out / "comparison.json") as file:
        json.dump({"task": spec.task.name, "systems": [one.document() for one in compared]}, file, indent=1)
        file.write("\n")
    with whole_file(spec.out / "table.md") as file:
        file.write(markdown_table(compared))


def markdown_table(compared: Sequence[Compared]) -> str:
    """The systems in Markdown: each score, and of all but the first its difference, 95 % interval and p-value."""
    names = list(compared[0].scores)
    head = ["prompt", *(cell for name in names for cell in (name, "change, 95 % interval", "p"))]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [[one.system.name, *(cell for name in names for cell in _cells(one, name))] for one in compared]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(one: Compared, name: str) -> tuple[str, str, str]:
    score = f"{one.scores[name]:.4f}"
    if one.against is None:
        return score, "", ""
    found = one.against[name]
    return score, f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})", f"{found.p:.4f}"


def _ranked(spec: CompareSpec, ranker: RankerName) -> QuestionFile:
    """The questions with profiles in a ranker's order, and gold outputs."""
    ranking, merged = spec.out / f"{ranker}.json", spec.out / f"merged.{ranker}.json"
    rank_profiles(
        RankingSpec(QuestionFile(spec.questions, spec.task), ranker),
        ranking,
        LocalRunner(),
        force=True,
        report=_silent,
    )
    merge(spec.questions, merged, ranking=ranking, outputs=spec.outputs)
    return QuestionFile(merged, spec.task)


def _silent(_done: int, _total: int) -> None:
    """Ranking by words takes no time that anybody would wait for."""

"""What a retriever selector learns from and is judged by: each question's answers with each retriever of a pool."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.files.whole_file import whole_file
from personalization.errors import DataError, SettingsError
from personalization.files.json_file import list_field, read_json, text_field
from personalization.measures.significance import Comparison, compare_systems
from personalization.retrievers.feedback import Answer, read_retriever_feedback

FORMAT = "cogenesis-selection/1"


@dataclass(frozen=True, slots=True)
class SelectionQuestion:
    """A question's id, and its answers in the order of the pool."""

    id: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """Questions answered with each retriever of a pool.

    Attributes:
        metric: what the gains are of.
        retrievers: the pool's names, two or more; where scores are equal the first is taken.
        questions: one or more.
    """

    metric: str
    retrievers: tuple[str, ...]
    questions: tuple[SelectionQuestion, ...]

    @property
    def gains(self) -> NDArray[np.float64]:
        """(questions, retrievers) float64: what each answer was worth, higher is better."""
        return np.array([[answer.gain for answer in question.answers] for question in self.questions])

    @property
    def digest(self) -> str:
        """SHA-256 of everything in it."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Bounds:
    """Mean gains of choosing without a selector.

    Attributes:
        retrievers: of each retriever alone, by name.
        best: name of the best of them.
        random: of a retriever drawn for each question, in expectation.
        oracle: of the best retriever for each question: no selector can have more.
    """

    retrievers: dict[str, float]
    best: str
    random: float
    oracle: float


def bounds(selection: Selection) -> Bounds:
    """What selectors lie between."""
    gains = selection.gains
    means = dict(zip(selection.retrievers, gains.mean(axis=0).tolist(), strict=True))
    return Bounds(means, max(means, key=lambda name: means[name]), float(gains.mean()), float(gains.max(axis=1).mean()))


def combine(pool: Mapping[str, Path], metric: str | None = None) -> Selection:
    """Put the feedback on several retrievers together.

    Args:
        pool: each retriever's name and its folder of feedback.
        metric: which value of the feedback; None: the only one there is.

    Raises:
        DataError: a folder is not of the form, or one has other questions than the rest.
        SettingsError: fewer than two retrievers, or the metric can't be told.
    """
    if len(pool) < 2:
        raise SettingsError("A pool has two retrievers or more. Give --pool NAME=FOLDER for each.")
    read = {name: read_retriever_feedback(folder, metric) for name, folder in pool.items()}
    (first, (chosen, answers)), *others = read.items()
    for name, (other, theirs) in others:
        if other != chosen:
            raise SettingsError(
                f"The feedback is of different metrics: {chosen} in {pool[first]}, {other} in {pool[name]}. Make both "
                "of the same."
            )
        unlike = answers.keys() ^ theirs.keys()
        if unlike:
            raise DataError(
                f"The feedback is on different questions: {pool[first]} and {pool[name]} (such as '{min(unlike)}'). "
                "Make both of the same."
            )
    questions = (
        SelectionQuestion(identity, tuple(by_id[identity] for _, by_id in read.values())) for identity in answers
    )
    return Selection(chosen, tuple(pool), tuple(questions))


def write_selection(selection: Selection, path: Path) -> None:
    """Write it as one JSON file, at once or not at all.

    Raises:
        WriteError: it can't be written.
    """
    with whole_file(path) as file:
        json.dump({"format": FORMAT, **asdict(selection)}, file, ensure_ascii=False, indent=1)
        file.write("\n")


def read_selection(path: Path) -> Selection:
    """Read what `write_selection` wrote.

    Raises:
        DataError: the file is something else, or damaged.
    """
    body = read_json(path)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise DataError(f"This is no data of retriever selection: {path}. Make it with `cogenesis rspg data`.")
    try:
        names = body.get("retrievers")
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise DataError("'retrievers' must be two texts or more")
        questions = tuple(
            _question(entry, len(names), f"questions[{number}]")
            for number, entry in enumerate(list_field(body, "questions", "it"))
        )
        if not questions:
            raise DataError("it has no questions")
        return Selection(text_field(body, "metric", "it"), tuple(names), questions)
    except DataError as error:
        raise DataError(f"The data of retriever selection is damaged: {path}, {error}. Make it again.") from None


def compare_with_best(selection: Selection, choices: Sequence[int]) -> Comparison:
    """What choices are worth, and whether that is more or less than the best retriever alone, or chance.

    Args:
        selection: what was chosen from.
        choices: of each question the index of a retriever.
    """
    gains = selection.gains
    selected = gains[np.arange(len(choices)), choices]
    best = gains[:, selection.retrievers.index(bounds(selection).best)]
    return compare_systems(selected[:, None], best[:, None], {selection.metric: _mean})[selection.metric]


def _mean(means: NDArray[np.float64]) -> NDArray[np.float64]:
    return means[..., 0]


def _question(body: Mapping[str, Any], pool: int, where: str) -> SelectionQuestion:
    answers = list_field(body, "answers", where)
    if len(answers) != pool:
        raise DataError(f"'answers' of {where} must be one of each retriever")
    return SelectionQuestion(text_field(body, "id", where), tuple(_answer(answer, where) for answer in answers))


def _answer(body: Mapping[str, Any], where: str) -> Answer:
    gain = body.get("gain")
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not np.isfinite(gain):
        raise DataError(f"'gain' of an answer of {where} must be a finite number")
    return Answer(text_field(body, "prompt", where), text_field(body, "output", where), float(gain))

"""Orders a user's profile for a question: by words, meaning, date or chance, or by a combination of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_runtime.retrieval.rank_fusion import alternate, reciprocal_rank_scores
from edge_runtime.store.bm25 import best_first
from personalization.errors import DataError, PersonalizationError, SettingsError
from personalization.lamp.bm25 import Bm25
from personalization.lamp.questions import ProfileItem, Question
from personalization.lamp.tasks import LampTask, day_number
from personalization.users.data import user_seed

if TYPE_CHECKING:
    from personalization.models.text_encoder import Encoder

Order: TypeAlias = NDArray[np.int64]


class RankerName(StrEnum):
    """How profiles are ordered.

    Attributes:
        BM25: by words.
        DENSE: by meaning, with an encoder such as Contriever.
        RECENCY: newest first.
        RANDOM: in random order.
        HYBRID: words and meaning, by reciprocal rank fusion.
        MIXED: newest and nearest in meaning, alternating.
    """

    BM25 = "bm25"
    DENSE = "contriever"
    RECENCY = "recency"
    RANDOM = "random"
    HYBRID = "hybrid"
    MIXED = "mixed"

    @property
    def needs_encoder(self) -> bool:
        """Whether the ranker needs a text encoder."""
        return self in (RankerName.DENSE, RankerName.HYBRID, RankerName.MIXED)


@dataclass(frozen=True, slots=True)
class Searched:
    """A question in the form that rankers use.

    Attributes:
        question: the question with its profile.
        query: the query for the profile.
        documents: the profile items' texts.
    """

    question: Question
    query: str
    documents: tuple[str, ...]


def searched(task: LampTask, question: Question, *, use_date: bool = False) -> Searched:
    """Convert a question to the form that rankers use.

    Args:
        task: task of the question.
        question: any question.
        use_date: whether to append its item's date to each document.

    Raises:
        DataError: the question does not have the task's form, or an item lacks the date.
    """
    try:
        query = task.query(question.input)
    except DataError as error:
        raise DataError(f"Question '{question.id}' is not one of {task.name}: {error}. Check `task`.") from None
    if use_date:
        for item in question.profile:
            if "date" not in item.fields:
                raise _without_date(question, item)
    documents = tuple(task.document_text(item.fields, use_date=use_date) for item in question.profile)
    return Searched(question, query, documents)


def ranker_of(
    name: RankerName, *, encoder: Encoder | None = None, batch: int = 32, seed: int = 0
) -> Callable[[Sequence[Searched]], list[Order]]:
    """Return a function that ranks the profiles of some questions.

    Args:
        name: the ranker.
        encoder: text encoder for rankers that need one.
        batch: number of texts per batch of the encoder.
        seed: seed of the random order.

    Returns:
        A function from questions to each one's item indices, best first; of equal items, the later comes first. Which
        questions are ranked together affects the result only through the encoder's rounding.

    Raises:
        SettingsError: the ranker needs an encoder and there is none.
    """
    match name:
        case RankerName.BM25:
            return _bm25
        case RankerName.RECENCY:
            return _recency
        case RankerName.RANDOM:
            return partial(_random, seed)
    if encoder is None:
        raise SettingsError(f"The ranker '{name}' needs an encoder. Give `encoder`.")
    dense = partial(_dense, encoder, batch)
    match name:
        case RankerName.DENSE:
            return dense
        case RankerName.HYBRID:
            return partial(_hybrid, dense)
        case RankerName.MIXED:
            return partial(_mixed, dense)


def _bm25(questions: Sequence[Searched]) -> list[Order]:
    return [Bm25(asked.documents).rank(asked.query) for asked in questions]


def _recency(questions: Sequence[Searched]) -> list[Order]:
    """Newest first."""
    return [
        best_first(np.array([_day(asked.question, number) for number in range(len(asked.documents))], dtype=np.float64))
        for asked in questions
    ]


def _random(seed: int, questions: Sequence[Searched]) -> list[Order]:
    """Order depends only on seed and question."""
    return [
        np.random.default_rng(user_seed(seed, asked.question.id)).permutation(len(asked.documents))
        for asked in questions
    ]


def _dense(encoder: Encoder, batch: int, questions: Sequence[Searched]) -> list[Order]:
    """By the dot product of query and document (Izacard et al., 2022)."""
    texts = dict.fromkeys(text for asked in questions for text in (asked.query, *asked.documents))
    vectors = dict(zip(texts, encoder.embed(list(texts), batch), strict=True))
    orders = []
    for asked in questions:
        documents = np.array([vectors[text] for text in asked.documents]).reshape(-1, encoder.dimension)
        scores = documents @ vectors[asked.query]
        if not np.isfinite(scores).all():
            raise PersonalizationError(
                f"The encoder's scores for question '{asked.question.id}' are not finite numbers. Train it again."
            )
        orders.append(best_first(scores.astype(np.float64)))
    return orders


def _hybrid(dense: Callable[[Sequence[Searched]], list[Order]], questions: Sequence[Searched]) -> list[Order]:
    """Reciprocal rank fusion of words and meaning."""
    pairs = zip(_bm25(questions), dense(questions), strict=True)
    return [best_first(reciprocal_rank_scores(pair)) for pair in pairs]


def _mixed(dense: Callable[[Sequence[Searched]], list[Order]], questions: Sequence[Searched]) -> list[Order]:
    """Alternate between date and meaning."""
    return [alternate(*pair) for pair in zip(_recency(questions), dense(questions), strict=True)]


def _day(question: Question, number: int) -> int:
    """Return an item's date as a day number."""
    item = question.profile[number]
    if "date" not in item.fields:
        raise _without_date(question, item)
    try:
        return day_number(item.fields["date"])
    except ValueError:
        raise DataError(
            f"Item '{item.id}' of question '{question.id}' has a date that is not of the form Y-M-D. Correct it."
        ) from None


def _without_date(question: Question, item: ProfileItem) -> DataError:
    problem = f"has a date that can't be used ({item.bad_date})" if item.bad_date else "has no 'date'"
    return DataError(
        f"Item '{item.id}' of question '{question.id}' {problem}. Choose a `ranker` without dates, and leave out "
        "`use_date`."
    )

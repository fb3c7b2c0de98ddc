"""The tasks of LaMP (Salemi et al., 2024) in one table: what is searched, what is shown, what is asked and judged."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from personalization.errors import DataError, SettingsError
from personalization.users.data import Pair

_REFERENCES = ("[1]", "[2]")
_TAGS = (
    "sci-fi",
    "based on a book",
    "comedy",
    "action",
    "twist ending",
    "dystopia",
    "dark comedy",
    "classic",
    "psychology",
    "fantasy",
    "romance",
    "thought-provoking",
    "social commentary",
    "violence",
    "true story",
)
_CATEGORIES = (
    "food & drink",
    "sports",
    "education",
    "parents",
    "religion",
    "travel",
    "business",
    "crime",
    "science & technology",
    "culture & arts",
    "entertainment",
    "politics",
    "women",
    "style & beauty",
    "healthy living",
)
_STARS = ("1", "2", "3", "4", "5")
# A tweet is cut where between a tenth and a quarter of it is over.
_SHORTEST_START, _LONGEST_START = 0.10, 0.25
_WORD_START = re.compile(r"(?<=\s)\S")
_QUOTED = re.compile(r'"([^"]*)"')
_ITEMS_JOINED_BY = ", and "


class Judging(StrEnum):
    """How answers are judged: a label by accuracy and F1, a rating by MAE and RMSE, a text by ROUGE."""

    LABEL = "label"
    RATING = "rating"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """How profile items are shown to a model that answers a question.

    Attributes:
        item: an item's text with its fields in braces.
        cut: the field that is cut where an item is longer than its share.
        place: puts the items, joined, before or into the question.
    """

    item: str
    cut: str
    place: Callable[[str, str], str]

    def show(self, fields: Mapping[str, str]) -> str:
        """One item's text."""
        return self.item.format_map(fields)

    def assemble(self, items: Sequence[str], question: str) -> str:
        """The prompt.

        Args:
            items: texts as `show` gives them, best first; none: the question alone.
            question: the question's input.

        Raises:
            DataError: the question is not of the task's form.
        """
        return self.place(_ITEMS_JOINED_BY.join(items), question) if items else question


@dataclass(frozen=True, slots=True)
class LampTask:
    """One task.

    Attributes:
        name: "LaMP-1" to "LaMP-7", or "LaMP-2-news".
        instruction: what the user asks for, before the source's text, where an adapter is trained.
        source: field of a profile item that an adapter learns to answer.
        target: field that is the answer; None where the answer is the source's own continuation.
        query: takes what to search the profile for out of a question's input; a `DataError` says what that lacks.
        document: fields of a profile item that are searched.
        judging: how answers are judged.
        labels: the possible answers of a label or a rating; empty where the answer is a text.
        prompt: how profile items are shown to the model.
        file_name: what LaMP's files call the task; both variants of the second have the same.
    """

    name: str
    instruction: str
    source: str
    target: str | None
    query: Callable[[str], str]
    document: tuple[str, ...]
    judging: Judging
    labels: tuple[str, ...]
    prompt: PromptTemplate
    file_name: str

    def pair(self, item: Mapping[str, str], seed: int) -> Pair | None:
        """Make a profile item a task and its answer.

        Args:
            item: the item's fields `source` and `target`.
            seed: where a text is cut, together with the text.

        Returns:
            None where a text is empty, or too short to be cut.
        """
        text = item[self.source].strip()
        start, answer = cut_text(text, seed) if self.target is None else (text, item[self.target].strip())
        return Pair(f"{self.instruction} {start}", answer) if start and answer else None

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields of a profile item that the task uses."""
        target = () if self.target is None else (self.target,)
        return tuple(dict.fromkeys((*self.document, self.source, *target, self.prompt.cut)))

    def document_text(self, item: Mapping[str, str], *, use_date: bool = False) -> str:
        """What of a profile item is searched.

        Args:
            item: the item's fields.
            use_date: end the text in the item's date, where it has one.
        """
        text = " ".join(item[field] for field in self.document)
        return f"{text} date: {item['date']}" if use_date and "date" in item else text


def cut_text(text: str, seed: int) -> tuple[str, str]:
    """Cut a text before a word, where 10 to 25 % of its characters are over.

    Which word, where several would do, depends on seed and text alone. If none lies there, it is the first after that,
    or else the last before it.

    Returns:
        Start and rest, both stripped; ("", "") for a text of fewer than two words.
    """
    text = text.strip()
    starts = [match.start() for match in _WORD_START.finditer(text)]
    if not starts:
        return "", ""
    low, high = _SHORTEST_START * len(text), _LONGEST_START * len(text)
    inside = [start for start in starts if low <= start <= high]
    beyond = [start for start in starts if start > high]
    cut = random.Random(f"{seed}\0{text}").choice(inside) if inside else (beyond or starts[-1:])[0]
    return text[:cut].rstrip(), text[cut:]


def day_number(date: str) -> int:
    """Days up to a date of the form Y-M-D, which need not have leading zeros.

    Raises:
        ValueError: it is not of this form, or there is no such day.
    """
    year, month, day = map(int, date.split("-"))
    return datetime.date(year, month, day).toordinal()


def find_task(name: str) -> LampTask:
    """The task of this name; "lamp_5" is LaMP-5, too.

    Raises:
        SettingsError: there is none.
    """
    wanted = name.strip().replace("_", "-").lower()
    found = next((task for known, task in LAMP_TASKS.items() if known.lower() == wanted), None)
    if found is None:
        raise SettingsError(f"There is no task '{name}'. Use one of: {', '.join(LAMP_TASKS)}.")
    return found


def _after(marker: str, text: str) -> str:
    _, found, rest = text.partition(marker)
    if not found:
        raise DataError(f"the input has no '{marker}'")
    return rest.strip()


def _references(text: str) -> str:
    """Both candidate references: the second and third quoted text."""
    quoted = _QUOTED.findall(text)
    if len(quoted) < 3:
        raise DataError('the input has fewer than three texts in "quotes"')
    return f"{quoted[1]} {quoted[2]}"


def _before(link: str, items: str, question: str) -> str:
    return f"{items}{link}{question}"


def _into_title(items: str, question: str) -> str:
    """The user's titles go where the question speaks of the paper's own."""
    parts = re.split(r"\btitle\b", question, maxsplit=1)
    if len(parts) < 2:
        raise DataError("the input has no word 'title'")
    return f"{parts[0]}title{_ITEMS_JOINED_BY}{items}{parts[1]}"


_ASKED_NEXT = partial(_before, ". ")
_FOLLOWED = ". Following the given patterns "

LAMP_TASKS = {
    task.name: task
    for task in (
        LampTask(
            name="LaMP-1",
            instruction="Write the abstract of a paper with this title:",
            source="title",
            target="abstract",
            query=_references,
            document=("title", "abstract"),
            judging=Judging.LABEL,
            labels=_REFERENCES,
            prompt=PromptTemplate('"{title}"', "title", _into_title),
            file_name="LaMP_1",
        ),
        LampTask(
            name="LaMP-2",
            instruction=f"Choose the tag that fits a film best. The tags are: {', '.join(_TAGS)}. The film:",
            source="description",
            target="tag",
            query=partial(_after, "description:"),
            document=("description",),
            judging=Judging.LABEL,
            labels=_TAGS,
            prompt=PromptTemplate('the tag for the movie: "{description}" is "{tag}" ', "description", _ASKED_NEXT),
            file_name="LaMP_2",
        ),
        LampTask(
            name="LaMP-2-news",
            instruction=f"Choose an article's category. The categories are: {', '.join(_CATEGORIES)}. The article:",
            source="text",
            target="category",
            query=partial(_after, "article:"),
            document=("title", "text"),
            judging=Judging.LABEL,
            labels=_CATEGORIES,
            prompt=PromptTemplate('the category for the article: "{text}" is "{category}" ', "text", _ASKED_NEXT),
            file_name="LaMP_2",
        ),
        LampTask(
            name="LaMP-3",
            instruction="Say how many stars, from 1 to 5, come with this review:",
            source="text",
            target="score",
            query=partial(_after, "review:"),
            document=("text",),
            judging=Judging.RATING,
            labels=_STARS,
            prompt=PromptTemplate('{score} is the score for "{text}" ', "text", _ASKED_NEXT),
            file_name="LaMP_3",
        ),
        LampTask(
            name="LaMP-4",
            instruction="Write a headline for this article:",
            source="text",
            target="title",
            query=partial(_after, "article:"),
            document=("title", "text"),
            judging=Judging.TEXT,
            labels=(),
            prompt=PromptTemplate('"{title}" is the title for "{text}" ', "text", _ASKED_NEXT),
            file_name="LaMP_4",
        ),
        LampTask(
            name="LaMP-5",
            instruction="Write a title for the paper with this abstract:",
            source="abstract",
            target="title",
            query=partial(_after, ":"),
            document=("title", "abstract"),
            judging=Judging.TEXT,
            labels=(),
            prompt=PromptTemplate('"{title}" is the title for "{abstract}" ', "abstract", partial(_before, _FOLLOWED)),
            file_name="LaMP_5",
        ),
        LampTask(
            name="LaMP-6",
            instruction="Write a subject line for this e-mail:",
            source="text",
            target="title",
            query=partial(_after, ":"),
            document=("text",),
            judging=Judging.TEXT,
            labels=(),
            prompt=PromptTemplate('"{title}" is the title for "{text}" ', "text", _ASKED_NEXT),
            file_name="LaMP_6",
        ),
        LampTask(
            name="LaMP-7",
            instruction="Continue this tweet:",
            source="text",
            target=None,
            query=partial(_after, ":"),
            document=("text",),
            judging=Judging.TEXT,
            labels=(),
            prompt=PromptTemplate('"{text}" ', "text", partial(_before, " are written by a person" + _FOLLOWED)),
            file_name="LaMP_7",
        ),
    )
}

"""The table of LaMP's tasks (Salemi et al., 2024): what to search, show and ask, and how to judge answers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from edge_runtime.store.importing import LAMP_ALIASES
from edge_runtime.store.item import parse_lamp_date
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
# A tweet is split after a tenth to a quarter of its characters.
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
        cut: the field to truncate if an item exceeds its share.
        place: puts the joined items before or into the question.
    """

    item: str
    cut: str
    place: Callable[[str, str], str]

    def show(self, fields: Mapping[str, str]) -> str:
        """Return one item's text."""
        return self.item.format_map(fields)

    def assemble(self, items: Sequence[str], question: str) -> str:
        """Return the prompt.

        Args:
            items: texts from `show`, best first; if empty, the prompt is the question alone.
            question: the question's input.

        Raises:
            DataError: the question does not have the task's form.
        """
        return self.place(_ITEMS_JOINED_BY.join(items), question) if items else question


@dataclass(frozen=True, slots=True)
class LampTask:
    """One task.

    Attributes:
        name: "LaMP-1" to "LaMP-7", or "LaMP-2-news".
        instruction: the request that precedes the source's text when an adapter is trained.
        source: field of a profile item that an adapter learns to answer.
        target: field with the answer; None if the answer is the source's own continuation.
        query: extracts the query for the profile from a question's input, or raises a `DataError` that says what is
            missing.
        document: fields of a profile item to search.
        judging: how to judge answers.
        labels: the possible answers for a label or a rating; empty if the answer is a text.
        prompt: how to show profile items to the model.
        file_name: the task's name in LaMP's files; both variants of the second task share one.
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
        """Turn a profile item into a task and its answer.

        Args:
            item: the item's fields `source` and `target`.
            seed: together with the text, determines where the text is split.

        Returns:
            None if a text is empty, or too short to be split.
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
        """Return the text of a profile item to search.

        Args:
            item: the item's fields.
            use_date: append the item's date, if it has one.
        """
        text = " ".join(item[field] for field in self.document)
        return f"{text} date: {item['date']}" if use_date and "date" in item else text


def cut_text(text: str, seed: int) -> tuple[str, str]:
    """Split a text before a word, after 10 to 25 % of its characters.

    If several words qualify, the choice depends only on seed and text. If none does, the split is before the first word
    after that range, or else before the last word.

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
    """Return the day number of a date of the form Y-M-D, leading zeros optional, or of a year's first day.

    Raises:
        ValueError: the date has another form, or there is no such day.
    """
    return parse_lamp_date(date).toordinal()


def find_task(name: str) -> LampTask:
    """Return the task with this name; "lamp_5" also means LaMP-5, and "LaMP_2N" LaMP-2-news.

    Raises:
        SettingsError: there is no such task.
    """
    wanted = _plain(name)
    wanted = LAMP_ALIASES.get(wanted, wanted).lower()
    found = next((task for known, task in LAMP_TASKS.items() if known.lower() == wanted), None)
    if found is None:
        raise SettingsError(f"There is no task '{name}'. Use one of: {', '.join(LAMP_TASKS)}.")
    return found


def tasks_named(name: str) -> list[LampTask]:
    """Return the tasks that a name in a file can mean: "LaMP_2" means films or news, "LaMP_2N" only news."""
    wanted = _plain(name)
    if wanted in LAMP_ALIASES:
        return [LAMP_TASKS[LAMP_ALIASES[wanted]]]
    return [task for task in LAMP_TASKS.values() if wanted in (_plain(task.file_name), _plain(task.name))]


def _plain(name: str) -> str:
    return name.strip().replace("_", "-").lower()


def _after(marker: str, text: str) -> str:
    _, found, rest = text.partition(marker)
    if not found:
        raise DataError(f"the input has no '{marker}'")
    return rest.strip()


def _references(text: str) -> str:
    """Return both candidate references: the second and third quoted text."""
    quoted = _QUOTED.findall(text)
    if len(quoted) < 3:
        raise DataError('the input has fewer than three texts in "quotes"')
    return f"{quoted[1]} {quoted[2]}"


def _before(link: str, items: str, question: str) -> str:
    return f"{items}{link}{question}"


def _into_title(items: str, question: str) -> str:
    """Insert the user's titles where the question mentions the paper's title."""
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

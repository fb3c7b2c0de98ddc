"""Reads LaMP's questions: each belongs to one user and comes with that user's profile items."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from personalization.errors import DataError
from personalization.files.json_array import JsonArrayScan, read_element
from personalization.files.json_file import label_field, list_field, text_field
from personalization.lamp.tasks import LampTask


@dataclass(frozen=True, slots=True)
class ProfileItem:
    """Something that the user wrote, chose or read earlier.

    Attributes:
        id: id of the item within its profile.
        fields: the fields that the task uses, as text, and `date` if the item has one.
        bad_date: why the item's date can't be used, or "".
    """

    id: str
    fields: Mapping[str, str] = field(repr=False)
    bad_date: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        id: id of the question within its file.
        input: input of the model.
        profile: profile items in the file's order; in a merged file, the ranking's order.
        user: the user's id: `user_id`, or the question's id if the file has none.
        output: the gold answer, in a merged file.
    """

    id: str
    input: str = field(repr=False)
    profile: tuple[ProfileItem, ...] = field(repr=False)
    user: str
    output: str | None = field(default=None, repr=False)


class QuestionFile(Sequence[Question]):
    """The questions of a file, each read on access. Only their positions are in memory, so the file may be of any size.

    It can be sent to other processes that see the same file.
    """

    def __init__(self, path: Path | str, task: LampTask) -> None:
        """Scan a file.

        Args:
            path: `[{"id", "input", "profile": [{"id", ...}], "user_id"?, "output"?}]`; a user-based or time-based
                split, merged with a ranking or not.
            task: task of the questions.

        Raises:
            DataError: the file can't be read, has another format, or has two questions with the same id.
        """
        self.path = Path(path).absolute()
        self.task = task
        self._starts, self._lengths = array("q"), array("q")
        ids: dict[str, None] = {}
        scan = JsonArrayScan(self.path)
        for number, element in enumerate(scan):
            try:
                identity = label_field(element.body, "id", f"question {number + 1}")
            except DataError as error:
                raise self._wrong(error) from None
            if identity in ids:
                raise self._wrong(f"question '{identity}' comes twice")
            ids[identity] = None
            self._starts.append(element.start)
            self._lengths.append(element.length)
        self.ids = tuple(ids)
        self.sha256 = scan.sha256

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Question, ...]: ...
    def __getitem__(self, index: int | slice) -> Question | tuple[Question, ...]:
        """Read one question or several.

        Raises:
            DataError: a question does not have the task's form.
        """
        if isinstance(index, slice):
            return tuple(self[number] for number in range(len(self))[index])
        try:
            return _question(self.body(index), self.task)
        except DataError as error:
            raise self._wrong(error) from None

    def __iter__(self) -> Iterator[Question]:
        return (self[number] for number in range(len(self)))

    def body(self, index: int) -> dict[str, Any]:
        """Return a question's JSON from the file.

        Raises:
            DataError: the question is no longer there.
        """
        return read_element(self.path, self._starts[index], self._lengths[index])

    def query(self, question: Question) -> str:
        """Return the query to search the question's profile for.

        Raises:
            DataError: the question does not have the task's form.
        """
        try:
            return self.task.query(question.input)
        except DataError as error:
            raise self._wrong(f"question '{question.id}': {error}") from None

    def _wrong(self, what: object) -> DataError:
        return DataError(
            f"This is not a questions file of {self.task.name}: {self.path}, {what}. Check `task`, or correct the file."
        )


def _question(body: Mapping[str, Any], task: LampTask) -> Question:
    identity = label_field(body, "id", "a question")
    where = f"question '{identity}'"
    items = list_field(body, "profile", where)
    return Question(
        id=identity,
        input=text_field(body, "input", where),
        profile=tuple(_item(item, task, f"profile[{number}] of {where}") for number, item in enumerate(items)),
        user=identity if body.get("user_id") is None else label_field(body, "user_id", where),
        output=None if body.get("output") is None else label_field(body, "output", where),
    )


def _item(body: Mapping[str, Any], task: LampTask, where: str) -> ProfileItem:
    fields = {name: label_field(body, name, where) for name in task.fields}
    bad_date = ""
    if body.get("date") is not None:
        try:
            fields["date"] = label_field(body, "date", where)
        except DataError as error:
            bad_date = str(error)  # matters only where dates are used
    return ProfileItem(label_field(body, "id", where), fields, bad_date)

"""Splits LaMP's questions into parts as the benchmark does: by users, or by time within each user."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from edge_runtime.files.whole_file import whole_file
from personalization.errors import DataError
from personalization.files.json_array import JsonArrayScan
from personalization.files.json_file import label_field, list_field
from personalization.lamp.outputs import read_outputs
from personalization.lamp.tasks import day_number
from personalization.users.parts import parts_by_share


class SplitBy(StrEnum):
    """What parts must not share.

    Attributes:
        USER: users; no part has questions of another part's users.
        TIME: time; each user's later questions come into later parts.
    """

    USER = "user"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a question stands: whose it is, and the day up to which its profile goes."""

    id: str
    user: str
    day: int


def split(
    questions: Path,
    out: Path,
    shares: Mapping[str, float],
    by: SplitBy,
    *,
    outputs: Path | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Write `PART_questions.json` of each part, and `PART_outputs.json` where there are outputs.

    Questions are read and written one at a time, in their order, so any number will do.

    Args:
        questions: of any task.
        out: directory to write to; each file appears as a whole or not at all.
        shares: by part, earliest first, what of the users (by user) or of each user's questions (by time) it gets;
            above 0.
        by: what parts must not share. When a question was asked is taken from its profile, whose newest item is the
            last that the user wrote before.
        outputs: gold outputs of the questions.
        seed: of the users' order.

    Returns:
        Questions of each part.

    Raises:
        DataError: a file is not of its form, or lacks what is needed.
        WriteError: a part can't be written.
    """
    places = _places(questions, dated=by is SplitBy.TIME)
    part_of = _by_user(places, shares, seed) if by is SplitBy.USER else _by_time(places, shares)
    found = None if outputs is None else read_outputs(outputs)
    if found is not None and found.by_id.keys() != part_of.keys():
        raise DataError(f"The outputs are of other questions than {questions}: {outputs}. Give those of its questions.")
    counts = dict.fromkeys(shares, 0)
    with ExitStack() as stack:
        files = {part: stack.enter_context(whole_file(out / f"{part}_questions.json")) for part in shares}
        for element in JsonArrayScan(questions):
            part = part_of[label_field(element.body, "id", "a question")]
            files[part].write(("[\n" if not counts[part] else ",\n") + json.dumps(element.body))
            counts[part] += 1
        for part, file in files.items():
            file.write("\n]\n" if counts[part] else "[]\n")
    if found is not None:
        for part in shares:
            golds = [{"id": name, "output": text} for name, text in found.by_id.items() if part_of[name] == part]
            with whole_file(out / f"{part}_outputs.json") as file:
                json.dump({"task": found.task, "golds": golds}, file, ensure_ascii=False, indent=1)
                file.write("\n")
    return counts


def _places(questions: Path, *, dated: bool) -> list[_Place]:
    places: dict[str, _Place] = {}
    for number, element in enumerate(JsonArrayScan(questions), start=1):
        body = element.body
        try:
            identity = label_field(body, "id", f"question {number}")
            where = f"question '{identity}'"
            if identity in places:
                raise DataError(f"{where} comes twice")
            user = identity if body.get("user_id") is None else label_field(body, "user_id", where)
            places[identity] = _Place(identity, user, _newest(body, where) if dated else 0)
        except DataError as error:
            raise DataError(f"The questions can't be split: {questions}, {error}.") from None
    return list(places.values())


def _newest(body: Mapping[str, Any], where: str) -> int:
    """The day of a profile's newest item."""
    days = [0]
    for number, item in enumerate(list_field(body, "profile", where)):
        at = f"profile[{number}] of {where}"
        try:
            days.append(day_number(label_field(item, "date", at)))
        except ValueError:
            raise DataError(f"'date' of {at} is not of the form Y-M-D") from None
    return max(days)


def _by_user(places: Sequence[_Place], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    users = list(dict.fromkeys(place.user for place in places))
    random.Random(seed).shuffle(users)
    part_of_user = dict(zip(users, parts_by_share(len(users), shares), strict=True))
    return {place.id: part_of_user[place.user] for place in places}


def _by_time(places: Sequence[_Place], shares: Mapping[str, float]) -> dict[str, str]:
    asked: dict[str, list[_Place]] = {}
    for place in places:
        asked.setdefault(place.user, []).append(place)
    part_of: dict[str, str] = {}
    for own in asked.values():
        ordered = sorted(own, key=lambda place: place.day)
        part_of |= {place.id: part for place, part in zip(ordered, parts_by_share(len(own), shares), strict=True)}
    return part_of

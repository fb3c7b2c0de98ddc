"""Merges LaMP's questions with their gold outputs and a ranking of their profiles, in one pass over the questions."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.files.whole_file import whole_file
from personalization.errors import DataError
from personalization.files.json_array import JsonArrayScan
from personalization.files.json_file import label_field, list_field
from personalization.lamp.outputs import read_outputs
from personalization.lamp.ranking import read_ranking


def merge(questions: Path, out: Path, *, ranking: Path | None, outputs: Path | None) -> int:
    """Write the questions with profiles in the ranking's order and gold outputs; all else stays as it is.

    Questions are read and written one at a time, so any number will do.

    Args:
        questions: of any task.
        out: the file to write, at once or not at all.
        ranking: of their profiles; None leaves them in their order.
        outputs: gold outputs; None where there are none, as for a test split.

    Returns:
        How many questions there are.

    Raises:
        DataError: a file is not of its form, or the files are not of the same questions and items.
        WriteError: the result can't be written.
    """
    orders = None if ranking is None else read_ranking(ranking)
    golds = None if outputs is None else dict(read_outputs(outputs).by_id)
    count = 0
    with whole_file(out) as file:
        for count, element in enumerate(JsonArrayScan(questions), start=1):
            body = element.body
            try:
                identity = label_field(body, "id", f"question {count}")
                if orders is not None:
                    order = _taken(orders, identity, ranking)
                    body["profile"] = _ordered(list_field(body, "profile", f"question '{identity}'"), order, identity)
                if golds is not None:
                    body["output"] = _taken(golds, identity, outputs)
            except DataError as error:
                raise DataError(f"The questions can't be merged: {questions}, {error}.") from None
            file.write(("[\n" if count == 1 else ",\n") + json.dumps(body))
        file.write("\n]\n" if count else "[]\n")
        for left, path in ((orders, ranking), (golds, outputs)):
            if left:
                raise DataError(
                    f"{path} is of other questions than {questions}: it has {len(left)} more, the first is "
                    f"'{next(iter(left))}'. Give the file that belongs to the questions."
                )
    return count


def _taken(left: dict[str, Any], identity: str, path: Path | None) -> Any:
    """What a file has of a question, which no other may have."""
    if identity not in left:
        raise DataError(f"question '{identity}' comes twice, or is not in {path}")
    return left.pop(identity)


def _ordered(profile: Sequence[Mapping[str, Any]], order: Sequence[str], question: str) -> list[Mapping[str, Any]]:
    """Items in the ranking's order; those that share an id stay in their own."""
    items: dict[str, deque[Mapping[str, Any]]] = {}
    for number, item in enumerate(profile):
        items.setdefault(label_field(item, "id", f"profile[{number}] of question '{question}'"), deque()).append(item)
    try:
        ordered = [items[identity].popleft() for identity in order]
    except (KeyError, IndexError):
        ordered = []
    if len(ordered) != len(profile):
        raise DataError(f"the ranking has other items than the profile of question '{question}'")
    return ordered

"""LaMP's answers: gold outputs and predictions, which have the same form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.files.whole_file import whole_file
from personalization.errors import DataError
from personalization.files.json_file import label_field, list_field, read_json
from personalization.lamp.tasks import LampTask


@dataclass(frozen=True, slots=True)
class Outputs:
    """Answers of one file.

    Attributes:
        task: what the file calls its task, "LaMP_5"; "" where it does not.
        by_id: question to answer, in the file's order.
    """

    task: str
    by_id: Mapping[str, str] = field(repr=False)


def read_outputs(path: Path | str) -> Outputs:
    """Read `{"task": "LaMP_5", "golds": [{"id", "output"}]}`.

    Raises:
        DataError: the file is not of this form, or a question has two answers.
    """
    return parse_outputs(read_json(path), str(path))


def parse_outputs(body: Any, where: str) -> Outputs:
    """Take outputs out of a file's JSON.

    Args:
        body: the JSON.
        where: what to call the file in messages.

    Raises:
        DataError: it is not of the form, or a question has two answers.
    """
    try:
        if not isinstance(body, dict):
            raise DataError("it must be an object with 'golds'")
        found: dict[str, str] = {}
        for index, gold in enumerate(list_field(body, "golds", "it")):
            identity = label_field(gold, "id", f"golds[{index}]")
            if identity in found:
                raise DataError(f"question '{identity}' comes twice in 'golds'")
            found[identity] = label_field(gold, "output", f"golds[{index}]")
        return Outputs("" if "task" not in body else label_field(body, "task", "it"), found)
    except DataError as error:
        raise DataError(f"This is not an outputs file of LaMP: {where}, {error}. Correct the file.") from None


def write_outputs(path: Path, task: LampTask, by_id: Mapping[str, str]) -> None:
    """Write answers in LaMP's form, at once or not at all.

    Raises:
        WriteError: they can't be written.
    """
    golds = [{"id": identity, "output": output} for identity, output in by_id.items()]
    with whole_file(path) as file:
        json.dump({"task": task.file_name, "golds": golds}, file, ensure_ascii=False, indent=1)
        file.write("\n")

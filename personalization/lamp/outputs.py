"""Reads and writes LaMP's answers: gold outputs and predictions, which share one format."""

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
    """The answers of one file.

    Attributes:
        task: the file's name for its task, such as "LaMP_5"; "" if it has none.
        by_id: answer by question id, in the file's order.
    """

    task: str
    by_id: Mapping[str, str] = field(repr=False)


def read_outputs(path: Path | str) -> Outputs:
    """Read `{"task": "LaMP_5", "golds": [{"id", "output"}]}`.

    Raises:
        DataError: the file has another format, or a question has two answers.
    """
    return parse_outputs(read_json(path), str(path))


def parse_outputs(body: Any, where: str) -> Outputs:
    """Parse outputs from a file's JSON.

    Args:
        body: the JSON.
        where: the file's name in messages.

    Raises:
        DataError: the JSON has another format, or a question has two answers.
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
    """Write answers in LaMP's format, atomically.

    Raises:
        WriteError: the file can't be written.
    """
    golds = [{"id": identity, "output": output} for identity, output in by_id.items()]
    with whole_file(path) as file:
        json.dump({"task": task.file_name, "golds": golds}, file, ensure_ascii=False, indent=1)
        file.write("\n")

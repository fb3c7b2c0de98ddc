"""Reads and writes what a language model's answers were worth: for profile items shown alone, or for a retriever."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.files.whole_file import whole_file
from personalization.errors import DataError, SettingsError
from personalization.files.json_file import read_json, text_field
from personalization.lamp.metrics import metrics_of
from personalization.lamp.tasks import LampTask

SCORES_NAME = "scores.json"
_ERRORS = ("mae", "rmse")


def gain_name(task: LampTask) -> str:
    """What the gain of an answer is called in feedback: its main metric, if that is one of which more is better."""
    main = next(iter(metrics_of(task).values()))
    return "gain" if main.lower_is_better else main.name


def write_item_feedback(path: Path, task: LampTask, gains: Mapping[str, float]) -> None:
    """Write feedback on profile items, at once or not at all.

    Args:
        path: of the file.
        task: whose questions they belong to.
        gains: by `item_key`, what the item was worth.

    Raises:
        WriteError: it can't be written.
    """
    name = gain_name(task)
    _write(path, {key: {name: gain} for key, gain in gains.items()})


def read_item_feedback(path: Path, metric: str | None = None) -> dict[str, float]:
    """Read `{"<question>-<item>": {metric: value}}`.

    Args:
        path: of the file.
        metric: which value; None: the only one there is.

    Returns:
        By `item_key`, what the item was worth; higher is better.

    Raises:
        DataError: the file is not of this form.
        SettingsError: there is no such metric, or several and none is named.
    """
    body = _object(read_json(path), f"feedback on profile items: {path}")
    name = _metric(body, metric, path)
    return {key: _value(values, name, f"'{key}'", path) for key, values in body.items()}


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to a question with what a retriever found: its prompt, what it wrote, what that was worth."""

    prompt: str = field(repr=False)
    output: str = field(repr=False)
    gain: float


def write_retriever_feedback(folder: Path, task: LampTask, answers: Mapping[str, Answer]) -> Path:
    """Write a retriever's `scores.json`, at once or not at all.

    Args:
        folder: of the retriever.
        task: whose questions they are.
        answers: by the question's id.

    Returns:
        The file's path.

    Raises:
        WriteError: it can't be written.
    """
    name, path = gain_name(task), folder / SCORES_NAME
    entries = {
        identity: {"metric": {name: answer.gain}, "output": answer.output, "input": answer.prompt}
        for identity, answer in answers.items()
    }
    _write(path, entries)
    return path


def read_retriever_feedback(folder: Path, metric: str | None = None) -> tuple[str, dict[str, Answer]]:
    """Read a folder's `scores.json`: `{question: {"metric": {name: value}, "output", "input"}}`.

    Args:
        folder: of one retriever.
        metric: which value; None: the only one there is.

    Returns:
        The metric's name, and each question's answer.

    Raises:
        DataError: the file is not of this form.
        SettingsError: there is no such metric, or several and none is named.
    """
    path = folder / SCORES_NAME
    body = _object(read_json(path), f"feedback on a retriever: {path}")
    values: dict[str, Any] = {}
    for identity, entry in body.items():
        if not isinstance(entry, dict):
            raise _wrong(path, f"question '{identity}' must be an object")
        values[identity] = entry.get("metric")
    name = _metric(values, metric, path)
    answers = {}
    for identity, entry in body.items():
        where = f"question '{identity}'"
        try:
            prompt, output = text_field(entry, "input", where), text_field(entry, "output", where)
        except DataError as error:
            raise _wrong(path, str(error)) from None
        answers[identity] = Answer(prompt, output, _value(values[identity], name, f"'metric' of {where}", path))
    return name, answers


def _write(path: Path, body: Mapping[str, Any]) -> None:
    with whole_file(path) as file:
        json.dump(body, file, ensure_ascii=False, indent=1)
        file.write("\n")


def _object(body: Any, what: str) -> dict[str, Any]:
    if not isinstance(body, dict) or not body:
        raise DataError(f"This is no {what}. It must be an object with an entry or more.")
    return body


def _metric(entries: Mapping[str, Any], wanted: str | None, path: Path) -> str:
    names = sorted({str(name) for values in entries.values() if isinstance(values, dict) for name in values})
    if wanted is None and len(names) == 1:
        return _gaining(names[0], path)
    if not names:
        raise _wrong(path, "there is no metric in it")
    if wanted not in names:
        which = "several metrics" if wanted is None else f"no metric '{wanted}'"
        raise SettingsError(f"The feedback has {which}: {path}. Choose one with --metric: {', '.join(names)}.")
    return _gaining(wanted, path)


def _gaining(metric: str, path: Path) -> str:
    if metric in _ERRORS:
        raise SettingsError(
            f"The feedback's metric {metric} is an error, of which less is better: {path}. Make it again with "
            "`ropg feedback` or `rspg feedback`, which write gains."
        )
    return metric


def _value(values: Any, metric: str, where: str, path: Path) -> float:
    value = values.get(metric) if isinstance(values, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(path, f"'{metric}' of {where} must be a finite number")
    return float(value)


def _wrong(path: Path, what: str) -> DataError:
    return DataError(f"The feedback is not of LaMP's form: {path}, {what}. Make it again.")

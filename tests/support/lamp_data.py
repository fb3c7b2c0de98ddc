"""Small data sets in the form of each of LaMP's tasks, always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from personalization.lamp.tasks import LAMP_TASKS
from tests.support.personal_data import text, write_json

INPUTS = {
    "LaMP-1": 'An author wrote a paper with the title "{0}". Which one do they cite? [1]: "{1}" [2]: "{2}"',
    "LaMP-2": "Which tag fits this movie? description: {0}",
    "LaMP-2-news": "Which category fits this article? article: {0}",
    "LaMP-3": "How many stars does this review give, 1 to 5? review: {0}",
    "LaMP-4": "Write a headline for the following article: {0}",
    "LaMP-5": "Write a title for the following abstract of a paper: {0}",
    "LaMP-6": "Write a subject for the following e-mail: {0}",
    "LaMP-7": "Paraphrase the following tweet: {0}",
}


def questions(task: str, count: int = 4, items: int = 4) -> list[dict[str, Any]]:
    """Questions of a task, each of another user."""
    return [_question(task, number, items) for number in range(count)]


def golds(task: str, count: int = 4) -> dict[str, Any]:
    """Gold outputs of those questions."""
    labels = LAMP_TASKS[task].labels
    outputs = [labels[number % len(labels)] if labels else text((task, number, "gold"), 5) for number in range(count)]
    rows = [{"id": str(number), "output": output} for number, output in enumerate(outputs)]
    return {"task": LAMP_TASKS[task].file_name, "golds": rows}


def merged(task: str, count: int = 4, items: int = 4) -> list[dict[str, Any]]:
    """Questions with their gold outputs, in the order of the file."""
    outputs = [gold["output"] for gold in golds(task, count)["golds"]]
    return [body | {"output": output} for body, output in zip(questions(task, count, items), outputs, strict=True)]


def merged_file(directory: Path, task: str, count: int = 4, items: int = 4) -> Path:
    return write_json(directory / f"{task}.json", merged(task, count, items))


def _question(task: str, number: int, items: int) -> dict[str, Any]:
    words = [text((task, number, part), 6) for part in range(3)]
    profile = [_item(task, number, index) for index in range(items)]
    return {"id": str(number), "user_id": f"user {number}", "input": INPUTS[task].format(*words), "profile": profile}


def _item(task: str, number: int, index: int) -> dict[str, Any]:
    known = LAMP_TASKS[task]
    fields = {name: text((task, number, index, name), 5 + 3 * index) for name in known.fields}
    if known.labels and known.target is not None and known.name != "LaMP-1":
        fields[known.target] = known.labels[(number + index) % len(known.labels)]
    return {"id": f"{number}{index}", "date": f"2020-01-{index + 1:02}", **fields}

"""Scores predictions against gold outputs, for one task or for all tasks in two zip files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from personalization.errors import DataError, SettingsError
from personalization.files.reading import reading
from personalization.files.zip_member import ZIP_DAMAGE, read_member
from personalization.lamp.metrics import Array, metrics_of, sample_scores, statistics
from personalization.lamp.outputs import Outputs, parse_outputs
from personalization.lamp.tasks import Judging, LampTask, tasks_named
from personalization.measures.significance import Comparison, compare_systems

_LARGEST_MEMBER = 1 << 30
"""Maximum size in bytes of a file within a zip; a task's gold outputs take a hundredth of it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Scored predictions of one task.

    Attributes:
        task: task of the predictions.
        ids: ids of the questions, in the order of the golds.
        statistics: (questions, m) float64, from `personalization.lamp.metrics.statistics`.
        samples: result of `personalization.lamp.metrics.sample_scores` for each question.
    """

    task: LampTask
    ids: tuple[str, ...] = field(repr=False)
    statistics: Array = field(repr=False)
    samples: tuple[Mapping[str, float], ...] = field(repr=False)

    @property
    def scores(self) -> dict[str, float]:
        """Scores over all answers, by the metric's name."""
        means = self.statistics.mean(axis=0)
        return {name: float(metric.score(means)) for name, metric in metrics_of(self.task).items()}

    def document(self) -> dict[str, Any]:
        """Return the scores of every answer as JSON, by the question's id."""
        return {identity: dict(scores) for identity, scores in zip(self.ids, self.samples, strict=True)}


def score(task: LampTask, golds: Outputs, predictions: Outputs, *, where: str) -> Scored:
    """Score predictions.

    Args:
        task: task of the predictions.
        golds: the gold outputs.
        predictions: an answer to each question of the golds, and no other.
        where: the predictions' name in messages.

    Raises:
        DataError: the questions differ, there are none, or a gold is not an answer of the task.
    """
    _require_same(golds.by_id.keys(), predictions.by_id.keys(), where)
    pairs = [(gold, predictions.by_id[identity]) for identity, gold in golds.by_id.items()]
    try:
        found = np.array([statistics(task, *pair) for pair in pairs])
        samples = tuple(sample_scores(task, *pair) for pair in pairs)
    except DataError as error:
        raise DataError(f"The gold outputs can't be used: {error}. Check `task` and the file.") from None
    return Scored(task, tuple(golds.by_id), found, samples)


def compare_scored(system: Scored, baseline: Scored, *, seed: int = 0) -> dict[str, Comparison]:
    """Compare two systems' answers to the same questions by each of the task's metrics."""
    metrics: dict[str, Callable[[Array], Array]] = {
        name: metric.score for name, metric in metrics_of(system.task).items()
    }
    return compare_systems(system.statistics, baseline.statistics, metrics, seed=seed)


def task_of(golds: Outputs, wanted: LampTask | None, where: str) -> LampTask:
    """Return the task that gold outputs belong to.

    Args:
        golds: the gold outputs.
        wanted: the task that the user names; None to use the file's. "LaMP_2" is both variants of the second task,
            whose labels tell them apart; "LaMP_2M" is films and "LaMP_2N" news.
        where: the file's name in messages.

    Raises:
        SettingsError: neither names a task, or the two differ.
    """
    known = tasks_named(golds.task)
    if wanted is not None:
        if golds.task.strip() and wanted not in known:
            raise SettingsError(f"The gold outputs are of {golds.task}, not of {wanted.name}: {where}. Check `task`.")
        return wanted
    if not known:
        raise SettingsError(f"The gold outputs name no task of LaMP: {where}. Set `task`.")
    answers = {gold.strip() for gold in golds.by_id.values()}
    return next((task for task in known if task.judging is Judging.LABEL and answers <= set(task.labels)), known[0])


def read_zip(path: Path) -> dict[str, Outputs]:
    """Read the outputs files (`*.json`) anywhere in a zip file, without extracting them.

    Returns:
        Outputs by the task that each file names, such as "LaMP_5"; "LaMP_2M" and "LaMP_2N" if both are there.

    Raises:
        DataError: it is not a zip file or is damaged, a file in it is not in LaMP's format, or two are of one task.
    """
    found: dict[str, list[tuple[Outputs, str]]] = {}
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".json") or member.filename.startswith("__MACOSX/"):
                    continue
                where = f"{member.filename} in {path}"
                outputs = parse_outputs(_member(archive, member, where), where)
                if not outputs.task:
                    raise DataError(f'The file names no task: {where}. Give it one, such as "task": "LaMP_5".')
                meant = tasks_named(outputs.task)
                task = meant[0].file_name if meant else outputs.task.replace("-", "_")
                found.setdefault(task, []).append((outputs, member.filename))
    except ZIP_DAMAGE as error:
        raise DataError(f"The zip file can't be read: {path} ({error}). Make it again, without a password.") from None
    if not found:
        raise DataError(f"There is no outputs file (*.json) in the zip file: {path}.")
    return dict(part for task, files in found.items() for part in _told_apart(task, files, path))


def _told_apart(task: str, files: Sequence[tuple[Outputs, str]], path: Path) -> Iterator[tuple[str, Outputs]]:
    """Yield the files of one name; two are right only if their own names tell the variants of the task apart."""
    if len(files) == 1:
        yield task, files[0][0]
        return
    seen: set[str] = set()
    for outputs, _ in files:
        variants = [meant.name for meant in tasks_named(outputs.task)]
        if len(variants) != 1 or variants[0] in seen:
            raise DataError(f"Two files are of {task}: {path}, the second is {files[1][1]}.")
        seen.add(variants[0])
        yield variants[0].replace("-", "_"), outputs


def pair_tasks(golds: Mapping[str, Outputs], predictions: Mapping[str, Outputs], where: str) -> None:
    """Check that two zip files contain the same tasks.

    Raises:
        DataError: the tasks differ.
    """
    missing, unknown = sorted(golds.keys() - predictions.keys()), sorted(predictions.keys() - golds.keys())
    if missing or unknown:
        parts = [f"without predictions: {', '.join(missing)}"] if missing else []
        parts += [f"without gold outputs: {', '.join(unknown)}"] if unknown else []
        raise DataError(f"The predictions are of other tasks than the gold outputs: {where} ({'; '.join(parts)}).")
    for task, outputs in golds.items():
        check_same_task(outputs, predictions[task], where)


def check_same_task(golds: Outputs, predictions: Outputs, where: str) -> None:
    """Check that predictions do not name another task than the gold outputs; a file may name none.

    Raises:
        DataError: they do.
    """
    expected, found = tasks_named(golds.task), tasks_named(predictions.task)
    if expected and found and not any(task in expected for task in found):
        raise DataError(
            f"The predictions are of {predictions.task}, the gold outputs of {golds.task}: {where}. Check both files."
        )


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> Any:
    content = read_member(archive, member, _LARGEST_MEMBER, where)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise DataError(f"The file is not valid JSON: {where}. Make it again.") from None


def _require_same(golds: Collection[str], predictions: Collection[str], where: str) -> None:
    if not golds:
        raise DataError("There are no gold outputs to score against. Check `golds`.")
    missing = [identity for identity in golds if identity not in predictions]
    unknown = [identity for identity in predictions if identity not in golds]
    if missing or unknown:
        parts = [f"{len(missing)} are missing, such as {_some(missing)}"] if missing else []
        parts += [f"{len(unknown)} are not asked, such as {_some(unknown)}"] if unknown else []
        raise DataError(
            f"The predictions are of other questions than the gold outputs: {where} ({'; '.join(parts)}). "
            "Give an answer to each question of the gold outputs, and no other."
        )


def _some(ids: list[str]) -> str:
    return ", ".join(f"'{identity}'" for identity in ids[:3])

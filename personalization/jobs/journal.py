"""Saves the results of a long run's jobs, one per line, so that a killed run can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edge_runtime.files.staged_directory import write_error
from edge_runtime.files.whole_file import whole_file
from personalization.errors import DataError, PersonalizationError, SettingsError
from personalization.jobs.backlog import JobError, Worker
from personalization.jobs.run_jobs import run_jobs
from personalization.jobs.runners import Runner
from personalization.jobs.shard import Shard

FORMAT = "cogenesis-journal/1"

J = TypeVar("J")


class Journal:
    """Results of a run's jobs by job number, as JSON; each is appended and synced before the next job is awaited."""

    def __init__(self, path: Path, run: Mapping[str, Any], *, force: bool = False) -> None:
        """Open a run's journal, or create one.

        Args:
            path: path of the file; its directory is created.
            run: everything that the results depend on, as JSON.
            force: start over if the journal belongs to another run.

        Raises:
            SettingsError: the journal belongs to another run, and `force` is not set.
            DataError: the file is no journal, or it is damaged.
            WriteError: the journal can't be written.
        """
        self.path = path
        self._head = {"format": FORMAT, "run": _as_read(run)}
        self.results: dict[int, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            there = _parse(path, path.read_bytes() if path.exists() else b"")
            if there is not None and there.run == self._head["run"]:
                self.results = there.results
            elif there is not None and not force:
                raise SettingsError(
                    f"There is a run with other settings or data here: {path} ({_changes(there.run, run)}). Choose "
                    "another `out`, or set `force` to start over."
                )
            self._write_all()
            self._file = path.open("ab")
        except OSError as error:
            raise write_error(error, path) from None

    def add(self, job: int, result: Any) -> None:
        """Append a job's result.

        Raises:
            WriteError: the result can't be written; earlier results stay.
        """
        try:
            self._file.write(_line([job, result]).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(error, self.path) from None
        self.results[job] = _as_read(result)

    def close(self) -> None:
        """Close the file and sort its lines by job, so that it does not depend on the order of execution."""
        self._file.close()
        self._write_all()

    def _write_all(self) -> None:
        with whole_file(self.path) as file:
            file.write(_line(self._head))
            file.writelines(_line([job, self.results[job]]) for job in sorted(self.results))


def read_journal(path: Path, run: Mapping[str, Any]) -> dict[int, Any]:
    """Return another process's results of a run so far, by job number; empty if the journal is of another run.

    Raises:
        DataError: the file is no journal, or it is damaged.
    """
    try:
        found = _parse(path, path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"The journal can't be read: {path} ({error.strerror}). Check who may read it.") from None
    return found.results if found and found.run == _as_read(run) else {}


def run_remaining(
    make_worker: Callable[[], Worker[J, Any]],
    jobs: Mapping[int, J],
    runner: Runner,
    journal: Journal,
    report: Callable[[int, int], None],
) -> None:
    """Do the jobs without a result in the journal, and record their results.

    Args:
        make_worker: see `personalization.jobs.run_jobs.run_jobs`; results are JSON.
        jobs: jobs by number.
        runner: where to run.
        journal: journal of this run; it is always closed at the end.
        report: called after each job with the number of finished jobs, including earlier runs, and of all jobs.

    Raises:
        PersonalizationError: some jobs failed; all others are done and recorded.
    """
    todo = [number for number in jobs if number not in journal.results]
    failed: list[JobError] = []
    try:
        with run_jobs(make_worker, [jobs[number] for number in todo], runner) as outcomes:
            for done, (index, outcome) in enumerate(outcomes, start=len(jobs) - len(todo) + 1):
                if isinstance(outcome, JobError):
                    failed.append(outcome)
                else:
                    journal.add(todo[index], outcome)
                report(done, len(jobs))
    finally:
        journal.close()
    if failed:
        first = failed[0]
        why = first.message if first.final else f"{first.kind}: {first.message}"
        raise PersonalizationError(
            f"{len(failed)} of {len(todo)} parts of the run failed: {why} What is done is kept: run the command again."
        )


def run_shard(
    make_worker: Callable[[], Worker[J, Any]],
    jobs: Mapping[int, J],
    runner: Runner,
    directory: Path,
    stem: str,
    run: Mapping[str, Any],
    *,
    shard: Shard,
    force: bool,
    report: Callable[[int, int], None],
) -> dict[int, Any] | None:
    """Do a shard's part of a run's jobs, and put it together with what other shards have noted there.

    Args:
        make_worker: see `run_remaining`.
        jobs: of all shards, by number.
        runner: where to run.
        directory: of the journals.
        stem: first part of the journals' names.
        run: everything that the results depend on, as JSON.
        shard: which part to do.
        force: begin anew where the journal is another run's.
        report: see `run_remaining`.

    Returns:
        The results of all jobs, by number; None where other shards' are not here yet.

    Raises:
        SettingsError: the journal is of another run, and `force` is not set.
        PersonalizationError: some jobs failed; all others are done and noted.
    """
    mine = {number: job for number, job in jobs.items() if number % shard.count == shard.index - 1}
    journal = Journal(directory / shard.file_name(stem, "jsonl"), run, force=force)
    run_remaining(make_worker, mine, runner, journal, report)
    results = dict(journal.results)
    for index in range(1, shard.count + 1):
        if index != shard.index:
            results |= read_journal(directory / Shard(index, shard.count).file_name(stem, "jsonl"), run)
    return results if len(results) == len(jobs) else None


@dataclass(frozen=True, slots=True)
class _Noted:
    """The content of a journal: its run, and the results by job number."""

    run: dict[str, Any]
    results: dict[int, Any]


def _parse(path: Path, content: bytes) -> _Noted | None:
    """Parse a journal; None if even its first line is incomplete."""
    # An incomplete last line is from a killed run; that job is done again.
    whole = content[: content.rfind(b"\n") + 1]
    if not whole:
        return None
    try:
        head, *lines = [json.loads(line) for line in whole.splitlines()]
        if head["format"] != FORMAT:
            raise ValueError
        return _Noted(dict(head["run"]), {int(job): result for job, result in lines})
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(
            f"This is no journal of a run, or it is damaged: {path}. Choose another `out`, or delete the file."
        ) from None


def _as_read(body: Any) -> Any:
    """Convert to what a later run will read, so that both compare equal."""
    return json.loads(json.dumps(body))


def _line(body: Any) -> str:
    return json.dumps(body, ensure_ascii=True) + "\n"


def _changes(then: dict[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the differences between two runs."""
    now = _as_read(now)
    names = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    return ", ".join(f"{name} {then.get(name)}, now {now.get(name)}" for name in names)

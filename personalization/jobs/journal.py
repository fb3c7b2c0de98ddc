"""Keeps what the jobs of a long run gave, a line each, so that a run that was killed goes on where it was."""

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
from personalization.jobs.run import run_jobs
from personalization.jobs.runners import Runner
from personalization.jobs.shard import Shard

FORMAT = "cogenesis-journal/1"

J = TypeVar("J")


class Journal:
    """Results of a run's jobs by the job's number: JSON, appended and on the disk before the next job is waited for."""

    def __init__(self, path: Path, run: Mapping[str, Any], *, force: bool = False) -> None:
        """Open a run's journal, or begin one.

        Args:
            path: of the file; its directory is made.
            run: everything that the results depend on, as JSON.
            force: begin anew where the journal is another run's.

        Raises:
            SettingsError: it is the journal of another run, and `force` is not set.
            DataError: something else is in its place.
            WriteError: it can't be written.
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
                    "another --out, or pass --force to begin anew."
                )
            self._write_all()
            self._file = path.open("ab")
        except OSError as error:
            raise write_error(error, path) from None

    def add(self, job: int, result: Any) -> None:
        """Note what a job gave.

        Raises:
            WriteError: it can't be written; all before it stays.
        """
        try:
            self._file.write(_line([job, result]).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(error, self.path) from None
        self.results[job] = _as_read(result)

    def close(self) -> None:
        """End writing; lines are put in the order of the jobs, so that the file tells nothing of how it was made."""
        self._file.close()
        self._write_all()

    def _write_all(self) -> None:
        with whole_file(self.path) as file:
            file.write(_line(self._head))
            file.writelines(_line([job, self.results[job]]) for job in sorted(self.results))


def read_journal(path: Path, run: Mapping[str, Any]) -> dict[int, Any]:
    """What another process has noted of a run so far, by the job's number; nothing where it is another run's.

    Raises:
        DataError: something else is in the journal's place.
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
    """Do the jobs that the journal has no result of, and note what they give.

    Args:
        make_worker: see `personalization.jobs.run.run_jobs`; results are JSON.
        jobs: by number.
        runner: where to run.
        journal: of this run; it is closed in the end, whatever comes.
        report: called after each job with how many are done, those of earlier runs included, and how many there are.

    Raises:
        PersonalizationError: some jobs failed; all others are done and noted.
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
    """What a journal says: of which run it is, and results by the job's number."""

    run: dict[str, Any]
    results: dict[int, Any]


def _parse(path: Path, content: bytes) -> _Noted | None:
    """Read a journal; None where not even its first line is whole."""
    # A line that was cut when the run was killed is of a job that has to be done again.
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
            f"This is no journal of a run, or it is damaged: {path}. Choose another --out, or delete the file."
        ) from None


def _as_read(body: Any) -> Any:
    """As a later run will read it, so that both see the same."""
    return json.loads(json.dumps(body))


def _line(body: Any) -> str:
    return json.dumps(body, ensure_ascii=True) + "\n"


def _changes(then: dict[str, Any], now: Mapping[str, Any]) -> str:
    """In words, what is not as it was."""
    now = _as_read(now)
    names = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    return ", ".join(f"{name} {then.get(name)}, now {now.get(name)}" for name in names)

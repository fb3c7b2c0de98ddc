"""A run's journal: what was done is not done again, wherever the run was killed, and leaves no trace in the file."""

from __future__ import annotations

import json
import os

import pytest

from edge_runtime.errors import WriteError
from personalization.errors import DataError, PersonalizationError, SettingsError
from personalization.jobs.journal import Journal, read_journal, run_remaining
from personalization.jobs.runners import LocalRunner

RUN = {"task": "LaMP-5", "questions": "abc", "lengths": (1, 2)}
JOBS = {number: number for number in range(6)}


class Squares:
    """A worker that notes what it was asked, and fails where it is told to."""

    def __init__(self, asked=None, failing=()):
        self.asked = [] if asked is None else asked
        self.failing = failing

    def __call__(self, job):
        self.asked.append(job)
        if job in self.failing:
            raise DataError(f"Job {job} is wrong.")
        return {"square": job * job}


def run(path, worker, jobs=JOBS, **options):
    reported = []
    journal = Journal(path, RUN, **options)
    run_remaining(lambda: worker, jobs, LocalRunner(), journal, lambda *counts: reported.append(counts))
    return journal.results, reported


@pytest.fixture
def finished(tmp_path):
    run(tmp_path / "whole.jsonl", Squares())
    return (tmp_path / "whole.jsonl").read_bytes()


def test_wherever_a_run_is_killed_it_goes_on_to_the_same_bytes(tmp_path, finished):
    path = tmp_path / "part.jsonl"
    for length in range(len(finished)):
        path.write_bytes(finished[:length])
        worker = Squares()
        results, _ = run(path, worker)
        assert path.read_bytes() == finished
        assert results == {number: {"square": number**2} for number in JOBS}
        done = max(finished[:length].count(b"\n") - 1, 0)
        assert worker.asked == list(range(done, 6))


def test_the_order_in_which_jobs_end_leaves_no_trace(tmp_path, finished):
    run(tmp_path / "j.jsonl", Squares(), dict(reversed(JOBS.items())))
    assert (tmp_path / "j.jsonl").read_bytes() == finished


def test_progress_counts_what_earlier_runs_did(tmp_path):
    run(tmp_path / "j.jsonl", Squares(), {0: 0, 4: 4})
    assert run(tmp_path / "j.jsonl", Squares())[1] == [(3, 6), (4, 6), (5, 6), (6, 6)]


def test_a_result_is_on_the_disk_before_the_next_job(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, RUN)
    journal.add(3, ["ä", {"key": "x"}])
    assert read_journal(path, RUN) == {3: ["ä", {"key": "x"}]}
    assert len(path.read_bytes().splitlines()) == 2


def test_jobs_that_fail_leave_the_others_and_are_tried_again(tmp_path, finished):
    path = tmp_path / "j.jsonl"
    with pytest.raises(PersonalizationError, match=r"2 of 6 parts.*Job 1 is wrong.*run the command again"):
        run(path, Squares(failing=(1, 4)))
    worker = Squares()
    run(path, worker)
    assert worker.asked == [1, 4]
    assert path.read_bytes() == finished


def test_another_run_is_not_mixed_in(tmp_path, finished):
    path = tmp_path / "whole.jsonl"
    with pytest.raises(SettingsError, match=r"questions abc, now xyz.*--force"):
        Journal(path, {**RUN, "questions": "xyz"})
    assert path.read_bytes() == finished
    assert read_journal(path, {**RUN, "questions": "xyz"}) == {}
    assert Journal(path, {**RUN, "questions": "xyz"}, force=True).results == {}


@pytest.mark.parametrize(
    "content", [b"[1]\n", b"letters\n", b'{"format": "cogenesis-journal/2", "run": {}}\n', b'{"format": 1}\n[0, 1]\n']
)
def test_something_else_in_its_place_is_not_replaced(tmp_path, content):
    path = tmp_path / "letter.txt"
    path.write_bytes(content)
    for open_it in (lambda: Journal(path, RUN, force=True), lambda: read_journal(path, RUN)):
        with pytest.raises(DataError, match="no journal"):
            open_it()
    assert path.read_bytes() == content


def test_a_place_that_can_not_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="can't be written"):
        Journal(tmp_path / "file" / "j.jsonl", RUN)


def test_the_file_says_what_the_run_is(tmp_path, finished):
    head = json.loads(finished.splitlines()[0])
    assert head == {"format": "cogenesis-journal/1", "run": {**RUN, "lengths": [1, 2]}}
    assert [path.name for path in tmp_path.iterdir()] == ["whole.jsonl"]
    assert (tmp_path / "whole.jsonl").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask

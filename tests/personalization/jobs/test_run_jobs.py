"""Many independent jobs in one process: no failure affects another job, and transient failures are retried."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from edge_runtime.errors import RequestError
from personalization.errors import RunnerError
from personalization.jobs.backlog import JobError
from personalization.jobs.run_jobs import run_jobs
from personalization.jobs.runners import LocalRunner, RayRunner, RunnerName, runner_of
from tests.support.engine_workers import Walk, Walker, files, tries, walk_all


def test_each_job_gives_its_result_in_order_from_one_worker(tmp_path):
    walks = [Walk(seed) for seed in (5, 3, 8)]
    with run_jobs(partial(Walker, tmp_path), walks, LocalRunner()) as outcomes:
        given = list(outcomes)
    assert [(index, outcome[0]) for index, outcome in given] == [(0, 5), (1, 3), (2, 8)]
    assert sorted(files(tmp_path)) == ["3.walk", "5.walk", "8.walk"]
    assert {pid for seed in (5, 3, 8) for pid in tries(tmp_path, seed)} == {os.getpid()}


def test_a_result_is_given_before_the_next_job_starts(tmp_path):
    with run_jobs(partial(Walker, tmp_path), [Walk(1), Walk(2)], LocalRunner()) as outcomes:
        next(outcomes)
        assert list(files(tmp_path)) == ["1.walk"]


def test_a_job_whose_data_are_wrong_fails_alone_and_is_not_tried_again(tmp_path):
    outcomes = walk_all(tmp_path, [Walk(1), Walk(2, "wrong"), Walk(3)], LocalRunner())
    assert outcomes[1] == JobError("RequestError", "Walk 2 has no items.", attempts=1, final=True)
    assert len(tries(tmp_path, 2)) == 1
    assert sorted(files(tmp_path)) == ["1.walk", "3.walk"]


def test_a_failure_that_may_pass_is_tried_again_after_all_others(tmp_path):
    with run_jobs(partial(Walker, tmp_path), [Walk(1, "flaky"), Walk(2)], LocalRunner()) as outcomes:
        assert [index for index, _ in outcomes] == [1, 0]
    assert len(tries(tmp_path, 1)) == 2
    assert sorted(files(tmp_path)) == ["1.walk", "2.walk"]


def test_a_job_that_keeps_failing_is_given_up_and_says_where_it_failed(tmp_path):
    outcomes = walk_all(tmp_path, [Walk(1, "broken"), Walk(2)], LocalRunner())
    error = outcomes[0]
    assert (error.kind, error.message, error.attempts) == ("OSError", "the disk is away", 3)
    assert "engine_workers.py" in error.trace
    assert len(tries(tmp_path, 1)) == 3
    assert list(files(tmp_path)) == ["2.walk"]


def test_what_keeps_a_worker_from_being_made_ends_the_run(tmp_path):
    with pytest.raises(RequestError, match="no such base"):
        walk_all(tmp_path, [Walk(1)], LocalRunner(), raising=RequestError)


def test_without_jobs_no_worker_is_made(tmp_path):
    assert walk_all(tmp_path, [], LocalRunner(), raising=RequestError) == {}


def test_sigterm_interrupts_and_leaves_what_is_finished(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(KeyboardInterrupt),
        run_jobs(partial(Walker, tmp_path), [Walk(1), Walk(2)], LocalRunner()) as outcomes,
    ):
        for _ in outcomes:
            os.kill(os.getpid(), signal.SIGTERM)
    assert list(files(tmp_path)) == ["1.walk"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_options_name_an_engine():
    assert runner_of("local", None, None, 2) == LocalRunner()
    assert runner_of(RunnerName.RAY, "auto", 3, 2) == RayRunner("auto", 3, 2)
    assert runner_of("ray", None, None, 1) == RayRunner(None, None, 1)


@pytest.mark.parametrize(("address", "workers"), [("auto", None), (None, 2)])
def test_a_clusters_options_are_refused_without_one(address, workers):
    with pytest.raises(RunnerError, match="Set `runner` to ray"):
        runner_of("local", address, workers, 1)


def test_no_workers_at_all_are_refused():
    with pytest.raises(RunnerError, match="`workers` must be at least 1, not 0"):
        runner_of("ray", None, 0, 1)


def test_the_local_engine_loads_no_cluster_software():
    code = "import sys, personalization.jobs.run_jobs; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

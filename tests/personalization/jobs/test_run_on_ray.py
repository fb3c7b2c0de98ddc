"""Many independent jobs on a real cluster with two workers: the same results, and a lost worker costs one try."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edge_runtime.errors import RequestError
from personalization.errors import RunnerError
from personalization.jobs.runners import LocalRunner, RayRunner
from tests.support.commands import ROOT
from tests.support.engine_workers import Walk, files, tries, walk_all

TWO = RayRunner(workers=2, threads=1)


def test_two_workers_write_the_same_bytes_as_this_process(tmp_path, ray_cluster):
    here, there = (tmp_path / name for name in ("here", "there"))
    here.mkdir(), there.mkdir()
    local = walk_all(here, [Walk(seed) for seed in range(8)], LocalRunner())
    # The first two run at the same time.
    remote = walk_all(there, [Walk(0, "meets"), Walk(1, "meets"), *(Walk(seed) for seed in range(2, 8))], TWO)
    assert remote == local
    assert files(there) == files(here)
    workers = {pid for seed in range(8) for pid in tries(there, seed)}
    assert len(workers) == 2
    assert os.getpid() not in workers


def test_a_killed_worker_costs_only_the_job_it_was_doing(tmp_path, ray_cluster):
    walks = [Walk(0), Walk(1), Walk(2, "dies once"), Walk(3), Walk(4)]
    outcomes = walk_all(tmp_path, walks, TWO)
    assert [outcome[0] for _, outcome in sorted(outcomes.items())] == [0, 1, 2, 3, 4]
    assert [len(tries(tmp_path, seed)) for seed in range(5)] == [1, 1, 2, 1, 1]
    assert len(set(tries(tmp_path, 2))) == 2


def test_a_job_that_keeps_killing_its_worker_is_given_up(tmp_path, ray_cluster):
    outcomes = walk_all(tmp_path, [Walk(0, "dies always"), Walk(1), Walk(2)], TWO)
    error = outcomes.pop(0)
    assert (error.kind, error.attempts, error.final) == ("WorkerLost", 3, False)
    assert "memory" in error.message
    assert len(tries(tmp_path, 0)) == 3
    assert sorted(outcome[0] for outcome in outcomes.values()) == [1, 2]


def test_errors_of_jobs_are_those_of_this_process(tmp_path, ray_cluster):
    walks = [Walk(0, "wrong"), Walk(1, "broken"), Walk(2)]
    here, there = (tmp_path / name for name in ("here", "there"))
    here.mkdir(), there.mkdir()
    local, remote = walk_all(here, walks, LocalRunner()), walk_all(there, walks, TWO)
    for index in (0, 1):
        assert [getattr(remote[index], name) for name in ("kind", "message", "attempts", "final")] == [
            getattr(local[index], name) for name in ("kind", "message", "attempts", "final")
        ]
    assert [len(tries(there, seed)) for seed in range(3)] == [1, 3, 1]


def test_what_keeps_a_worker_from_being_made_is_raised_as_it_is(tmp_path, ray_cluster):
    with pytest.raises(RequestError, match="no such base"):
        walk_all(tmp_path, [Walk(1)], TWO, raising=RequestError)


def test_workers_that_die_while_they_start_end_the_run(tmp_path, ray_cluster):
    with pytest.raises(RunnerError, match=r"No worker can start.*`workers`"):
        walk_all(tmp_path, [Walk(1), Walk(2)], TWO, dying=True)


def test_a_cluster_without_room_for_a_worker_is_refused(tmp_path, ray_cluster):
    with pytest.raises(RunnerError, match="No machine of the cluster has 64 processors"):
        walk_all(tmp_path, [Walk(1)], RayRunner(threads=64))


def test_another_process_connects_by_address_and_its_output_is_its_own(tmp_path, ray_address):
    done = drive(tmp_path, f"RayRunner({ray_address!r}, 2)", "Walk(0, 'dies once')", "Walk(1)", "Walk(2, 'wrong')")
    output, errors = done.communicate(timeout=60)
    assert done.returncode == 0, errors
    assert dict(json.loads(line) for line in output.splitlines()).keys() == {0, 1, 2}
    assert errors == ""


def test_sigterm_leaves_what_is_finished_and_no_cluster(tmp_path, short_directory):
    walks = [f"Walk({seed})" for seed in range(3)]
    process = drive(tmp_path, "RayRunner(workers=2)", *walks, "Walk(3, 'slow')", RAY_TMPDIR=str(short_directory))
    assert process.stdout is not None
    finished = [json.loads(process.stdout.readline())[0] for _ in walks]
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "")
    assert sorted(finished) == [0, 1, 2]
    assert sorted(files(tmp_path)) == ["0.walk", "1.walk", "2.walk"]
    assert list(short_directory.iterdir()) == []
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []


@pytest.mark.parametrize("address", ["localhost", "ray://", "no address", "host:port"])
def test_what_is_no_address_is_refused(tmp_path, address):
    with pytest.raises(RunnerError, match=r"not the address of a Ray cluster.*host:port"):
        walk_all(tmp_path, [Walk(1)], RayRunner(address))


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path, scheme):
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        address = f"{scheme}127.0.0.1:{closed_soon.getsockname()[1]}"
    with pytest.raises(RunnerError, match=rf"No Ray cluster answers at {address}.*ray start --head"):
        walk_all(tmp_path, [Walk(1)], RayRunner(address))


@pytest.mark.parametrize(("name", "problem"), [("x" * 40, "shorter path"), ("missing/", "No such file")])
def test_a_directory_that_ray_cannot_use_is_named(tmp_path, name, problem):
    if problem == "shorter path":
        (tmp_path / name).mkdir()
    process = drive(tmp_path, "RayRunner(workers=1)", "Walk(0)", RAY_TMPDIR=str(tmp_path / name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(rf"RunnerError: Ray needs a directory.*{problem}.*Set RAY_TMPDIR", errors)


def test_without_ray_it_is_said_what_to_install(tmp_path, monkeypatch):
    from edge_runtime.errors import MissingExtraError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"ray.*pip install 'cogenesis-edge\[ray\]'"):
        walk_all(tmp_path, [Walk(1)], TWO)


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory for sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def drive(directory: Path, runner: str, *walks: str, **environment: str) -> subprocess.Popen[str]:
    """Run walks in a separate process."""
    code = "\n".join(
        [
            "from tests.support.engine_workers import Walk, drive",
            "from personalization.jobs.runners import RayRunner",
            f"drive({str(directory)!r}, {runner}, {', '.join(walks)})",
        ]
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}", **environment},
    )

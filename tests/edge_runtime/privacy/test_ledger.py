"""The ledger: complete, private to its owner, written before anything leaves."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.context import PublicInstruction
from edge_runtime.errors import LedgerError
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger

characters = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
entries = st.tuples(
    st.sampled_from(["up", "down"]),
    st.sampled_from(["info", "open", "verify", "sketch", "answer"]),
    st.integers(0, 10**6),
    st.dictionaries(characters, characters | st.integers() | st.lists(st.integers(), max_size=4), max_size=3),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recorded=st.lists(entries, max_size=6))
def test_file_and_memory_hold_the_same_lines(tmp_path, recorded):
    path = tmp_path / "ledger.jsonl"
    path.unlink(missing_ok=True)
    before = datetime.now(UTC)
    with Ledger(path) as ledger:
        for entry in recorded:
            ledger.record(*entry)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert lines == [asdict(entry) for entry in ledger.entries]
    assert [(e.direction, e.kind, e.bytes, dict(e.content)) for e in ledger.entries] == recorded
    for direction in ("up", "down"):
        assert ledger.bytes_moved(direction) == sum(entry[2] for entry in recorded if entry[0] == direction)
    times = [datetime.fromisoformat(entry.time) for entry in ledger.entries]
    assert times == sorted(times)
    assert all(before <= time <= datetime.now(UTC) for time in times)


def test_a_second_ledger_appends_to_the_file(tmp_path):
    path = tmp_path / "deep" / "ledger.jsonl"
    for number in range(3):
        with Ledger(path) as ledger:
            ledger.record("up", "info", number)
    assert [json.loads(line)["bytes"] for line in path.read_text(encoding="utf-8").splitlines()] == [0, 1, 2]


def test_only_the_owner_can_read_the_file(tmp_path):
    old_umask = os.umask(0)
    try:
        Ledger(tmp_path / "ledger.jsonl").close()
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE((tmp_path / "ledger.jsonl").stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text("")
    path.chmod(0o644)
    Ledger(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_torn_by_a_crash_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.record("up", "info", 1)
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + whole[:20], encoding="utf-8")
    with Ledger(path) as ledger:
        ledger.record("up", "info", 2)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(lines[0])["bytes"], json.loads(lines[2])["bytes"]] == [1, 2]
    assert lines[1] == whole[:20]


def test_a_line_that_can_not_be_encoded_is_refused_and_leaves_no_trace(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        with pytest.raises(LedgerError):
            ledger.record("up", "verify", 1, {"text": "\ud800"})
        ledger.record("up", "verify", 2, {"text": "x"})
    assert [json.loads(line)["bytes"] for line in path.read_text(encoding="utf-8").splitlines()] == [2]


def test_threads_never_mix_their_lines(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        write = [lambda n=n: ledger.record("up", "verify", n, {"text": "x" * 500}) for n in range(40)]
        threads = [threading.Thread(target=target) for target in write]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(json.loads(line)["bytes"] for line in path.read_text(encoding="utf-8").splitlines()) == list(
        range(40)
    )


@pytest.mark.parametrize("place", ["directory", "through_a_file"])
def test_a_ledger_that_can_not_be_opened_says_so(tmp_path, place):
    (tmp_path / "file").write_text("x")
    path = tmp_path if place == "directory" else tmp_path / "file" / "ledger.jsonl"
    with pytest.raises(LedgerError, match="--ledger"):
        Ledger(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to write to")
def test_nothing_leaves_where_the_ledger_can_not_be_written():
    ledger = Ledger("/dev/full")
    released = Gate(Policy.OPEN, ledger).sketch(PublicInstruction("Write a letter."))
    encoded = []
    with pytest.raises(LedgerError, match="Nothing was sent"):
        released.leave(lambda message: encoded.append(message) or b"bytes")
    assert ledger.entries == () and encoded
    ledger.close()


def test_the_line_is_in_the_file_before_the_bytes_are_handed_out(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        payload = Gate(Policy.OPEN, ledger).sketch(PublicInstruction("Schreib über Köln 🙂")).leave(lambda _: b"12345")
        [line] = path.read_text(encoding="utf-8").splitlines()
    assert payload == b"12345"
    entry = json.loads(line)
    assert (entry["direction"], entry["kind"], entry["bytes"]) == ("up", "sketch", 5)
    assert entry["content"] == {"instruction": "Schreib über Köln 🙂"}
    assert "Schreib über Köln 🙂" in line

"""The profile store returns what it was given, also after a kill, and only to its owner."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from typer.testing import CliRunner

from cogenesis.store import app
from edge_runtime.context import HistoryItem, PrivateContext
from edge_runtime.errors import RequestError, StoreError
from edge_runtime.store.profile_store import ProfileStore
from edge_runtime.store.schema import SCHEMA_VERSION
from tests.support.examples import examples

characters = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
filled = characters.filter(str.strip)


@pytest.fixture
def store(tmp_path):
    with ProfileStore(tmp_path / "profile.db") as opened:
        yield opened


def test_a_new_store_is_empty_and_private_to_its_owner(tmp_path):
    old_umask = os.umask(0)
    try:
        with ProfileStore(tmp_path / "new" / "profile.db") as store:
            assert store.context() == PrivateContext()
            store.set_profile("Name: Ada")
            files = list((tmp_path / "new").iterdir())
            assert len(files) >= 2  # the log is next to it while the store is open
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
            assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    finally:
        os.umask(old_umask)


def test_a_store_that_others_could_read_is_closed_to_them(tmp_path):
    path = tmp_path / "profile.db"
    ProfileStore(path).close()
    path.chmod(0o644)
    ProfileStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


class StoreMachine(RuleBasedStateMachine):
    """Any sequence of changes and reopenings gives the same content as a plain dictionary."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "profile.db"
        self.store = ProfileStore(self.path)
        self.profile, self.items, self.last = "", {}, 0

    @rule(text=characters)
    def set_profile(self, text):
        self.store.set_profile(text)
        self.profile = text

    @rule(title=characters, text=filled, date=st.none() | st.dates().map(str))
    def add(self, title, text, date):
        item_id = self.store.add(title, text, date)
        assert item_id > self.last
        self.items[item_id], self.last = (title, text, date), item_id

    @rule(item_id=st.integers(0, 8), title=st.none() | characters, text=st.none() | filled)
    def update(self, item_id, title, text):
        if item_id not in self.items:
            with pytest.raises(RequestError):
                self.store.update(item_id, title=title, text=text)
            return
        self.store.update(item_id, title=title, text=text)
        old = self.items[item_id]
        self.items[item_id] = (old[0] if title is None else title, old[1] if text is None else text, old[2])

    @rule(item_ids=st.lists(st.integers(0, 8), max_size=3))
    def remove(self, item_ids):
        if any(item_id not in self.items for item_id in item_ids):
            with pytest.raises(RequestError):
                self.store.remove(*item_ids)
            return
        self.store.remove(*item_ids)
        for item_id in set(item_ids):
            del self.items[item_id]

    @rule()
    def reopen(self):
        self.store.close()
        self.store = ProfileStore(self.path)

    @invariant()
    def holds_what_was_put_in(self):
        assert {item.id: (item.title, item.text, item.date) for item in self.store.items} == self.items
        history = tuple(HistoryItem(title, text) for _, (title, text, _) in sorted(self.items.items()))
        assert self.store.context() == PrivateContext(self.profile, history)

    def teardown(self):
        self.store.close()
        self.directory.cleanup()


TestAnyChanges = StoreMachine.TestCase
TestAnyChanges.settings = settings(
    max_examples=examples(20), stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_an_import_is_idempotent_and_takes_request_and_user_files(tmp_path, store):
    history = [{"title": "A", "text": "one"}, {"title": "B", "text": "two", "date": "2024-02-29"}]
    request, user = tmp_path / "request.json", tmp_path / "user.json"
    request.write_text(json.dumps({"instruction": "x", "context": {"profile": "Name: Ada", "history": history[:1]}}))
    user.write_text(json.dumps({"profile": "Name: Ada L.", "history": history, "tasks": []}))
    first, second, third = store.import_file(request), store.import_file(user), store.import_file(user)
    assert (first.added, first.known, first.profile) == (1, 0, True)
    assert (second.added, second.known) == (1, 1)
    assert (third.added, third.known) == (0, 2)
    assert store.context() == PrivateContext("Name: Ada L.", (HistoryItem("A", "one"), HistoryItem("B", "two")))
    assert [item.date for item in store.items] == [None, "2024-02-29"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"history": [{"title": "A", "text": "one"}, {"title": "B"}]}, r"history\[1\].text is missing"),
        ({"profile": "new", "history": [{"title": "A", "text": "one", "date": "yesterday"}]}, "YYYY-MM-DD"),
        ({"context": {"profile": 3}}, "context.profile must be a string"),
        ({"tasks": []}, "nothing to import"),
        ([], "nothing to import"),
    ],
)
def test_a_wrong_file_imports_nothing(tmp_path, store, body, said):
    path = tmp_path / "user.json"
    path.write_text(json.dumps(body))
    with pytest.raises(RequestError, match=said):
        store.import_file(path)
    assert store.context() == PrivateContext()


def test_removed_text_is_nowhere_in_the_files(tmp_path, store):
    secret = "the spare key lies under the blue flowerpot " * 200
    item_id = store.add("secret", secret)
    store.add("other", "stays")
    store.remove(item_id)
    files = [file.read_bytes() for file in tmp_path.iterdir()]
    assert not any(b"blue flowerpot" in content for content in files)
    assert any(b"stays" in content for content in files)


def test_a_replaced_profile_is_nowhere_in_the_files(tmp_path, store):
    secret = "the spare key lies under the blue flowerpot " * 200

    def is_kept(text: bytes) -> bool:
        return any(text in file.read_bytes() for file in tmp_path.iterdir())

    store.set_profile(secret)
    assert is_kept(b"blue flowerpot")
    store.set_profile("set")
    assert not is_kept(b"blue flowerpot") and is_kept(b"set")
    store.set_profile(secret)
    store.import_items([], "imported")
    assert not is_kept(b"blue flowerpot") and is_kept(b"imported")


def test_vectors_of_a_dropped_encoder_are_nowhere_in_the_files(tmp_path, store):
    for number in range(20):
        store.add("", f"text {number}")
    values = {name: np.random.default_rng(seed).random((20, 64), np.float32) for seed, name in enumerate("ab")}
    for name, vectors in values.items():
        store.put_vectors(name * 64, store.without_vector(name * 64, 20), vectors)
    assert store.keep_vectors_of(["b" * 64]) == 20
    files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(vector.astype("<f4").tobytes()[:32] in files for vector in values["a"])
    assert any(vector.astype("<f4").tobytes()[:32] in files for vector in values["b"])


def test_repr_shows_no_private_text(store):
    store.add("private title", "private text")
    assert "private" not in repr(store.items) and "private" not in repr(store)


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough " * 200, b"x", b"SQLite format 3\x00" + b"\xff" * 5000]
)
def test_a_file_that_is_no_database_is_a_store_error(tmp_path, content):
    path = tmp_path / "profile.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"profile\.db"):
        ProfileStore(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    with pytest.raises(StoreError, match="not a profile store"):
        ProfileStore(path)
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]
    other.close()


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "profile.db"
    ProfileStore(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    raw.close()
    with pytest.raises(StoreError, match=r"newer version.*Update"):
        ProfileStore(path)


def test_a_directory_or_a_path_through_a_file_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "profile.db"):
        with pytest.raises(StoreError, match=r"can't be opened"):
            ProfileStore(path)


@pytest.mark.parametrize("damage", range(6))
def test_a_damaged_page_is_a_store_error_or_does_no_harm(tmp_path, damage):
    path = tmp_path / "profile.db"
    with ProfileStore(path) as store:
        for number in range(50):
            store.add(f"title {number}", "text " * 200)
    content = bytearray(path.read_bytes())
    start = len(content) * damage // 6
    content[start : start + 300] = b"\xa5" * 300
    path.write_bytes(content)
    try:
        with ProfileStore(path) as store:
            assert len(store.items) <= 50
    except StoreError as error:
        assert str(path) in str(error)


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    path = tmp_path / "profile.db"
    script = (
        "import sys; from edge_runtime.store.profile_store import ProfileStore\n"
        "store = ProfileStore(sys.argv[1])\n"
        "while True: print(store.add('title', 'text ' * 500), flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    acknowledged = [int(writer.stdout.readline()) for _ in range(40)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout.read().splitlines()]
    writer.wait()
    with ProfileStore(path) as store:
        kept = [item.id for item in store.items]
        assert kept[: len(acknowledged)] == acknowledged
        assert len(kept) <= len(acknowledged) + 1
        assert all(item.text == "text " * 500 for item in store.items)
        assert sorted(store.word_scores("text")[0].tolist()) == kept


def test_an_import_killed_half_way_leaves_nothing_of_it(tmp_path):
    path, user = tmp_path / "profile.db", tmp_path / "user.json"
    with ProfileStore(path) as store:
        store.set_profile("before")
    history = [{"title": f"{i}", "text": "word " * 2000} for i in range(3000)]
    user.write_text(json.dumps({"profile": "after", "history": history}))
    script = (
        "import sys; from edge_runtime.store.profile_store import ProfileStore\n"
        "ProfileStore(sys.argv[1]).import_file(sys.argv[2])\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path), str(user)])
    log = tmp_path / "profile.db-wal"
    # Pages of a large transaction reach the log before it is committed.
    while writer.poll() is None and not (log.exists() and log.stat().st_size > 1_000_000):
        time.sleep(0.001)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL, "the import was over before it could be killed"
    with ProfileStore(path) as store:
        assert (store.profile, len(store.items)) == ("before", 0)
        assert len(store) == 0 and not len(store.word_scores("word")[0])
        store.add("and on", "it goes")


def test_two_processes_can_write_at_once(tmp_path):
    path = tmp_path / "profile.db"
    script = (
        "import sys; from edge_runtime.store.profile_store import ProfileStore\n"
        "with ProfileStore(sys.argv[1]) as store:\n"
        "    for number in range(25): store.add(sys.argv[2], str(number))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    with ProfileStore(path) as store:
        for name in "ab":
            assert [item.text for item in store.items if item.title == name] == [str(n) for n in range(25)]


@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.one_of(st.text(max_size=12), st.integers(), st.none()))
def test_a_date_is_a_date_or_refused(store, value):
    try:
        item_id = store.add("t", "x", value)
    except RequestError:
        return
    stored = next(item.date for item in store.items if item.id == item_id)
    assert (stored is None) == (value is None)
    assert value is None or len(stored) == 10


def test_wrong_values_are_refused_and_change_nothing(store):
    item_id = store.add("t", "x")
    for attempt in (
        lambda: store.add("t", "  "),
        lambda: store.add("\ud800", "x"),
        lambda: store.set_profile("\ud800"),
        lambda: store.update(item_id, text=""),
        lambda: store.remove(item_id, 99),
        lambda: store.remove(10**30),
    ):
        with pytest.raises(RequestError):
            attempt()
    assert [(item.title, item.text) for item in store.items] == [("t", "x")]


def run(*arguments, stdin=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_commands_work_together(tmp_path):
    path, user = tmp_path / "profile.db", tmp_path / "user.json"
    user.write_text(json.dumps({"profile": "Name: Ada", "history": [{"title": "A", "text": "one"}]}))
    options = ("--store", path, "--json")
    done = json.loads(run("import", user, *options).stdout)
    assert (done["added"], done["known"], done["profile"]) == (1, 0, True)
    assert json.loads(run("add", "--title", "B", "--file", "-", *options, stdin="two\n").stdout) == {"id": 2}
    assert json.loads(run("profile", "Name: Ada L.", *options).stdout) == {"profile": "Name: Ada L."}
    shown = run("show", *options).stdout
    assert [item["text"] for item in json.loads(shown)["history"]] == ["one", "two\n"]
    assert json.loads(run("remove", 1, *options).stdout) == {"removed": [1]}
    words = run("show", "--store", path).stdout
    assert "Name: Ada L." in words and "Past texts: 1" in words and "B" in words

    copy = tmp_path / "copy.json"
    copy.write_text(shown)
    other = ("--store", tmp_path / "other.db", "--json")
    run("import", copy, *other)
    again = json.loads(run("show", *other).stdout)
    assert again["profile"] == "Name: Ada L."
    assert [item["title"] for item in again["history"]] == ["A", "B"]


def test_a_command_fails_with_a_typed_error(tmp_path):
    path = tmp_path / "profile.db"
    for error, arguments in (
        (RequestError, ("import", tmp_path / "none.json")),
        (RequestError, ("remove", 7)),
        (RequestError, ("add", "--title", "A")),
        (RequestError, ("profile", "x", "--file", tmp_path / "y")),
        (RequestError, ("profile", "--file", tmp_path / "none.txt")),
    ):
        with pytest.raises(error):
            run(*arguments, "--store", path)

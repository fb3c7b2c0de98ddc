"""The search index in the store's file against rank_bm25, after any additions, changes and removals."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from rank_bm25 import BM25Okapi

from edge_runtime.errors import StoreError
from edge_runtime.store import schema as store_schema
from edge_runtime.store import word_index
from edge_runtime.store.item import NewItem
from edge_runtime.store.posting_lists import MAX_SLOTS, decode_list, encode_list, scattered
from edge_runtime.store.profile_store import ProfileStore
from edge_runtime.store.word_index import MAX_RECENT
from personalization.lamp.bm25 import Bm25
from tests.support.examples import examples

# Few words in many texts: some idfs are negative, and in some states their mean is too.
word = st.sampled_from(["the", "of", "a", "garden", "roof", "rain", "Rain", "bees", "é\u0301", "boat."])
text = st.lists(word, min_size=1, max_size=12).map(" ".join) | st.just("the " * 700 + "end")
query = st.lists(word | st.just("unknown") | st.just("\ud800"), max_size=6).map(" ".join)


@pytest.fixture
def small_segments(monkeypatch):
    """Make a few texts trigger everything that otherwise takes thousands."""
    monkeypatch.setattr(word_index, "MAX_RECENT", 4)
    monkeypatch.setattr(word_index, "MERGED_AT_ONCE", 2)
    monkeypatch.setattr(word_index, "MAX_SLOTS", 16)


def assert_scores(store: ProfileStore, documents: dict[int, str], asked: str) -> None:
    ids, scores = store.word_scores(asked)
    assert sorted(ids.tolist()) == sorted(documents)
    if documents:
        wanted = BM25Okapi([document.split() for document in documents.values()]).get_scores(asked.split())
        found = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        assert [found[item_id] for item_id in documents] == pytest.approx(wanted.tolist(), abs=1e-9)


class IndexMachine(RuleBasedStateMachine):
    """Any changes, in any order, by two connections, lead to the scores that rank_bm25 gives the stored texts."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name) / "profile.db"
        self.stores = (ProfileStore(path), ProfileStore(path))
        self.documents: dict[int, str] = {}
        self.draw = random.Random(0)

    @rule(title=word, content=text, which=st.integers(0, 1))
    def add(self, title, content, which):
        self.documents[self.stores[which].add(title, content)] = f"{title} {content}"

    @rule(contents=st.lists(text, max_size=20), which=st.integers(0, 1))
    def add_many(self, contents, which):
        store, last = self.stores[which], max(self.documents, default=0)
        new = [NewItem("tag", content, origin=str(self.draw.random()), title_counts=False) for content in contents]
        assert store.import_items(new).added == len(new)
        ids = [item.id for item in store.items if item.id not in self.documents]
        assert all(item_id > last for item_id in ids)
        self.documents.update(zip(ids, contents, strict=True))

    @rule(content=text, which=st.integers(0, 1))
    def update(self, content, which):
        if self.documents:
            item_id = self.draw.choice(sorted(self.documents))
            self.stores[which].update(item_id, text=content)
            [item] = self.stores[1 - which].get([item_id])
            self.documents[item_id] = f"{item.title} {content}" if item.title_counts else content

    @rule(count=st.integers(1, 9), which=st.integers(0, 1))
    def remove(self, count, which):
        gone = self.draw.sample(sorted(self.documents), min(count, len(self.documents)))
        self.stores[which].remove(*gone)
        for item_id in gone:
            del self.documents[item_id]

    @rule(asked=query, which=st.integers(0, 1))
    def search(self, asked, which):
        assert_scores(self.stores[which], self.documents, asked)

    @invariant()
    def counts(self):
        assert len(self.stores[0]) == len(self.documents)

    def teardown(self):
        for store in self.stores:
            store.close()
        self.directory.cleanup()


@pytest.mark.usefixtures("small_segments")
def test_scores_are_those_of_rank_bm25_after_any_changes():
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        IndexMachine,
        settings=settings(
            max_examples=examples(25), stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.usefixtures("small_segments")
def test_a_long_life_leaves_few_segments_and_the_words_that_are_there(tmp_path):
    draw, vocabulary = random.Random(1), [f"w{number}" for number in range(40)]
    documents: dict[int, str] = {}
    with ProfileStore(tmp_path / "profile.db") as store:
        for _ in range(150):
            if draw.random() < 0.3 and len(documents) > 5:
                gone = draw.sample(sorted(documents), 2)
                store.remove(*gone)
                for item_id in gone:
                    del documents[item_id]
            content = " ".join(draw.choices(vocabulary, weights=range(40, 0, -1), k=draw.randint(1, 9)))
            documents[store.add("note", content)] = f"note {content}"
        assert_scores(store, documents, "note w0 w1 w39 w39 missing")
    with sqlite3.connect(tmp_path / "profile.db") as raw:
        [segments] = raw.execute("SELECT count(*) FROM segments").fetchone()
        kept = dict(raw.execute("SELECT word, items FROM words"))
        histogram = dict(raw.execute("SELECT items, words FROM word_items"))
    raw.close()
    wanted: dict[str, int] = {}
    for document in documents.values():
        for one in set(document.split()):
            wanted[one] = wanted.get(one, 0) + 1
    assert kept == wanted
    assert histogram == {count: list(wanted.values()).count(count) for count in set(wanted.values())}
    assert segments <= len(documents) // 4


def test_thousands_of_texts_are_one_segment_a_batch_and_score_alike(tmp_path):
    draw = np.random.default_rng(0)
    contents = [" ".join(f"w{int(number)}" for number in row) for row in draw.zipf(1.4, (3000, 8)).clip(0, 500)]
    items = [NewItem("", content, origin=str(place), title_counts=False) for place, content in enumerate(contents)]
    with ProfileStore(tmp_path / "profile.db") as store:
        store.import_items(items)
        late = [f"w1 late{place}" for place in range(MAX_RECENT + 5)]
        store.import_items([NewItem("", content, title_counts=False) for content in late[: MAX_RECENT - 9]])
        for content in late[MAX_RECENT - 9 :]:
            store.import_items([NewItem("", content, title_counts=False)])
        contents += late
        ids, scores = store.word_scores("w1 w2 w77 late3 w1")
    wanted = Bm25(contents).scores("w1 w2 w77 late3 w1")
    assert scores[np.argsort(ids)] == pytest.approx(wanted, abs=1e-9)


def test_words_of_what_was_removed_are_nowhere_in_the_files(tmp_path):
    with ProfileStore(tmp_path / "profile.db") as store:
        secret = store.add("secret", "blueflowerpot hides the key")
        old = store.add("old", "greenflowerpot hides nothing")
        store.import_items([NewItem(f"t{number}", "some words", origin=str(number)) for number in range(MAX_RECENT)])
        store.remove(secret)
        store.update(old, text="nothing more")
        files = [file.read_bytes() for file in tmp_path.iterdir()]
    assert not any(word in content for content in files for word in (b"blueflowerpot", b"greenflowerpot"))
    assert any(b"some words" in content for content in files)


def version_1(path: Path, texts: list[tuple[str, str]]) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE profile (id INTEGER PRIMARY KEY CHECK (id = 1), text TEXT NOT NULL)")
        raw.execute(
            "CREATE TABLE history (id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, text TEXT NOT NULL, "
            "date TEXT)"
        )
        raw.execute("INSERT INTO profile VALUES (1, 'Name: Ada')")
        raw.executemany("INSERT INTO history (title, text, date) VALUES (?, ?, '2024-02-29')", texts)
        raw.execute(f"PRAGMA application_id = {store_schema.APPLICATION_ID}")
        raw.execute("PRAGMA user_version = 1")
    raw.close()


def test_a_store_of_version_1_is_searched_after_it_was_opened(tmp_path):
    texts = [("Letter", "the roof leaks in the rain"), ("Note", "bees in the garden"), ("Note", "the boat")]
    version_1(tmp_path / "profile.db", texts)
    with ProfileStore(tmp_path / "profile.db") as store:
        assert store.profile == "Name: Ada"
        assert [(item.title, item.text, item.date) for item in store.items] == [(*pair, "2024-02-29") for pair in texts]
        documents = {number: f"{title} {content}" for number, (title, content) in enumerate(texts, start=1)}
        assert_scores(store, documents, "the bees in the Note")
        assert store.import_items([NewItem(*texts[1])]).known == 1
    with ProfileStore(tmp_path / "profile.db") as store:
        assert len(store) == 3


def test_a_migration_that_breaks_off_leaves_the_old_store(tmp_path, monkeypatch):
    version_1(tmp_path / "profile.db", [("Note", "bees")])
    with monkeypatch.context() as patch:
        patch.setattr(store_schema, "add_to_index", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ProfileStore(tmp_path / "profile.db")
    with sqlite3.connect(tmp_path / "profile.db") as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (1,)
        assert raw.execute("SELECT title, text FROM history").fetchall() == [("Note", "bees")]
    raw.close()
    with ProfileStore(tmp_path / "profile.db") as store:
        assert_scores(store, {1: "Note bees"}, "bees")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE segments SET lengths = x'01'",
        "UPDATE segments SET items = x'0102030405'",
        "UPDATE postings SET slots = x'00'",
        "UPDATE postings SET slots = x'ffffffffffffffff', counts = x'01010101'",
        "UPDATE postings SET slots = x'', counts = x'01'",
    ],
)
def test_a_damaged_index_is_a_store_error(tmp_path, damage):
    path = tmp_path / "profile.db"
    with ProfileStore(path) as store:
        store.import_items([NewItem("t", f"bees {number % 9}", origin=str(number)) for number in range(MAX_RECENT)])
    with sqlite3.connect(path) as raw:
        raw.execute(damage)
    raw.close()
    with ProfileStore(path) as store, pytest.raises(StoreError, match=r"index is damaged.*profile\.db"):
        store.word_scores("bees 3")


@settings(max_examples=examples(200), deadline=None)
@given(
    entries=st.dictionaries(st.integers(0, 400), st.integers(1, 10) | st.sampled_from([254, 255, 256, 510, 70000])),
    more=st.integers(1, 3000),
)
def test_a_list_of_entries_is_read_as_it_was_written(entries, more):
    slots, counts = np.array(sorted(entries), np.int64), np.array([entries[key] for key in sorted(entries)], np.int64)
    written = encode_list(slots, counts, min(401 + more, MAX_SLOTS))
    read_slots, read_counts = decode_list(*written)
    assert (read_slots.tolist(), read_counts.tolist()) == (slots.tolist(), counts.tolist())
    places, many = scattered(*written)
    if places is None:
        assert np.flatnonzero(many).tolist() == slots.tolist() and many[slots].tolist() == counts.tolist()
    else:
        assert (places.tolist(), many.tolist()) == (slots.tolist(), counts.tolist())


@pytest.mark.parametrize("damage", ["DELETE FROM postings", "DELETE FROM words", "UPDATE words SET items = 0"])
def test_a_change_to_a_damaged_index_is_a_store_error_and_changes_nothing(tmp_path, damage):
    path = tmp_path / "profile.db"
    with ProfileStore(path) as store:
        store.import_items([NewItem("t", f"bees {number}", origin=str(number)) for number in range(MAX_RECENT)])
    with sqlite3.connect(path) as raw:
        raw.execute(damage)
    raw.close()
    with ProfileStore(path) as store:
        with pytest.raises(StoreError, match="index is damaged"):
            store.remove(7)
        assert len(store.items) == MAX_RECENT

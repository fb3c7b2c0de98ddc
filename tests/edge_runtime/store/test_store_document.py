"""A second reader of profile stores, written from docs/store.md alone: what the page says is enough to search one."""

from __future__ import annotations

import hashlib
import math
import random
import re
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.store import word_index
from edge_runtime.store.item import NewItem
from edge_runtime.store.profile_store import ProfileStore

ROOT = Path(__file__).parents[3]
K1, B, EPSILON = 1.5, 0.75, 0.25
SPACE = re.compile("[\x09-\x0d\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")


class Port:
    """What a port of the page has: the standard library, and none of our code."""

    def __init__(self, path: Path) -> None:
        assert path.read_bytes()[:16] == b"SQLite format 3\0"
        self.db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        assert self.db.execute("PRAGMA application_id").fetchone() == (0x436F4765,)
        assert self.db.execute("PRAGMA user_version").fetchone() == (2,)

    def search(self, query: str) -> list[tuple[int, float]]:
        """All items with their scores, best first."""
        [total] = self.db.execute("SELECT items FROM totals").fetchone()
        lengths: dict[int, int] = {}
        segments = {}
        for segment, items, sizes in self.db.execute("SELECT id, items, lengths FROM segments"):
            segments[segment] = numbers("q", items)
            lengths.update(zip(segments[segment], numbers("I", sizes), strict=True))
        lengths.pop(0, None)
        recent = {}
        for item, words, counts in self.db.execute("SELECT item, words, counts FROM recent"):
            recent[item] = dict(zip(numbers("I", words), numbers("I", counts), strict=True))
            lengths[item] = sum(recent[item].values())
        assert len(lengths) == total
        mean_length = sum(lengths.values()) / total or 1.0
        histogram = self.db.execute("SELECT items, words FROM word_items").fetchall()
        weights = math.fsum(words * idf(items, total) for items, words in histogram)
        mean = weights / sum(words for _, words in histogram)

        scores = dict.fromkeys(lengths, 0.0)
        for word, asked in Counter(split(query)).items():
            row = self.db.execute("SELECT id, items FROM words WHERE word = ?", (word,)).fetchone()
            if row is None:
                continue
            weight = idf(row[1], total)
            if weight < 0:
                weight = EPSILON * mean
            counts = {item: words[row[0]] for item, words in recent.items() if row[0] in words}
            for segment, slots in segments.items():
                counts |= {slots[slot]: count for slot, count in self.postings(segment, row[0]).items()}
            assert len(counts) == row[1]
            for item, count in counts.items():
                norm = K1 * ((1 - B) + (B * lengths[item]) / mean_length)
                scores[item] += (count / (count + norm)) * ((asked * weight) * (K1 + 1))
        return sorted(scores.items(), key=lambda entry: (-entry[1], -entry[0]))

    def postings(self, segment: int, word: int) -> dict[int, int]:
        """How often the items of a segment's slots have a word."""
        query = "SELECT slots, counts FROM postings WHERE id = ?"
        row = self.db.execute(query, (segment * 2**40 + word,)).fetchone()
        found: Counter[int] = Counter()
        if row is not None:
            counts = numbers("B", row[1])
            for slot, count in zip(numbers("H", row[0]) or range(len(counts)), counts, strict=True):
                found[slot] += count
        return {slot: count for slot, count in found.items() if count}

    def by_vector(self, fingerprint: str, query: list[float]) -> list[int]:
        """Items that an encoder has a vector of, best first."""
        rows = self.db.execute(
            "SELECT item, vector FROM vectors JOIN encoders ON encoders.id = encoder WHERE fingerprint = ?",
            (fingerprint,),
        )
        scores = [(sum(a * b for a, b in zip(numbers("f", row), query, strict=True)), item) for item, row in rows]
        return [item for _, item in sorted(scores, reverse=True)]


def numbers(kind: str, blob: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(blob) // struct.calcsize('<' + kind)}{kind}", blob)


def split(text: str) -> list[str]:
    return [word for word in SPACE.split(text) if word]


def idf(having: int, total: int) -> float:
    return math.log(total - having + 0.5) - math.log(having + 0.5)


def digest(*parts: str) -> bytes:
    encoded = [part.encode() for part in parts]
    joined = b"".join(struct.pack("<Q", len(part)) + part for part in encoded)
    return hashlib.blake2b(joined, digest_size=16).digest()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with segments of several sizes, merged ones, gaps, changed items and counts beyond a byte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_index, "MAX_RECENT", 16)
        yield from filled_store(tmp_path_factory.mktemp("store") / "profile.db")


def filled_store(path: Path) -> Iterator[ProfileStore]:
    draw = random.Random(5)
    vocabulary = ["the", "The", "of", "sea", "sea.", "e\u0301", "\u00e9", *(f"word{number}" for number in range(300))]
    sizes = [1 / (place + 1) for place in range(len(vocabulary))]

    def text() -> str:
        words = draw.choices(vocabulary, sizes, k=draw.randint(1, 40))
        if draw.random() < 0.02:
            words += [draw.choice(vocabulary)] * draw.choice([254, 255, 510, 600])
        return draw.choice(["\u3000", " ", "\t\n", "\x1c\u2003"]).join(words)

    with ProfileStore(path) as store:
        store.import_items([NewItem("", "", origin="empty", title_counts=False)])
        for number in range(250):
            if draw.random() < 0.5:
                store.add(draw.choice(vocabulary), text(), draw.choice(["2024-05-01", "2023-01-31", None]))
            else:
                store.import_items([NewItem(text(), text(), origin=str(number), title_counts=draw.random() < 0.5)])
        ids = [item.id for item in store.items]
        for item_id in draw.sample(ids, 150):
            store.update(item_id, text=text())
        store.remove(*draw.sample(ids, 60))
        for _ in range(2):  # where the first fills a segment, the second stays
            store.add("", text())
        yield store


def test_a_port_written_from_the_page_gives_the_same_scores_and_ranking(store):
    port = Port(store.path)
    kinds = Counter(bool(slots) for [slots] in port.db.execute("SELECT slots FROM postings"))
    assert kinds[True] and kinds[False]  # both codings
    assert len({len(items) for [items] in port.db.execute("SELECT items FROM segments")}) > 1
    assert any(0 in numbers("q", items) for [items] in port.db.execute("SELECT items FROM segments"))
    assert port.db.execute("SELECT count(*) FROM recent").fetchone()[0]
    for query in ("the sea", "The of of word7", "e\u0301 \u00e9 unknown", "sea. sea word299\u2003the", "the", ""):
        ids, scores = store.word_scores(query)
        wanted = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        found = port.search(query)
        assert dict(found) == wanted
        assert [item for item, _ in found] == sorted(wanted, key=lambda item: (-wanted[item], -item))


def test_the_page_tells_digests_vectors_and_dates(store):
    port = Port(store.path)
    for title, text, origin, stored in port.db.execute("SELECT title, text, origin, digest FROM history"):
        assert digest(title, text, origin or "") == stored
    missing = store.without_vector("f" * 64, 50)
    vectors = np.random.default_rng(0).integers(-9, 9, (len(missing), 4)).astype(np.float32)
    store.put_vectors("f" * 64, missing, vectors)
    query = np.array([1, -2, 3, 4], np.float32)
    ids, scores = store.vector_scores("f" * 64, query)
    wanted = [item for _, item in sorted(zip(scores.tolist(), ids.tolist(), strict=True), reverse=True)]
    assert port.by_vector("f" * 64, query.tolist()) == wanted
    newest = port.db.execute("SELECT id FROM history ORDER BY date DESC, id DESC").fetchall()
    assert tuple(item for [item] in newest) == store.newest(10_000)


def test_the_page_shows_the_tables_of_a_store(store):
    page = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    copy = sqlite3.connect(":memory:")
    copy.executescript(shown)
    assert tables(copy) == tables(sqlite3.connect(store.path))
    assert copy.execute("SELECT * FROM totals").fetchall() == [(1, 0, 0)]


def tables(connection: sqlite3.Connection) -> dict[str, object]:
    names = [name for [name] in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'index')")]
    return {
        name: (
            connection.execute(f"PRAGMA table_info({name})").fetchall(),
            connection.execute(f"PRAGMA index_xinfo({name})").fetchall(),
        )
        for name in names
    }


def test_the_page_s_example_of_posting_lists_is_right():
    page = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (first|second) word \| `?([0-9a-f ]*)`? ?\| `([0-9a-f ]+)` \|$", page, re.MULTILINE)
    shown = {name: (bytes.fromhex(slots), bytes.fromhex(counts)) for name, slots, counts in rows}
    first, second = np.array([3, 9]), np.array([0, 1, 4, 5])
    assert shown["first"] == word_index.encode_list(first, np.array([1, 600]), 10)
    assert shown["second"] == word_index.encode_list(second, np.array([1, 1, 2, 2]), 10)

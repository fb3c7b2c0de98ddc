"""Keeps the search index of past texts in the store's file: which words are in which texts, changed text by text.

Texts come into `recent`, one row each. When there are many, they become a segment, whose rows hold one word's entries
each; when there are many small segments they become a larger one (O'Neil et al., 1996, the log-structured merge tree).
So a change writes little, and a search reads few rows. What is removed is removed from every row.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count, groupby

import numpy as np
from numpy.typing import NDArray

from edge_runtime.store.bm25 import tokenize
from edge_runtime.store.posting_lists import MAX_SLOTS, Postings, decode_list, encode_list

MAX_RECENT = 1024
MERGED_AT_ONCE = 8
GONE = 0
"""Stands in a segment's list of items where one was removed; ids of items begin at 1."""

_SEGMENT_BITS = 40  # a row of postings is `segment << 40 | word`
_WORD_ID = np.dtype("<u4")
_ITEM = np.dtype("<i8")
_COUNT = np.dtype("<u4")


def posting_id(segment: int, word: int) -> int:
    """The row with a word's entries in a segment."""
    return segment << _SEGMENT_BITS | word


def read_items(blob: bytes) -> NDArray[np.int64]:
    """Items of a segment by slot, or `GONE`: (size,)."""
    return np.frombuffer(blob, _ITEM)


def read_lengths(blob: bytes) -> NDArray[np.uint32]:
    """Words of each item of a segment, 0 where it is gone: (size,)."""
    return np.frombuffer(blob, _COUNT)


def read_recent(connection: sqlite3.Connection) -> tuple[NDArray[np.int64], Postings]:
    """Recent items (n,) in the order of their ids, and their words; slots are places among them."""
    rows = connection.execute("SELECT item, words, counts FROM recent ORDER BY item").fetchall()
    words = np.frombuffer(b"".join(words for _, words, _ in rows), _WORD_ID).astype(np.int64)
    counts = np.frombuffer(b"".join(counts for _, _, counts in rows), _COUNT).astype(np.int64)
    sizes = [len(words) // _WORD_ID.itemsize for _, words, _ in rows]
    slots = np.repeat(np.arange(len(rows)), sizes)
    return np.array([item for item, _, _ in rows], np.int64), Postings(words, slots, counts)


def add_to_index(connection: sqlite3.Connection, texts: Sequence[tuple[int, str]]) -> None:
    """Index items, in an open transaction.

    Args:
        connection: the store's.
        texts: items that are not in the index, and what of each is searched; any number, but they are held in memory.
    """
    if not texts:
        return
    items = np.array([item for item, _ in texts], np.int64)
    bags, words = _bags(texts)
    ids = _count_words(connection, words, np.bincount(bags.words, minlength=len(words)))
    bags = replace(bags, words=ids[bags.words])
    connection.execute("UPDATE totals SET items = items + ?, changes = changes + 1", (len(items),))
    [waiting] = connection.execute("SELECT count(*) FROM recent").fetchone()
    if waiting + len(items) < MAX_RECENT:
        bounds = np.searchsorted(bags.slots, np.arange(len(items) + 1)).tolist()
        stored_words, stored_counts = bags.words.astype(_WORD_ID), bags.counts.astype(_COUNT)
        connection.executemany(
            "INSERT INTO recent VALUES (?, ?, ?)",
            (
                (item, stored_words[start:end].tobytes(), stored_counts[start:end].tobytes())
                for item, start, end in zip(items.tolist(), bounds, bounds[1:], strict=False)
            ),
        )
        return
    recent, old = read_recent(connection)
    connection.execute("DELETE FROM recent")
    items = np.concatenate([recent, items])
    everything = Postings(
        np.concatenate([old.words, bags.words]),
        np.concatenate([old.slots, bags.slots + len(recent)]),
        np.concatenate([old.counts, bags.counts]),
    )
    for start in range(0, len(items), MAX_SLOTS):
        first, last = np.searchsorted(everything.slots, [start, start + MAX_SLOTS])
        part = Postings(
            everything.words[first:last], everything.slots[first:last] - start, everything.counts[first:last]
        )
        _write_segment(connection, items[start : start + MAX_SLOTS], part)
    _merge(connection)


def remove_from_index(connection: sqlite3.Connection, texts: Sequence[tuple[int, str]]) -> None:
    """Take items out of the index, in an open transaction.

    Args:
        connection: the store's.
        texts: items that are in the index, with the text that they were indexed by.

    Raises:
        ValueError: the index is damaged: it lacks what these texts put into it.
    """
    if not texts:
        return
    bags, words = _bags(texts)
    ids = _count_words(connection, words, -np.bincount(bags.words, minlength=len(words)))
    connection.execute("UPDATE totals SET items = items - ?, changes = changes + 1", (len(texts),))
    places = {}
    for place, (item, _) in enumerate(texts):
        if not connection.execute("DELETE FROM recent WHERE item = ?", (item,)).rowcount:
            places[item] = place
    for segment, stored in connection.execute("SELECT id, items FROM segments").fetchall() if places else ():
        items = read_items(stored)
        slots = np.flatnonzero(np.isin(items, list(places)))
        if len(slots):
            here = np.isin(bags.slots, [places[item] for item in items[slots].tolist()])
            _clear_slots(connection, segment, slots, np.unique(ids[bags.words[here]]).tolist())


def _bags(texts: Sequence[tuple[int, str]]) -> tuple[Postings, list[str]]:
    """The words of texts as numbers into a list; slots are the texts' places, and the entries are sorted by them."""
    words_of = [tokenize(text) for _, text in texts]
    numbers: defaultdict[str, int] = defaultdict(count().__next__)
    lengths = np.fromiter(map(len, words_of), np.int64, len(texts))
    words = np.fromiter(map(numbers.__getitem__, chain.from_iterable(words_of)), np.int64, int(lengths.sum()))
    keys = np.repeat(np.arange(len(texts)), lengths) * len(numbers) + words
    entries, counts = np.unique(keys, return_counts=True)
    slots, distinct = np.divmod(entries, max(len(numbers), 1))
    return Postings(distinct, slots, counts), list(numbers)


def _count_words(connection: sqlite3.Connection, words: Sequence[str], changes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Change how many items have each word; words that were in none get an id, those that are in none lose it.

    Returns:
        Ids of the words: (n,).
    """
    known = [connection.execute("SELECT id, items FROM words WHERE word = ?", (word,)).fetchone() for word in words]
    [last] = connection.execute("SELECT coalesce(max(id), 0) FROM words").fetchone()
    ids = np.empty(len(words), np.int64)
    new: list[tuple[int, str, int]] = []
    kept: list[tuple[int, int]] = []
    gone: list[tuple[int, int]] = []
    moved: Counter[int] = Counter()
    for place, (word, row, change) in enumerate(zip(words, known, changes.tolist(), strict=True)):
        if change + (row[1] if row else 0) < 0:
            raise ValueError("it has a word fewer times than its texts")
        if row is None:
            last += 1
            new.append((last, word, change))
        else:
            moved[row[1]] -= 1
            (kept if row[1] + change else gone).append((row[1] + change, row[0]))
        ids[place] = last if row is None else row[0]
    moved.update(items for _, _, items in new)
    moved.update(items for items, _ in kept)
    connection.executemany("INSERT INTO words VALUES (?, ?, ?)", new)
    connection.executemany("UPDATE words SET items = ? WHERE id = ?", kept)
    connection.executemany("DELETE FROM words WHERE id = ?", [(word_id,) for _, word_id in gone])
    connection.executemany(
        "INSERT INTO word_items VALUES (?, ?) ON CONFLICT (items) DO UPDATE SET words = words + excluded.words",
        [(items, many) for items, many in moved.items() if many],
    )
    connection.execute("DELETE FROM word_items WHERE words = 0")
    return ids


def _write_segment(connection: sqlite3.Connection, items: NDArray[np.int64], entries: Postings) -> None:
    """Write a segment of items; entries come in any order of words, but those of a word by slot."""
    segment = connection.execute(
        "INSERT INTO segments (items, lengths) VALUES (?, ?)",
        (items.astype(_ITEM).tobytes(), entries.lengths(len(items)).astype(_COUNT).tobytes()),
    ).lastrowid
    assert segment is not None
    postings = entries.by_word()
    starts = np.flatnonzero(np.diff(postings.words, prepend=-1))
    ends = np.append(starts, len(postings.words))[1:]

    def rows() -> Iterator[tuple[int, bytes, bytes]]:
        for word, start, end in zip(postings.words[starts].tolist(), starts.tolist(), ends.tolist(), strict=True):
            listed = encode_list(postings.slots[start:end], postings.counts[start:end], len(items))
            yield posting_id(segment, word), *listed

    connection.executemany("INSERT INTO postings VALUES (?, ?, ?)", rows())


def _clear_slots(connection: sqlite3.Connection, segment: int, slots: NDArray[np.intp], words: Iterable[int]) -> None:
    """Remove slots from a segment, and from the rows of the words that they have."""
    items, lengths = connection.execute("SELECT items, lengths FROM segments WHERE id = ?", (segment,)).fetchone()
    left, sizes = read_items(items).copy(), read_lengths(lengths).copy()
    left[slots], sizes[slots] = GONE, 0
    for word in words:
        row = posting_id(segment, word)
        stored = connection.execute("SELECT slots, counts FROM postings WHERE id = ?", (row,)).fetchone()
        places, counts = decode_list(*stored)
        keep = ~np.isin(places, slots)
        if keep.any():
            listed = encode_list(places[keep], counts[keep], len(left))
            connection.execute("UPDATE postings SET slots = ?, counts = ? WHERE id = ?", (*listed, row))
        else:
            connection.execute("DELETE FROM postings WHERE id = ?", (row,))
    if left.any():
        connection.execute(
            "UPDATE segments SET items = ?, lengths = ? WHERE id = ?", (left.tobytes(), sizes.tobytes(), segment)
        )
    else:
        connection.execute("DELETE FROM segments WHERE id = ?", (segment,))


def _merge(connection: sqlite3.Connection) -> None:
    """Put small segments together until fewer than `MERGED_AT_ONCE` of a magnitude are left."""
    while True:
        sizes = [
            (int(np.count_nonzero(read_items(items))), segment)
            for segment, items in connection.execute("SELECT id, items FROM segments").fetchall()
        ]
        for _, group in groupby(sorted(sizes), key=lambda entry: _magnitude(entry[0])):
            members, chosen, total = list(group), [], 0
            for size, segment in members:
                if total + size > MAX_SLOTS:
                    break
                chosen.append(segment)
                total += size
            if len(members) >= MERGED_AT_ONCE and len(chosen) > 1:
                _join_segments(connection, sorted(chosen))
                break
        else:
            return


def _magnitude(size: int) -> int:
    magnitude, limit = 0, MAX_RECENT * MERGED_AT_ONCE
    while size >= limit:
        magnitude, limit = magnitude + 1, limit * MERGED_AT_ONCE
    return magnitude


def _join_segments(connection: sqlite3.Connection, segments: Sequence[int]) -> None:
    nothing = np.zeros(0, np.int64)
    all_items, parts = [], [(nothing, nothing, nothing)]
    filled = 0
    for segment in segments:
        [stored] = connection.execute("SELECT items FROM segments WHERE id = ?", (segment,)).fetchone()
        items = read_items(stored)
        live = items != GONE
        new_slots = filled + np.cumsum(live) - 1
        first, last = posting_id(segment, 0), posting_id(segment + 1, 0)
        query = "SELECT id - ?, slots, counts FROM postings WHERE id >= ? AND id < ? ORDER BY id"
        for word, slots, counts in connection.execute(query, (first, first, last)):
            places, many = decode_list(slots, counts)
            parts.append((np.full(len(places), word), new_slots[places], many))
        connection.execute("DELETE FROM postings WHERE id >= ? AND id < ?", (first, last))
        connection.execute("DELETE FROM segments WHERE id = ?", (segment,))
        all_items.append(items[live])
        filled += int(live.sum())
    words, slots, many = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    _write_segment(connection, np.concatenate(all_items), Postings(words, slots, many))

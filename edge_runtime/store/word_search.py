"""Scores past texts by BM25 from the index in the store's file: as `edge_runtime.store.bm25` scores a list of texts."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_runtime.store.bm25 import EPSILON, K1, inverse_document_frequency, length_norms, mean_weight, tokenize
from edge_runtime.store.posting_lists import MAX_SLOTS, Postings, scattered
from edge_runtime.store.word_index import GONE, posting_id, read_items, read_lengths, read_recent


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot:
    """What every search needs of one state of the index.

    Attributes:
        changes: which state.
        items: (n,) int64 by place, `GONE` where an item was removed; segment by segment, recent items last.
        norms: (n,) float64, what BM25 adds to a count in the denominator: k1 (1 - b + b length / mean length).
        segments: id, first place and end of each.
        recent: words of the recent items, by word; slots are places.
        mean_weight: mean of all words' idf.
        total: items.
    """

    changes: int
    items: NDArray[np.int64]
    norms: NDArray[np.float64]
    segments: tuple[tuple[int, int, int], ...]
    recent: Postings
    mean_weight: float
    total: int


class WordSearch:
    """Searches one connection's index; what does not depend on the query is kept until the index changes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._kept: _Snapshot | None = None

    def scores(self, query: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Score all items, in an open transaction.

        Args:
            query: words that are in no item count nothing.

        Returns:
            Ids of all items (n,), in no particular order, and their scores (n,).
        """
        snapshot = self._snapshot()
        scores = np.zeros(len(snapshot.items))
        asked = Counter(word for word in tokenize(query) if _is_text(word))
        weights = self._weights(asked, snapshot)
        lists = self._lists(list(weights), snapshot)
        room = np.empty((2, min(len(scores), MAX_SLOTS)))
        bounds = np.searchsorted(snapshot.recent.words, [[word, word + 1] for word in weights] or [[0, 0]]).tolist()
        recent = dict(zip(weights, bounds, strict=False))
        for word, weight in weights.items():
            for (_, start, end), listed in zip(snapshot.segments, lists[word], strict=True):
                if listed is not None:
                    slots, counts = scattered(*listed)
                    _add(scores[start:end], snapshot.norms[start:end], slots, counts, weight, room)
            first, last = recent[word]
            if first < last:
                slots, counts = snapshot.recent.slots[first:last], snapshot.recent.counts[first:last]
                _add(scores, snapshot.norms, slots, counts, weight, room)
        if len(snapshot.items) == snapshot.total:
            return snapshot.items, scores
        live = snapshot.items != GONE
        return snapshot.items[live], scores[live]

    def _weights(self, asked: Counter[str], snapshot: _Snapshot) -> dict[int, float]:
        """Id of each word that is known, and its idf times how often it is asked for, in the order of the query."""
        weights = {}
        for word, times in asked.items():
            row = self._connection.execute("SELECT id, items FROM words WHERE word = ?", (word,)).fetchone()
            if row is not None:
                idf = inverse_document_frequency(row[1], snapshot.total)
                weights[row[0]] = times * (idf if idf >= 0 else EPSILON * snapshot.mean_weight)
        return weights

    def _lists(self, words: list[int], snapshot: _Snapshot) -> dict[int, list[tuple[bytes, bytes] | None]]:
        """Every word's rows, by segment; None where a segment has none."""
        ids = {word: [posting_id(segment, word) for segment, _, _ in snapshot.segments] for word in words}
        wanted = json.dumps([row for rows in ids.values() for row in rows])
        query = "SELECT id, slots, counts FROM postings WHERE id IN (SELECT value FROM json_each(?))"
        found = {row: (slots, counts) for row, slots, counts in self._connection.execute(query, (wanted,))}
        return {word: [found.get(row) for row in rows] for word, rows in ids.items()}

    def _snapshot(self) -> _Snapshot:
        execute = self._connection.execute
        total, changes = execute("SELECT items, changes FROM totals").fetchone()
        if self._kept is not None and self._kept.changes == changes:
            return self._kept
        items: list[NDArray[np.int64]] = []
        lengths: list[NDArray[np.integer]] = []
        segments, filled = [], 0
        for segment, stored_items, stored_lengths in execute("SELECT id, items, lengths FROM segments ORDER BY id"):
            items.append(read_items(stored_items))
            lengths.append(read_lengths(stored_lengths))
            segments.append((segment, filled, filled + len(items[-1])))
            filled += len(items[-1])
        recent_items, recent = read_recent(self._connection)
        items.append(recent_items)
        lengths.append(recent.lengths(len(recent_items)))
        places, sizes = np.concatenate(items), np.concatenate(lengths, dtype=np.int64)
        live = places != GONE
        norms = np.ones(len(places))
        norms[live] = length_norms(sizes[live])
        words_by_having = execute("SELECT items, words FROM word_items ORDER BY items").fetchall()
        self._kept = _Snapshot(
            changes,
            places,
            norms,
            tuple(segments),
            replace(recent, slots=recent.slots + filled).by_word(),
            mean_weight(words_by_having, total),
            total,
        )
        return self._kept


def _add(
    scores: NDArray[np.float64],
    norms: NDArray[np.float64],
    slots: NDArray[np.integer] | None,
    counts: NDArray[np.integer],
    weight: float,
    room: NDArray[np.float64],
) -> None:
    """Add one word's part to `scores`, at all places or at `slots`; `room` (2, n) is for what comes between.

    Fresh arrays of this size would take six times as long, for the system hands out their memory page by page.
    """
    part, whole = room[0, : len(counts)], room[1, : len(counts)]
    np.copyto(part, counts)
    if slots is None:
        np.add(part, norms, out=whole)
    else:
        np.take(norms, slots, out=whole, mode="clip")  # any other mode would make a copy first
        whole += part
    part /= whole
    part *= weight * (K1 + 1)
    if slots is None:
        scores += part
    else:
        np.add.at(scores, slots, part)


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True

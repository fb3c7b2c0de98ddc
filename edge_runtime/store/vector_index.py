"""Keeps an encoder's vectors of past texts in the store's file; a text's score is the dot product with a query's."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_FLOAT = np.dtype("<f4")
_READ_AT_ONCE = 4096


class VectorIndex:
    """One encoder's vectors, of one connection. What was read once is kept in memory, n * d * 4 bytes.

    All calls are for an open transaction.
    """

    def __init__(self, connection: sqlite3.Connection, fingerprint: str) -> None:
        self._connection = connection
        self._fingerprint = fingerprint
        self._state: tuple[int, int] | None = None
        self._rows = np.zeros(0, np.int64)
        self._items = np.zeros(0, np.int64)
        self._vectors = np.zeros((0, 0), np.float32)

    def missing(self, count: int) -> list[tuple[int, bytes, str, str, bool]]:
        """At most `count` items without a vector: id, digest, title, text, and whether the title is searched."""
        return self._connection.execute(
            "SELECT id, digest, title, text, title_counts FROM history WHERE NOT EXISTS (SELECT 1 FROM vectors "
            "WHERE encoder = ? AND item = history.id) ORDER BY id LIMIT ?",
            (self._encoder(), count),
        ).fetchall()

    def missing_count(self) -> int:
        """How many items have no vector."""
        query = "SELECT (SELECT items FROM totals) - (SELECT count(*) FROM vectors WHERE encoder = ?)"
        return int(self._connection.execute(query, (self._encoder(),)).fetchone()[0])

    def put(self, items: Sequence[tuple[int, bytes]], vectors: NDArray[np.float32]) -> None:
        """Store vectors (n, d) of items, each given by id and digest; those that have changed since are left out."""
        encoder = self._encoder()
        if not encoder:
            query = "INSERT INTO encoders (fingerprint) VALUES (?)"
            encoder = int(self._connection.execute(query, (self._fingerprint,)).lastrowid or 0)
        self._connection.executemany(
            "INSERT OR IGNORE INTO vectors (item, encoder, vector) "
            "SELECT id, ?, ? FROM history WHERE id = ? AND digest = ?",
            (
                (encoder, vector.astype(_FLOAT).tobytes(), item, digest)
                for (item, digest), vector in zip(items, vectors, strict=True)
            ),
        )

    def scores(self, query: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Score all items that have a vector.

        Args:
            query: (d,) float32.

        Returns:
            Ids (n,), in no particular order, and dot products (n,).
        """
        self._read(len(query))
        if not len(self._items):
            return self._items, np.zeros(0, np.float32)
        return self._items, self._vectors @ query

    def _encoder(self) -> int:
        query = "SELECT id FROM encoders WHERE fingerprint = ?"
        row = self._connection.execute(query, (self._fingerprint,)).fetchone()
        return int(row[0]) if row else 0  # ids begin at 1

    def _read(self, dimension: int) -> None:
        """Bring what is in memory up to date: rows never change, they come and go."""
        [elsewhere] = self._connection.execute("PRAGMA data_version").fetchone()
        state = (elsewhere, self._connection.total_changes)  # of other connections, and of this one
        if state == self._state:
            return
        encoder = self._encoder()
        listed = self._connection.execute("SELECT id FROM vectors WHERE encoder = ? ORDER BY id", (encoder,)).fetchall()
        rows = np.array(listed, np.int64).reshape(-1)
        if np.array_equal(rows, self._rows):
            self._state = state
            return
        kept = np.isin(self._rows, rows)
        old = int(kept.sum())
        items, vectors = np.empty(len(rows), np.int64), np.empty((len(rows), dimension), np.float32)
        items[:old] = self._items[kept]
        if old:
            vectors[:old] = self._vectors[kept]
        last = int(self._rows[-1]) if len(self._rows) else 0
        cursor = self._connection.execute(
            "SELECT item, vector FROM vectors WHERE encoder = ? AND id > ? ORDER BY id", (encoder, last)
        )
        while part := cursor.fetchmany(_READ_AT_ONCE):
            items[old : old + len(part)] = [item for item, _ in part]
            joined = np.frombuffer(b"".join(vector for _, vector in part), _FLOAT)
            vectors[old : old + len(part)] = joined.reshape(len(part), dimension)
            old += len(part)
        self._state, self._rows, self._items, self._vectors = state, rows, items, vectors

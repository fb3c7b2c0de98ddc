"""Keeps the user's profile and past texts on the device, in one SQLite file that only its owner can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_runtime.context import HistoryItem, PrivateContext
from edge_runtime.errors import RequestError
from edge_runtime.store.importing import read_import
from edge_runtime.store.item import NewItem, StoredItem, filled, iso_date, searched_text, storable
from edge_runtime.store.posting_lists import MAX_SLOTS
from edge_runtime.store.schema import item_digest
from edge_runtime.store.sqlite_file import StoreFile
from edge_runtime.store.vector_index import VectorIndex
from edge_runtime.store.word_index import add_to_index, remove_from_index
from edge_runtime.store.word_search import WordSearch

Progress: TypeAlias = Callable[[int, int], None]

_INDEXED_AT_ONCE = MAX_SLOTS  # items whose words are held in memory
_ASKED_AT_ONCE = 500
_COLUMNS = "id, title, text, date, origin, title_counts"


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import changed: history items `added`, those `known` before, and whether the profile was set."""

    added: int
    known: int
    profile: bool


@dataclass(frozen=True, slots=True)
class Unembedded:
    """A past text that an encoder has no vector of: what to embed, and a digest that tells whether it is still so."""

    id: int
    digest: bytes = field(repr=False)
    text: str = field(repr=False)


class ProfileStore:
    """The store. Every change is one transaction: after a crash or a power cut it is there as a whole or not at all.

    Several processes may use one file; an object belongs to one thread. What is removed is overwritten in the file.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a store, or make a new one, readable by its owner alone. One of an older version is brought up to date.

        Raises:
            StoreError: the file can't be opened, is damaged, is not a store, or was written by a newer version.
        """
        self._file = StoreFile(path)
        self._words = WordSearch(self._file.connection)
        self._vectors: dict[str, VectorIndex] = {}

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def profile(self) -> str:
        """The profile, "" where none was set."""
        with self._file.explained():
            row = self._file.execute("SELECT text FROM profile").fetchone()
        return str(row[0]) if row else ""

    def set_profile(self, text: str) -> None:
        """Replace the profile.

        Raises:
            StoreError: it can't be written.
        """
        with self._file.transaction():
            self._set_profile(storable("profile", text))

    @property
    def items(self) -> tuple[StoredItem, ...]:
        """All past texts, in the order they were added."""
        with self._file.explained():
            rows = self._file.execute(f"SELECT {_COLUMNS} FROM history ORDER BY id").fetchall()
        return tuple(_stored(*row) for row in rows)

    def __len__(self) -> int:
        """How many past texts there are."""
        with self._file.explained():
            [count] = self._file.execute("SELECT items FROM totals").fetchone()
        return int(count)

    def get(self, item_ids: Sequence[int]) -> tuple[StoredItem, ...]:
        """Some past texts, in the order of their ids here; those that are not there are left out."""
        found: dict[int, StoredItem] = {}
        with self._file.explained():
            for start in range(0, len(item_ids), _ASKED_AT_ONCE):
                part = item_ids[start : start + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT {_COLUMNS} FROM history WHERE id IN ({marks})"
                found.update((row[0], _stored(*row)) for row in self._file.execute(query, list(part)))
        return tuple(found[item_id] for item_id in item_ids if item_id in found)

    def add(self, title: str, text: str, date: str | None = None) -> int:
        """Add a past text.

        Args:
            title: the task it was written for.
            text: what the user wrote.
            date: when, as YYYY-MM-DD.

        Returns:
            Its id.

        Raises:
            RequestError: the text is empty or the date is none.
            StoreError: it can't be written.
        """
        item = NewItem(storable("title", title), filled("text", text), iso_date(date))
        with self._file.transaction(), self._file.sound():
            item_id = self._add(item)
            add_to_index(self._file.connection, [(item_id, item.searched)])
        return item_id

    def update(
        self, item_id: int, *, title: str | None = None, text: str | None = None, date: str | None = None
    ) -> None:
        """Change the parts of a past text that are given.

        Raises:
            RequestError: there is no such item, or a value is of the wrong form.
            StoreError: it can't be written.
        """
        new_title = None if title is None else storable("title", title)
        new_text = None if text is None else filled("text", text)
        new_date = iso_date(date)
        with self._file.transaction(), self._file.sound():
            old = self._row(item_id)
            new = NewItem(
                old.title if new_title is None else new_title,
                old.text if new_text is None else new_text,
                old.date if new_date is None else new_date,
                old.origin,
                old.title_counts,
            )
            self._file.execute(
                "UPDATE history SET title = ?, text = ?, date = ?, digest = ? WHERE id = ?",
                (new.title, new.text, new.date, item_digest(new.title, new.text, new.origin), item_id),
            )
            if new.searched != old.searched:
                remove_from_index(self._file.connection, [(item_id, old.searched)])
                add_to_index(self._file.connection, [(item_id, new.searched)])
                self._file.execute("DELETE FROM vectors WHERE item = ?", (item_id,))
        self._file.leave_no_copy()

    def remove(self, *item_ids: int) -> None:
        """Remove past texts, all or none.

        Raises:
            RequestError: there is no such item.
            StoreError: it can't be written.
        """
        with self._file.transaction(), self._file.sound():
            gone = [(item_id, self._row(item_id).searched) for item_id in dict.fromkeys(item_ids)]
            remove_from_index(self._file.connection, gone)
            for item_id, _ in gone:
                self._file.execute("DELETE FROM history WHERE id = ?", (item_id,))
                self._file.execute("DELETE FROM vectors WHERE item = ?", (item_id,))
        self._file.leave_no_copy()

    def import_file(
        self, path: Path | str, *, task: str | None = None, user: str | None = None, progress: Progress | None = None
    ) -> Imported:
        """Take over what a file says of one user, all or nothing; doing it again changes nothing.

        Args:
            path: a request file, a user file with `profile` and `history` at the top (as `show --json` prints), LaMP
                questions or CoGenesis records.
            task: of LaMP questions, "LaMP-5".
            user: whose, where the file has several users.
            progress: called with items done and items in all.

        Raises:
            RequestError: the file is not one, or has no such user.
            StoreError: it can't be written.
        """
        incoming = read_import(path, task, user)
        return self.import_items(incoming.items, incoming.profile, progress)

    def import_items(self, items: Sequence[NewItem], profile: str = "", progress: Progress | None = None) -> Imported:
        """Add past texts that are not known yet, all or nothing; doing it again changes nothing.

        Args:
            items: known is what agrees in title, text and origin; the values must be those that `add` takes.
            profile: replaces the present one unless it is empty.
            progress: called with items done and items in all.

        Raises:
            StoreError: it can't be written.
        """
        added = 0
        with self._file.transaction(), self._file.sound():
            if profile:
                self._set_profile(profile)
            for start in range(0, len(items), _INDEXED_AT_ONCE):
                part = items[start : start + _INDEXED_AT_ONCE]
                new = [(self._add(item), item.searched) for item in part if not self._knows(item)]
                add_to_index(self._file.connection, new)
                added += len(new)
                if progress is not None:
                    progress(start + len(part), len(items))
        return Imported(added, len(items) - added, bool(profile))

    def context(self) -> PrivateContext:
        """Profile and past texts as the prompt takes them."""
        with self._file.reading():
            profile, items = self.profile, self.items
        return PrivateContext(profile, tuple(HistoryItem(item.title, item.text) for item in items))

    def word_scores(self, query: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """BM25 scores of all past texts, as `edge_runtime.store.bm25` gives them.

        Returns:
            Ids (n,), in no particular order, and scores (n,).
        """
        with self._file.reading(), self._file.sound():
            return self._words.scores(query)

    def vector_scores(self, encoder: str, query: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Dot products of a query's vector with those of all past texts that have one.

        Args:
            encoder: fingerprint of the encoder that made them.
            query: (d,) float32.

        Returns:
            Ids (n,), in no particular order, and dot products (n,).
        """
        with self._file.reading(), self._file.sound():
            return self._vectors_of(encoder).scores(query)

    def without_vector(self, encoder: str, count: int) -> list[Unembedded]:
        """At most `count` past texts that the encoder has not embedded."""
        with self._file.reading():
            rows = self._vectors_of(encoder).missing(count)
        return [
            Unembedded(item_id, digest, searched_text(title, text, title_counts))
            for item_id, digest, title, text, title_counts in rows
        ]

    def count_without_vector(self, encoder: str) -> int:
        """How many past texts the encoder has not embedded."""
        with self._file.reading():
            return self._vectors_of(encoder).missing_count()

    def put_vectors(self, encoder: str, items: Sequence[Unembedded], vectors: NDArray[np.float32]) -> None:
        """Store vectors (n, d) of past texts; of those that were changed or removed in the meantime, none is stored.

        Raises:
            StoreError: they can't be written.
        """
        with self._file.transaction():
            self._vectors_of(encoder).put([(item.id, item.digest) for item in items], vectors)

    def keep_vectors_of(self, encoders: Sequence[str]) -> int:
        """Remove the vectors of all encoders but some, given by their fingerprints.

        Returns:
            How many were removed.

        Raises:
            StoreError: they can't be removed.
        """
        with self._file.transaction():
            marks = ",".join("?" * len(encoders))
            others = f"encoder NOT IN (SELECT id FROM encoders WHERE fingerprint IN ({marks}))"
            removed = self._file.execute(f"DELETE FROM vectors WHERE {others}", list(encoders)).rowcount
            self._file.execute(f"DELETE FROM encoders WHERE fingerprint NOT IN ({marks})", list(encoders))
        self._vectors.clear()
        return removed

    def newest(self, count: int) -> tuple[int, ...]:
        """Ids of at most `count` past texts: by date, newest first, none last; of equal ones the last added first."""
        query = "SELECT id FROM history ORDER BY date DESC, id DESC LIMIT ?"
        with self._file.explained():
            return tuple(row[0] for row in self._file.execute(query, (count,)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> ProfileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_profile(self, text: str) -> None:
        self._file.execute("INSERT OR REPLACE INTO profile (id, text) VALUES (1, ?)", (text,))

    def _add(self, item: NewItem) -> int:
        digest = item_digest(item.title, item.text, item.origin)
        cursor = self._file.execute(
            "INSERT INTO history (title, text, date, origin, title_counts, digest) VALUES (?, ?, ?, ?, ?, ?)",
            (item.title, item.text, item.date, item.origin, item.title_counts, digest),
        )
        return int(cursor.lastrowid or 0)

    def _knows(self, item: NewItem) -> bool:
        digest = item_digest(item.title, item.text, item.origin)
        return bool(self._file.execute("SELECT 1 FROM history WHERE digest = ?", (digest,)).fetchone())

    def _row(self, item_id: int) -> NewItem:
        query = "SELECT title, text, date, origin, title_counts FROM history WHERE id = ?"
        row = self._file.execute(query, (item_id,)).fetchone()
        if row is None:
            raise self._unknown(item_id)
        title, text, date, origin, title_counts = row
        return NewItem(title, text, date, origin, bool(title_counts))

    def _vectors_of(self, encoder: str) -> VectorIndex:
        return self._vectors.setdefault(encoder, VectorIndex(self._file.connection, encoder))

    def _unknown(self, item_id: int) -> RequestError:
        return RequestError(f"There is no past text with id {item_id}: {self.path}. `cogenesis store show` lists them.")


def _stored(item_id: int, title: str, text: str, date: str | None, origin: str | None, title_counts: int) -> StoredItem:
    return StoredItem(item_id, title, text, date, origin, bool(title_counts))

"""Stores the user's profile and past texts on the device, in one SQLite file that only its owner can read."""

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

_INDEXED_AT_ONCE = MAX_SLOTS  # bounds the words held in memory
_ASKED_AT_ONCE = 500
_COLUMNS = "id, title, text, date, origin, title_counts"


@dataclass(frozen=True, slots=True)
class Imported:
    """Result of an import: items `added`, items already `known`, and whether it set the profile."""

    added: int
    known: int
    profile: bool


@dataclass(frozen=True, slots=True)
class Unembedded:
    """A past text without a vector of an encoder: the text to embed, and a digest to detect later changes."""

    id: int
    digest: bytes = field(repr=False)
    text: str = field(repr=False)


class ProfileStore:
    """The store. Every change is one transaction, so a crash or power cut leaves it complete or undone.

    Several processes may use one file; an object belongs to one thread. Data that are removed or
    replaced are overwritten in the file.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a store or create one that only its owner can read. Stores of older versions are upgraded.

        Raises:
            StoreError: the file can't be opened, is damaged, is not a store, or was written by a newer version.
        """
        self._file = StoreFile(path)
        self._words = WordSearch(self._file.connection)
        self._vectors: dict[str, VectorIndex] = {}

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self._file.path

    @property
    def profile(self) -> str:
        """The profile; "" if none was set."""
        with self._file.explained():
            row = self._file.execute("SELECT text FROM profile").fetchone()
        return str(row[0]) if row else ""

    def set_profile(self, text: str) -> None:
        """Replace the profile.

        Raises:
            StoreError: the store can't be written.
        """
        with self._file.transaction():
            self._set_profile(storable("profile", text))
        self._file.leave_no_copy()

    @property
    def items(self) -> tuple[StoredItem, ...]:
        """All past texts, in the order they were added."""
        with self._file.explained():
            rows = self._file.execute(f"SELECT {_COLUMNS} FROM history ORDER BY id").fetchall()
        return tuple(_stored(*row) for row in rows)

    def __len__(self) -> int:
        """Return the number of past texts."""
        with self._file.explained():
            [count] = self._file.execute("SELECT items FROM totals").fetchone()
        return int(count)

    def get(self, item_ids: Sequence[int]) -> tuple[StoredItem, ...]:
        """Return the past texts with these ids, in this order; missing ones are left out."""
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
            title: the task that the text was written for.
            text: the user's text.
            date: date of the text as YYYY-MM-DD, or None.

        Returns:
            The id of the text.

        Raises:
            RequestError: the text is empty or the date is malformed.
            StoreError: the store can't be written.
        """
        item = NewItem(storable("title", title), filled("text", text), iso_date(date))
        with self._file.transaction(), self._file.sound():
            item_id = self._add(item)
            add_to_index(self._file.connection, [(item_id, item.searched)])
        return item_id

    def update(
        self, item_id: int, *, title: str | None = None, text: str | None = None, date: str | None = None
    ) -> None:
        """Change the given parts of a past text.

        Raises:
            RequestError: there is no such item, or a value is malformed.
            StoreError: the store can't be written.
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
            RequestError: one of the items does not exist.
            StoreError: the store can't be written.
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
        """Import one user's data from a file, all or nothing; a repeated import changes nothing.

        Args:
            path: a request file, a user file with `profile` and `history` at the top level (as `cogenesis store show`
                prints them), LaMP questions or CoGenesis records.
            task: LaMP task of the questions, such as "LaMP-5".
            user: the user to import if the file has several.
            progress: called with the items done and the total.

        Raises:
            RequestError: the file is of another kind, or lacks the user.
            StoreError: the store can't be written.
        """
        incoming = read_import(path, task, user)
        return self.import_items(incoming.items, incoming.profile, progress)

    def import_items(self, items: Sequence[NewItem], profile: str = "", progress: Progress | None = None) -> Imported:
        """Add past texts that are not stored yet, all or nothing; a repeated import changes nothing.

        Args:
            items: the texts, with values that `add` accepts. A text is known if title, text and origin are equal.
            profile: replaces the stored profile unless it is empty.
            progress: called with the items done and the total.

        Raises:
            StoreError: the store can't be written.
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
        if profile:
            self._file.leave_no_copy()
        return Imported(added, len(items) - added, bool(profile))

    def context(self) -> PrivateContext:
        """Return profile and past texts as the prompt's context."""
        with self._file.reading():
            profile, items = self.profile, self.items
        return PrivateContext(profile, tuple(HistoryItem(item.title, item.text) for item in items))

    def word_scores(self, query: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the BM25 scores of all past texts, as `edge_runtime.store.bm25` defines them.

        Returns:
            Ids (n,), in no particular order, and scores (n,).
        """
        with self._file.reading(), self._file.sound():
            return self._words.scores(query)

    def vector_scores(self, encoder: str, query: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the dot products of a query's vector with the vectors of all past texts that have one.

        Args:
            encoder: fingerprint of the encoder of these vectors.
            query: (d,) float32.

        Returns:
            Ids (n,), in no particular order, and dot products (n,).
        """
        with self._file.reading(), self._file.sound():
            return self._vectors_of(encoder).scores(query)

    def without_vector(self, encoder: str, count: int) -> list[Unembedded]:
        """Return at most `count` past texts that the encoder has not embedded."""
        with self._file.reading():
            rows = self._vectors_of(encoder).missing(count)
        return [
            Unembedded(item_id, digest, searched_text(title, text, title_counts))
            for item_id, digest, title, text, title_counts in rows
        ]

    def count_without_vector(self, encoder: str) -> int:
        """Return the number of past texts that the encoder has not embedded."""
        with self._file.reading():
            return self._vectors_of(encoder).missing_count()

    def put_vectors(self, encoder: str, items: Sequence[Unembedded], vectors: NDArray[np.float32]) -> None:
        """Store vectors (n, d) of past texts, except of texts that were changed or removed in the meantime.

        Raises:
            StoreError: the store can't be written.
        """
        with self._file.transaction():
            self._vectors_of(encoder).put([(item.id, item.digest) for item in items], vectors)

    def keep_vectors_of(self, encoders: Sequence[str]) -> int:
        """Remove all vectors except those of the encoders with these fingerprints.

        Returns:
            The number of removed vectors.

        Raises:
            StoreError: the store can't be written.
        """
        with self._file.transaction():
            marks = ",".join("?" * len(encoders))
            others = f"encoder NOT IN (SELECT id FROM encoders WHERE fingerprint IN ({marks}))"
            removed = self._file.execute(f"DELETE FROM vectors WHERE {others}", list(encoders)).rowcount
            self._file.execute(f"DELETE FROM encoders WHERE fingerprint NOT IN ({marks})", list(encoders))
        self._vectors.clear()
        self._file.leave_no_copy()
        return removed

    def newest(self, count: int) -> tuple[int, ...]:
        """Return the ids of at most `count` past texts, newest date first, undated last; ties by last added first."""
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

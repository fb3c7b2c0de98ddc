"""Keeps the user's profile and past texts on the device, in one SQLite file that only its owner can read."""

from __future__ import annotations

import datetime
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.errors import RequestError, StoreError
from edge_runtime.privacy import HistoryItem, PrivateContext
from edge_runtime.request import load_json, parse_context

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x436F4765  # "CoGe": tells our files from other SQLite files
_SQLITE_MAGIC = b"SQLite format 3\0"
_BUSY_SECONDS = 10.0

_SCHEMA = (
    "CREATE TABLE profile (id INTEGER PRIMARY KEY CHECK (id = 1), text TEXT NOT NULL)",
    """CREATE TABLE history (
        id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, text TEXT NOT NULL, date TEXT)""",
)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """A past text as stored: `id` never names another one later; `date` is ISO 8601 (YYYY-MM-DD) or None."""

    id: int
    title: str = field(repr=False)
    text: str = field(repr=False)
    date: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import changed: history items `added`, those `known` before, and whether the profile was set."""

    added: int
    known: int
    profile: bool


class ProfileStore:
    """The store. Every change is one transaction: after a crash or a power cut it is there as a whole or not at all.

    Several processes may use one file; an object belongs to one thread. What is removed is overwritten in the file.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a store, or make a new one, readable by its owner alone.

        Raises:
            StoreError: the file can't be opened, is damaged, is not a store, or was written by a newer version.
        """
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # SQLite gives its side files (-wal, -shm) the mode of the main one.
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                start = os.read(descriptor, len(_SQLITE_MAGIC))
            finally:
                os.close(descriptor)
            # SQLite takes a short file of another kind for an empty database and would overwrite it.
            if start not in (b"", _SQLITE_MAGIC):
                raise StoreError(f"This is not a profile store: {self.path}. Choose another --store file.")
            if self.path.stat().st_mode & 0o077:
                self.path.chmod(0o600)
        except OSError as error:
            raise StoreError(
                f"The profile store can't be opened: {self.path} ({error.strerror}). Choose another --store file."
            ) from None
        with self._explained():
            # Transactions are opened and closed by `_transaction` alone.
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    @property
    def profile(self) -> str:
        """The profile, "" where none was set."""
        with self._explained():
            row = self._connection.execute("SELECT text FROM profile").fetchone()
        return str(row[0]) if row else ""

    def set_profile(self, text: str) -> None:
        """Replace the profile.

        Raises:
            StoreError: it can't be written.
        """
        with self._transaction():
            self._set_profile(_storable("profile", text))

    @property
    def items(self) -> tuple[StoredItem, ...]:
        """All past texts, in the order they were added."""
        with self._explained():
            rows = self._connection.execute("SELECT id, title, text, date FROM history ORDER BY id").fetchall()
        return tuple(StoredItem(*row) for row in rows)

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
        row = (_storable("title", title), _filled("text", text), _iso_date(date))
        with self._transaction():
            return self._add(*row)

    def update(
        self, item_id: int, *, title: str | None = None, text: str | None = None, date: str | None = None
    ) -> None:
        """Change the parts of a past text that are given.

        Raises:
            RequestError: there is no such item, or a value is of the wrong form.
            StoreError: it can't be written.
        """
        values = {
            "title": None if title is None else _storable("title", title),
            "text": None if text is None else _filled("text", text),
            "date": _iso_date(date),
        }
        with self._transaction():
            changed = self._connection.execute(
                "UPDATE history SET title = coalesce(:title, title), text = coalesce(:text, text), "
                "date = coalesce(:date, date) WHERE id = :id",
                {**values, "id": item_id},
            ).rowcount
            if not changed:
                raise self._unknown(item_id)

    def remove(self, *item_ids: int) -> None:
        """Remove past texts, all or none.

        Raises:
            RequestError: there is no such item.
            StoreError: it can't be written.
        """
        with self._transaction():
            for item_id in dict.fromkeys(item_ids):
                if not self._connection.execute("DELETE FROM history WHERE id = ?", (item_id,)).rowcount:
                    raise self._unknown(item_id)
        with self._explained():
            # The log still holds the text; folding it in and cutting it off leaves no copy.
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def import_file(self, path: Path | str) -> Imported:
        """Take over the private context of a JSON file, all or nothing; doing it again changes nothing.

        Args:
            path: a request file, or a user file with `profile` and `history` at the top (as `show --json` prints).
                A history item may have a `date`.

        Raises:
            RequestError: the file is not one.
            StoreError: it can't be written.
        """
        body = load_json(path)
        if not isinstance(body, dict) or not {"context", "profile", "history"} & body.keys():
            raise RequestError(
                f"There is nothing to import: {path} has no context, profile or history. Choose a request or user file."
            )
        prefix, value = ("context", body["context"]) if "context" in body else ("", body)
        context = parse_context(value, path, prefix)
        dates = [_iso_date(item.get("date")) for item in (value or {}).get("history") or ()]
        added = 0
        with self._transaction():
            if context.profile:
                self._set_profile(context.profile)
            for item, date in zip(context.history, dates, strict=True):
                known = self._connection.execute(
                    "SELECT 1 FROM history WHERE title = ? AND text = ?", (item.title, item.text)
                ).fetchone()
                if not known:
                    self._add(item.title, item.text, date)
                    added += 1
        return Imported(added, len(context.history) - added, bool(context.profile))

    def context(self) -> PrivateContext:
        """Profile and past texts as the prompt takes them."""
        with self._explained():
            self._connection.execute("BEGIN")
            try:
                profile, items = self.profile, self.items
            finally:
                self._connection.execute("COMMIT")
        return PrivateContext(profile, tuple(HistoryItem(item.title, item.text) for item in items))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> ProfileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA secure_delete = ON").fetchall()
        execute("PRAGMA synchronous = FULL")
        if self._version() == (0, 0) and not execute("SELECT 1 FROM sqlite_master").fetchone():
            execute("PRAGMA journal_mode = WAL").fetchall()
            with self._transaction():
                if not execute("SELECT 1 FROM sqlite_master").fetchone():  # another process may have been quicker
                    for statement in _SCHEMA:
                        execute(statement)
                    execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        application, version = self._version()
        if application != _APPLICATION_ID:
            raise StoreError(f"This is not a profile store: {self.path}. Choose another --store file.")
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"The profile store was written by a newer version: {self.path} (schema {version}, this program reads "
                f"{SCHEMA_VERSION}). Update cogenesis-edge."
            )

    def _version(self) -> tuple[int, int]:
        [application] = self._connection.execute("PRAGMA application_id").fetchone()
        [version] = self._connection.execute("PRAGMA user_version").fetchone()
        return application, version

    def _set_profile(self, text: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO profile (id, text) VALUES (1, ?)", (text,))

    def _add(self, title: str, text: str, date: str | None) -> int:
        cursor = self._connection.execute(
            "INSERT INTO history (title, text, date) VALUES (?, ?, ?)", (title, text, date)
        )
        return int(cursor.lastrowid or 0)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OverflowError:
            raise RequestError(f"There is no past text with an id so large: {self.path}.") from None
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"The profile store can't be used: {self.path} ({error}). "
                "Check its permissions and the free space, and that no other program holds it."
            ) from None
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"The profile store is damaged or is not one: {self.path} ({error}). Restore a copy of the file."
            ) from None

    def _unknown(self, item_id: int) -> RequestError:
        return RequestError(f"There is no past text with id {item_id}: {self.path}. `cogenesis store show` lists them.")


def _storable(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"This can't be stored: the {name} holds half of a surrogate pair. Remove it.") from None
    return text


def _filled(name: str, text: str) -> str:
    if not text.strip():
        raise RequestError(f"This can't be stored: the {name} is empty. Give some.")
    return _storable(name, text)


def _iso_date(value: object) -> str | None:
    if value is None:
        return None
    try:
        return datetime.date.fromisoformat(value).isoformat()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RequestError("This can't be stored: the date is not of the form YYYY-MM-DD. Correct it.") from None

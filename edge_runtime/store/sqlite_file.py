"""The SQLite file of a profile store: opened for its owner alone, changed in transactions, failures as our errors."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.errors import RequestError, StoreError
from edge_runtime.store.schema import APPLICATION_ID, SCHEMA_VERSION, create_tables, move_to_version_2

_SQLITE_MAGIC = b"SQLite format 3\0"
_BUSY_SECONDS = 10.0


class StoreFile:
    """An open file with the tables of `store_schema`; several processes may have it open, an object is one thread's."""

    def __init__(self, path: Path | str) -> None:
        """Open the file, or make a new one; one of an older version is brought up to date.

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
        with self.explained():
            # Transactions are opened and closed by `transaction` and `reading` alone.
            self.connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            with self.explained():
                self._prepare()
        except BaseException:
            self.connection.close()
            raise

    def execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.connection.execute(statement, values)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def leave_no_copy(self) -> None:
        """Overwrite what was removed: the log still holds it; folding it in and cutting it off leaves no copy."""
        with self.explained():
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """All changes of the block, or none where it ends in an error.

        Raises:
            StoreError: they can't be written.
        """
        with self.explained():
            self.connection.execute(begin)
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One state of the file for all reads."""
        with self.transaction("BEGIN"):
            yield

    @contextmanager
    def sound(self) -> Iterator[None]:
        """Turn what reading bytes of the wrong length or kind raises into a `StoreError`."""
        try:
            yield
        except (ValueError, IndexError, TypeError) as error:
            raise StoreError(
                f"The profile store's index is damaged: {self.path} ({error}). Restore a copy of the file."
            ) from None

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what SQLite raises into a `StoreError`."""
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

    def _prepare(self) -> None:
        execute = self.connection.execute
        execute("PRAGMA secure_delete = ON").fetchall()
        execute("PRAGMA synchronous = FULL")
        if self._version() == (0, 0) and not execute("SELECT 1 FROM sqlite_master").fetchone():
            execute("PRAGMA journal_mode = WAL").fetchall()
            with self.transaction():
                if not execute("SELECT 1 FROM sqlite_master").fetchone():  # another process may have been quicker
                    create_tables(self.connection)
        application, version = self._version()
        if application != APPLICATION_ID:
            raise StoreError(f"This is not a profile store: {self.path}. Choose another --store file.")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"The profile store was written by a newer version: {self.path} (schema {version}, this program reads "
                f"{SCHEMA_VERSION}). Update cogenesis-edge."
            )
        if version < SCHEMA_VERSION:
            with self.transaction():
                if self._version()[1] < SCHEMA_VERSION:  # another process may have been quicker
                    move_to_version_2(self.connection)

    def _version(self) -> tuple[int, int]:
        [application] = self.connection.execute("PRAGMA application_id").fetchone()
        [version] = self.connection.execute("PRAGMA user_version").fetchone()
        return application, version

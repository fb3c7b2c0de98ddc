"""Opens the SQLite file of a profile store: access for its owner only, changes in transactions, our own errors."""

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
    """An open file with the tables of `edge_runtime.store.schema`.

    Several processes may open one file; an object belongs to one thread.
    """

    def __init__(self, path: Path | str) -> None:
        """Open the file or create one; files of older versions are upgraded.

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
            # SQLite mistakes a short file of another kind for an empty database and would overwrite it.
            if start not in (b"", _SQLITE_MAGIC):
                raise StoreError(f"This is not a profile store: {self.path}. Choose another file.")
            if self.path.stat().st_mode & 0o077:
                self.path.chmod(0o600)
        except OSError as error:
            raise StoreError(
                f"The profile store can't be opened: {self.path} ({error.strerror}). Choose another file."
            ) from None
        with self.explained():
            # Only `transaction` and `reading` begin and end transactions.
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
        """Remove the last copies of deleted data: checkpoint and truncate the write-ahead log, which still has them."""
        with self.explained():
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """Commit all changes of the block, or roll them back if it raises.

        Raises:
            StoreError: the changes can't be written.
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
        """Give all reads in the block the same state of the file."""
        with self.transaction("BEGIN"):
            yield

    @contextmanager
    def sound(self) -> Iterator[None]:
        """Turn exceptions from malformed bytes in the index into a `StoreError`."""
        try:
            yield
        except (ValueError, IndexError, TypeError) as error:
            raise StoreError(
                f"The profile store's index is damaged: {self.path} ({error}). Restore a copy of the file."
            ) from None

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn SQLite's exceptions into a `StoreError`, or a `RequestError` if an id is too large."""
        try:
            yield
        except OverflowError:
            raise RequestError(f"No past text has an id so large: {self.path}. Check the id.") from None
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
            raise StoreError(f"This is not a profile store: {self.path}. Choose another file.")
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

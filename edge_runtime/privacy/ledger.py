"""The egress ledger: one JSON line for every message that leaves the device or comes back."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from edge_runtime.errors import LedgerError

Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One message.

    Attributes:
        time: UTC, ISO 8601 with microseconds.
        direction: "up" left the device, "down" came back.
        kind: "info", "open", "verify", "sketch" or "answer".
        bytes: length of the encoded message (without gRPC's and TLS's framing).
        content: for "up", every field of the message: the exact text or token ids that left.
    """

    time: str
    direction: Direction
    kind: str
    bytes: int
    content: Mapping[str, Any] = field(default_factory=dict)


class Ledger:
    """Appends entries to memory and, where a path is given, to a JSON Lines file that only its owner can read.

    An "up" entry is written and flushed before its message leaves; where that fails, nothing leaves.
    Safe to use from several threads.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        """Open the ledger.

        Args:
            path: JSON Lines file to append to; None keeps the ledger in memory alone.

        Raises:
            LedgerError: the file can't be opened for appending.
        """
        self.path = Path(path) if path is not None else None
        self._entries: list[LedgerEntry] = []
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._torn = False  # the file ends in the middle of a line, after a crash or on a full disk
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Unbuffered: a line that could not be written must not follow later, when its message never left.
                self._file = FileIO(os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+")
                self._torn = _prepare(self._file, self.path)
            except OSError as error:
                raise LedgerError(
                    f"The ledger can't be written: {self.path} ({error.strerror}). Choose another --ledger file."
                ) from error

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """All entries of this ledger object, oldest first."""
        with self._lock:
            return tuple(self._entries)

    def record(self, direction: Direction, kind: str, size: int, content: Mapping[str, Any] | None = None) -> None:
        """Append one entry and flush it.

        Raises:
            LedgerError: the entry could not be written; the message must not leave.
        """
        entry = LedgerEntry(datetime.now(UTC).isoformat(timespec="microseconds"), direction, kind, size, content or {})
        with self._lock:
            if self._file is not None:
                try:
                    self._append(self._file, json.dumps(asdict(entry), ensure_ascii=False).encode() + b"\n")
                except (OSError, ValueError) as error:
                    raise LedgerError(
                        f"The ledger can't be written: {self.path} ({error}). Nothing was sent; free some space."
                    ) from error
            self._entries.append(entry)

    def _append(self, file: FileIO, line: bytes) -> None:
        rest = memoryview(b"\n" + line if self._torn else line)
        self._torn = True
        while rest:
            rest = rest[file.write(rest) :]
        self._torn = False

    def bytes_moved(self, direction: Direction) -> int:
        """Sum of the message bytes in one direction."""
        with self._lock:
            return sum(entry.bytes for entry in self._entries if entry.direction == direction)

    def close(self) -> None:
        """Close the file; entries in memory stay."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _prepare(file: FileIO, path: Path) -> bool:
    """Close the file to everybody but its owner; return whether its last line is incomplete."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        return False
    if status.st_mode & 0o077:
        path.chmod(0o600)
    if status.st_size == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"

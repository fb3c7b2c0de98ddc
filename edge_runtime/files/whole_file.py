"""Writes a file of any size atomically: a reader finds the old file or the complete new one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from edge_runtime.files.staged_directory import usual_mode, write_error


def write_whole_file(path: Path, content: bytes) -> None:
    """Write a file atomically; its directory is created if missing.

    Raises:
        WriteError: the file can't be written; an existing file is unchanged.
    """
    with _usual_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Provide a text file that replaces `path` when the block ends without an error.

    Args:
        path: path of the file; its directory is created if missing.

    Yields:
        A UTF-8 text file, open for writing.

    Raises:
        WriteError: the file can't be written; an existing file is unchanged.
    """
    with _usual_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file


@contextmanager
def private_file(path: Path) -> Iterator[Path]:
    """Give a file of mode 0600 that takes the place of `path` when the block ends without an error.

    Args:
        path: of the file; its directory is there.

    Yields:
        An empty file beside it, to write to.

    Raises:
        OSError: it can't be written; what was there before stays.
    """
    with _successor(path, 0o600) as temporary:
        yield temporary


@contextmanager
def _usual_file(path: Path) -> Iterator[Path]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _successor(path, usual_mode(0o666)) as temporary:
            yield temporary
    except OSError as error:
        raise write_error(error, path) from None


@contextmanager
def _successor(path: Path, mode: int) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # of mode 0600 while it is written
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

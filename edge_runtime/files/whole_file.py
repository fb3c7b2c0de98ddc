"""Writes a file of any size all at once: whoever looks for it finds the old one, or the new one as a whole."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from edge_runtime.files.staged_directory import write_error


def write_whole_file(path: Path, content: bytes) -> None:
    """Put a file with this content in the place of `path`; its directory is made.

    Raises:
        WriteError: it can't be written; what was there before stays.
    """
    with _successor(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Give a text file that takes the place of `path` when the block ends without an error.

    Args:
        path: of the file; its directory is made.

    Yields:
        A file to write to, UTF-8.

    Raises:
        WriteError: it can't be written; what was there before stays.
    """
    with _successor(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
        yield text
        text.detach()


@contextmanager
def _successor(path: Path) -> Iterator[BinaryIO]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(error, path) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Reads files out of zip files that others made: no more than expected, and nothing of them reaches the disk."""

from __future__ import annotations

import zipfile
import zlib

from personalization.errors import DataError

ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What Python raises where a zip file is damaged, encrypted, or packed in a way that it does not know."""


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int, where: str) -> bytes:
    """Read one file.

    Args:
        archive: that it is in.
        member: which.
        most: bytes that it may have; what the archive says of its size need not be true.
        where: what to call it in messages.

    Raises:
        DataError: it has more.
        OSError: it can't be read.
        ZIP_DAMAGE: it is damaged.
    """
    with archive.open(member) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"The file is larger than {most >> 20} MB: {where}. It is none that belongs here.")
    return content

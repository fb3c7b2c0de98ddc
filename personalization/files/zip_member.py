"""Reads files from untrusted zip archives: size-limited, and in memory only."""

from __future__ import annotations

import zipfile
import zlib

from personalization.errors import DataError

ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""Raised by Python for a zip file that is damaged, encrypted, or compressed with an unsupported method."""


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int, where: str) -> bytes:
    """Read one file.

    Args:
        archive: the archive.
        member: the file in the archive.
        most: maximum size in bytes; the size that the archive states may be wrong.
        where: the file's name in messages.

    Raises:
        DataError: the file is larger.
        OSError: the file can't be read.
        ZIP_DAMAGE: the archive is damaged.
    """
    with archive.open(member) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"The file is larger than {most >> 20} MB: {where}. It does not belong here.")
    return content

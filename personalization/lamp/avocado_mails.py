"""Reads e-mails out of the zip files of the Avocado Research Email Collection (LDC2015T03), a mailbox a file.

`NNN.zip` holds the mailbox of one custodian; its e-mails are `NNN/NNN-NNNNNN-EM.txt`: headers as of RFC 822, an empty
line, and the text. Nothing is extracted to the disk, and only e-mails that are asked for are read.
"""

from __future__ import annotations

import email.policy
import re
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from email import message_from_string
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath

from personalization.errors import DataError
from personalization.files.zip_member import ZIP_DAMAGE, read_member

MAIL_NAME = re.compile(r"\b(\d{3})-(\d{6})-EM(?:\.txt)?\b")

_LARGEST_MAIL = 16 << 20
_OPEN_AT_ONCE = 8
_QUOTED_MAIL = re.compile(r"^[>\s]*-{2,} ?Original Message ?-{2,}", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Mail:
    """One e-mail.

    Attributes:
        subject: one line.
        text: what its sender wrote; an e-mail that it answers, and whose subject would give its own away, is left out.
        date: `YYYY-MM-DD` as the header says; None where it has none that can be read.
    """

    subject: str = field(repr=False)
    text: str = field(repr=False)
    date: str | None


class MailArchive:
    """The zip files of a directory; a few are open at a time. Use it in a `with` statement."""

    def __init__(self, directory: Path) -> None:
        """Open a directory.

        Raises:
            DataError: there is no zip file in it.
        """
        self._directory = directory
        self._open: OrderedDict[str, tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]] = OrderedDict()
        if not any(directory.glob("*.zip")):
            raise DataError(f"There are no zip files here: {directory}. Give the collection's directory data/text.")

    def read(self, name: str) -> Mail:
        """Read one e-mail.

        Args:
            name: such as "007-000123-EM".

        Raises:
            DataError: there is none of this name, or its zip file is damaged.
        """
        stem = name.removesuffix(".txt")
        custodian = stem.partition("-")[0]
        path = self._directory / f"{custodian}.zip"
        try:
            archive, members = self._mailbox(custodian, path)
            if stem not in members:
                raise DataError(f"There is no e-mail {stem} in {path}. Check that the collection is complete.")
            return parse_mail(read_member(archive, members[stem], _LARGEST_MAIL, f"{stem} in {path}"))
        except FileNotFoundError:
            raise DataError(f"There is no mailbox {path}, which has {stem}. Copy it from the collection.") from None
        except OSError as error:
            raise DataError(f"The mailbox can't be read: {path} ({error.strerror}). Check who may read it.") from None
        except ZIP_DAMAGE as error:
            raise DataError(f"The mailbox is damaged: {path} ({error}). Copy it again from the collection.") from None

    def close(self) -> None:
        """Close the files."""
        while self._open:
            self._open.popitem()[1][0].close()

    def __enter__(self) -> MailArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mailbox(self, custodian: str, path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
        if custodian in self._open:
            self._open.move_to_end(custodian)
            return self._open[custodian]
        archive = zipfile.ZipFile(path)
        members = {
            PurePosixPath(member.filename).stem: member
            for member in archive.infolist()
            if MAIL_NAME.fullmatch(PurePosixPath(member.filename).name)
        }
        self._open[custodian] = archive, members
        if len(self._open) > _OPEN_AT_ONCE:
            self._open.popitem(last=False)[1][0].close()
        return self._open[custodian]


def parse_mail(content: bytes) -> Mail:
    """Take an e-mail's file apart; what is no UTF-8 in it becomes U+FFFD."""
    parsed = message_from_string(content.decode("utf-8-sig", "replace"), policy=email.policy.compat32)
    plain = next((part for part in parsed.walk() if part.get_content_type() == "text/plain"), parsed)
    text = plain.get_payload()
    written = _QUOTED_MAIL.split(text if isinstance(text, str) else "", maxsplit=1)[0]
    return Mail(" ".join(str(parsed.get("Subject", "")).split()), written.strip(), _date(str(parsed.get("Date", ""))))


def _date(header: str) -> str | None:
    try:
        return parsedate_to_datetime(header).date().isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

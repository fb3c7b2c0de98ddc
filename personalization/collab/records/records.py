"""Defines a CoGenesis writing task: its public part, its private part, and the text that its user wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction, joined
from edge_runtime.files.whole_file import whole_file
from personalization.errors import DataError
from personalization.files.json_file import list_field, text_field
from personalization.files.reading import reading
from personalization.users.data import user_seed
from personalization.users.parts import parts_by_share

FORMAT = "cogenesis-collab/1"
"""The first line of a file of records is `{"format": FORMAT}`; each further line is a record."""


@dataclass(frozen=True, slots=True)
class CollabRecord:
    """One task of one user.

    Attributes:
        id: unique in its file.
        user: id of the user; all records of a user go to the same part of a split.
        instruction: the public part of the task; the cloud never gets more.
        task: the full task; the text after the instruction is often private.
        context: profile and past texts; None if the record has none.
        reference: the text that was written for the task.
        sketch: an outline for the instruction, one point per line; None if there is none yet.
    """

    id: str
    user: str
    instruction: PublicInstruction = field(repr=False)
    task: str = field(repr=False)
    context: PrivateContext | None = field(repr=False)
    reference: str = field(repr=False)
    sketch: str | None = field(default=None, repr=False)

    @property
    def detail(self) -> str:
        """The task's text beyond the public instruction, or "" if there is none."""
        public = self.instruction.text
        return self.task.removeprefix(public).lstrip(" :").strip() if self.task.startswith(public) else self.task

    @property
    def device_context(self) -> PrivateContext:
        """Everything that only the device may see: the context, and the task's detail as a line of the profile.

        With it and the public instruction, the device knows the full task. The guard treats the detail as private.
        """
        detail = PrivateContext(f"Task_details: {self.detail}" if self.detail else "")
        return joined(self.context or PrivateContext(), detail)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that can't be used: its location and the reason in words."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class CollabFile:
    """The content of a file: its records in order, and the skipped ones."""

    records: tuple[CollabRecord, ...]
    skipped: tuple[Skipped, ...] = ()


def read_collab_file(path: Path) -> CollabFile:
    """Read a file that `write_collab_file` wrote.

    Returns:
        The records. `skipped` lists those that are not JSON, lack a field, have a wrong field or reuse an id.

    Raises:
        DataError: the file can't be read or has another format.
    """
    with reading(path):
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() can split inside a JSON string
    head = _parsed(lines[0])
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise DataError(
            f"This is no file of records ('{FORMAT}' in its first line): {path}. "
            "Make one with `cogenesis collab data import`."
        )
    entries = ((f"line {number}", _parsed(line)) for number, line in enumerate(lines[1:], start=2) if line.strip())
    return collect(entries, _record)


def write_collab_file(path: Path, records: Iterable[CollabRecord]) -> None:
    """Write records atomically, one per line.

    Raises:
        WriteError: the file can't be written.
    """
    with whole_file(path) as file:
        file.write(json.dumps({"format": FORMAT}) + "\n")
        file.writelines(json.dumps(record_document(record), ensure_ascii=False) + "\n" for record in records)


def record_document(record: CollabRecord) -> dict[str, Any]:
    """Return a record as JSON."""
    context = record.context and {
        "profile": record.context.profile,
        "history": [{"title": item.title, "text": item.text} for item in record.context.history],
    }
    return {
        "id": record.id,
        "user": record.user,
        "instruction": record.instruction.text,
        "task": record.task,
        "context": context,
        "reference": record.reference,
        "sketch": record.sketch,
    }


def records_digest(records: Iterable[CollabRecord]) -> str:
    """Return the SHA-256 of the records' full content."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record_document(record), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def split_by_user(
    records: Sequence[CollabRecord], shares: Mapping[str, float], seed: int = 0
) -> dict[str, tuple[CollabRecord, ...]]:
    """Split records into parts that share no user.

    Args:
        records: the records; their order does not affect the assignment.
        shares: share of the users per part, above 0.
        seed: seed of the users' order.

    Returns:
        The records of each part, in order.
    """
    users = sorted({record.user for record in records}, key=lambda user: (user_seed(seed, user), user))
    part_of = dict(zip(users, parts_by_share(len(users), shares), strict=True))
    return {part: tuple(record for record in records if part_of[record.user] == part) for part in shares}


def collect(entries: Iterable[tuple[str, Any]], read: Callable[[Any, str], CollabRecord]) -> CollabFile:
    """Read entries one by one; an unusable entry is skipped without affecting the others.

    Args:
        entries: location and JSON of each entry.
        read: makes a record from an entry, or raises a `DataError`.
    """
    records: dict[str, CollabRecord] = {}
    skipped = []
    for where, body in entries:
        try:
            record = read(body, where)
            if record.id in records:
                raise DataError(f"{where} has the id '{record.id}' for the second time")
            records[record.id] = record
        except DataError as error:
            skipped.append(Skipped(where, str(error)))
    return CollabFile(tuple(records.values()), tuple(skipped))


def filled_text(body: Mapping[str, Any], key: str, where: str) -> str:
    """Return a required, non-empty text field without surrounding white space.

    Raises:
        DataError: the field is missing, no text, or empty.
    """
    text = text_field(body, key, where).strip()
    if not text:
        raise DataError(f"'{key}' of {where} is empty")
    return text


def _record(body: Any, where: str) -> CollabRecord:
    if not isinstance(body, dict):
        raise DataError(f"{where} is not a JSON object")
    where = f"record '{filled_text(body, 'id', where)}'"
    return CollabRecord(
        id=filled_text(body, "id", where),
        user=filled_text(body, "user", where),
        instruction=PublicInstruction(filled_text(body, "instruction", where)),
        task=filled_text(body, "task", where),
        context=_context(body.get("context"), where),
        reference=filled_text(body, "reference", where),
        sketch=None if body.get("sketch") is None else filled_text(body, "sketch", where),
    )


def _context(body: Any, where: str) -> PrivateContext | None:
    if body is None:
        return None
    if not isinstance(body, dict):
        raise DataError(f"'context' of {where} must be an object")
    return PrivateContext(text_field(body, "profile", f"the context of {where}"), tuple(_history(body, where)))


def _history(body: dict[str, Any], where: str) -> Iterator[HistoryItem]:
    for number, item in enumerate(list_field(body, "history", f"the context of {where}")):
        at = f"history[{number}] of {where}"
        yield HistoryItem(text_field(item, "title", at), text_field(item, "text", at))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None

"""Builds LaMP-6 from the Avocado e-mails, which only who has a licence may read, and LaMP's lists of their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.adapters.lru_cache import LruCache
from edge_runtime.files.whole_file import whole_file
from personalization.errors import DataError
from personalization.files.json_array import JsonArrayScan
from personalization.files.json_file import label_field, list_field
from personalization.lamp.avocado_mails import MAIL_NAME, Mail, MailArchive
from personalization.lamp.outputs import write_outputs
from personalization.lamp.tasks import find_task

_ASKED = "Generate a subject for the following email: "
_KEPT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Built:
    """What was written of one list: its questions and gold outputs, and how many questions there are."""

    questions: Path
    outputs: Path
    count: int


def build_lamp_6(
    mails: Path, lists: Mapping[str, Path], out: Path, *, report: Callable[[str, int], None]
) -> list[Built]:
    """Write questions and gold outputs of each split.

    A list is a questions file whose questions and profile items name e-mails (`007-000123-EM`) in any of their fields.
    Questions come out one at a time; memory holds 64 MB of e-mails, the subjects, and the names in 8 zip files.

    Args:
        mails: directory of the collection's zip files, `avocado-1.0.2/data/text`.
        lists: by split, "dev" for `dev_questions.json` and `dev_outputs.json`.
        out: directory to write to; each file appears as a whole or not at all.
        report: called with the split and how many of its questions are done.

    Raises:
        DataError: a list or a zip file can't be used, or an e-mail is missing.
        WriteError: a file can't be written.
    """
    with MailArchive(mails) as archive:
        reader = _Reader(archive)
        return [_build(reader, split, path, out, report) for split, path in lists.items()]


class _Reader:
    """Reads e-mails, and keeps the last ones: users ask for their own profile again and again."""

    def __init__(self, archive: MailArchive) -> None:
        self._archive = archive
        self._recent: LruCache[Mail] = LruCache(_KEPT_BYTES)

    def __call__(self, name: str) -> Mail:
        mail = self._recent.get(name)
        if mail is None:
            mail = self._archive.read(name)
            self._recent.put(name, mail, len(mail.subject) + len(mail.text))
        return mail


def _build(read: _Reader, split: str, path: Path, out: Path, report: Callable[[str, int], None]) -> Built:
    questions, outputs = out / f"{split}_questions.json", out / f"{split}_outputs.json"
    golds: dict[str, str] = {}
    with whole_file(questions) as file:
        for body, subject in _questions(read, path):
            file.write(("[\n" if not golds else ",\n") + json.dumps(body))
            golds[body["id"]] = subject
            report(split, len(golds))
        file.write("\n]\n" if golds else "[]\n")
    write_outputs(outputs, find_task("LaMP-6"), golds)
    return Built(questions, outputs, len(golds))


def _questions(read: _Reader, path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each question of a list with its e-mail's text, and the subject asked for."""
    seen: set[str] = set()
    for number, element in enumerate(JsonArrayScan(path), start=1):
        try:
            identity = label_field(element.body, "id", f"question {number}")
            where = f"question '{identity}'"
            if identity in seen:
                raise DataError(f"{where} comes twice")
            seen.add(identity)
            mail = read(_name(element.body, where))
            profile = [
                _item(read, item, f"profile[{index}] of {where}")
                for index, item in enumerate(list_field(element.body, "profile", where))
            ]
        except DataError as error:
            raise DataError(f"LaMP-6 can't be built from this list: {path}, {error}") from None
        body: dict[str, Any] = {"id": identity, "input": _ASKED + mail.text, "profile": profile}
        if element.body.get("user_id") is not None:
            body["user_id"] = element.body["user_id"]
        yield body, mail.subject


def _item(read: _Reader, body: Mapping[str, Any], where: str) -> dict[str, str]:
    mail = read(_name(body, where))
    date = body.get("date") or mail.date
    item = {"id": label_field(body, "id", where), "title": mail.subject, "text": mail.text}
    return item if date is None else {**item, "date": str(date)}


def _name(body: Mapping[str, Any], where: str) -> str:
    """The e-mail that a question or an item names."""
    names = {
        found[0].removesuffix(".txt")
        for value in body.values()
        if isinstance(value, str) and (found := MAIL_NAME.search(value))
    }
    if len(names) != 1:
        several = f"names several e-mails ({', '.join(sorted(names))})" if names else "names no e-mail (007-000123-EM)"
        raise DataError(f"{where} {several}. Use LaMP's own lists.")
    return names.pop()

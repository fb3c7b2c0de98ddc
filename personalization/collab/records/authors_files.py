"""Reads the CoGenesis authors' files: prompts with context, the same tasks without, and structured records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from personalization.collab.records.records import CollabFile, CollabRecord, collect, filled_text
from personalization.errors import DataError
from personalization.files.json_file import list_field, read_json, text_field

_PROFILE, _HISTORY, _PAPERS, _TASK = (
    "## User Profile\n",
    "## User Writing History\n",
    "## History Paper Abstracts\n",
    "## Task\n",
)
_PAST_TEXT = re.compile(r"(?:\A|\n\s*\n)(?:Task|Title): (.+)\nContent: ")
_INSTRUCTION_ENDS = ": "


def read_authors_file(path: Path) -> CollabFile:
    """Read one of the authors' files.

    Args:
        path: `[{"tid", "conversations": [{"value": prompt}, {"value": answer}], "profile"?: [{"title", "text"}],
            "additional_profile"?}]`. A `tid` is `portrait_user_task`, or the bare number of a paper. The context is
            taken from the structured fields, or else from the prompt's sections.

    Returns:
        Of a writing task only what stands before the first ": " is the public instruction, as in CoGenesis; a paper's
        task is all public. Everybody under the same portrait and user number is one user, though some of them have
        different names, since files without context do not tell them apart. Papers that share a past paper are one
        user's.

    Raises:
        DataError: the file can't be read, or is not a list.
    """
    body = read_json(path)
    if not isinstance(body, list):
        raise DataError(f"This is not a file of CoGenesis records: {path}. It must be a list of records.")
    found = collect(((f"record {number}", entry) for number, entry in enumerate(body)), _record)
    return replace(found, records=tuple(_with_coauthors_as_one(found.records)))


def _record(body: Any, where: str) -> CollabRecord:
    if not isinstance(body, dict):
        raise DataError(f"{where} must be an object")
    identity = filled_text(body, "tid", where)
    where = f"record '{identity}'"
    turns = list_field(body, "conversations", where)
    if len(turns) != 2:
        raise DataError(f"'conversations' of {where} must be a task and its answer")
    prompt, reference = (filled_text(turn, "value", f"conversations[{i}] of {where}") for i, turn in enumerate(turns))
    task, context = _sections(prompt, where)
    if "profile" in body or "additional_profile" in body:
        context = _structured(body, where)
    is_paper = "_" not in identity
    public = task if is_paper else task.partition(_INSTRUCTION_ENDS)[0].strip()
    if not public:
        raise DataError(f"the task of {where} has no public part before the first '{_INSTRUCTION_ENDS}'")
    user = "_".join(identity.split("_")[:2])
    return CollabRecord(identity, user, PublicInstruction(public), task, context, reference)


def _structured(body: dict[str, Any], where: str) -> PrivateContext:
    items = []
    for number, item in enumerate(list_field(body, "profile", where)):
        at = f"profile[{number}] of {where}"
        items.append(HistoryItem(text_field(item, "title", at).strip(), text_field(item, "text", at).strip()))
    return PrivateContext(text_field(body, "additional_profile", where).strip(), tuple(items))


def _sections(prompt: str, where: str) -> tuple[str, PrivateContext | None]:
    """Task and context of a prompt; a prompt without sections is the task."""
    before, heading, task = f"{prompt}\n".rpartition(_TASK)  # past texts may have headings of their own
    if not heading:
        if any(private in prompt for private in (_PROFILE, _HISTORY, _PAPERS)):  # or it would become public
            raise DataError(f"the prompt of {where} has context, but no '{_TASK.strip()}'")
        return prompt, None
    if not task.strip():
        raise DataError(f"the prompt of {where} has no text under '{_TASK.strip()}'")
    before, heading, past = before.partition(_PAPERS)
    if not heading:
        before, _, past = before.partition(_HISTORY)
    profile = before.partition(_PROFILE)[2].strip()
    history = _past_texts(past.strip())
    if not profile and not history:
        raise DataError(f"the prompt of {where} has a task, but neither profile nor past texts")
    return task.strip(), PrivateContext(profile, history)


def _past_texts(section: str) -> tuple[HistoryItem, ...]:
    _, *parts = _PAST_TEXT.split(section)
    return tuple(HistoryItem(title.strip(), text.strip()) for title, text in zip(parts[::2], parts[1::2], strict=True))


def _with_coauthors_as_one(records: Sequence[CollabRecord]) -> Iterator[CollabRecord]:
    first: dict[str, str] = {}  # past paper -> the user who came with it first
    joined: dict[str, str] = {}  # user -> user of the same papers

    def root(user: str) -> str:
        while user in joined:
            user = joined[user]
        return user

    papers = {record.id for record in records if record.id == record.user}
    for record in records:
        for item in record.context.history if record.context and record.id in papers else ():
            known, own = root(first.setdefault(item.title, record.user)), root(record.user)
            if known != own:
                joined[own] = known
    for record in records:
        yield replace(record, user=root(record.user)) if record.id in papers else record

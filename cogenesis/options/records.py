"""The records argument of commands, and their reports about skipped records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.terminal.flag_names import with_flags
from personalization.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personalization.collab.records.records import CollabRecord, Skipped

RecordsArgument = Annotated[Path, typer.Argument(help="File of records from `collab data`.", show_default=False)]

_NAMED = 10


def usable_records(path: Path) -> tuple[CollabRecord, ...]:
    """Read records for a command, and name skipped records on stderr.

    Raises:
        DataError: the file can't be read, or has no usable record.
    """
    from personalization.collab.records.records import read_collab_file

    found = read_collab_file(path)
    report_skipped(found.skipped, path)
    if not found.records:
        raise DataError(f"There is no record that can be used: {path}. Make some with `cogenesis collab data import`.")
    return found.records


def report_skipped(skipped: Sequence[Skipped], path: Path) -> None:
    """Name the first few skipped records on stderr."""
    if not skipped:
        return
    print(f"{len(skipped)} records were skipped: {path}", file=sys.stderr)
    for item in skipped[:_NAMED]:
        print(f"  {item.where}: {with_flags(item.reason)}", file=sys.stderr)
    if len(skipped) > _NAMED:
        print(f"  and {len(skipped) - _NAMED} more", file=sys.stderr)


def warn_of_private_instructions(records: Sequence[CollabRecord]) -> None:
    """Warn on stderr about public instructions that reveal private units of their user's context; keep the records."""
    from cogenesis.terminal.counter import terminal_progress
    from personalization.collab.records.statistics import private_instructions

    with terminal_progress("Looking for private units") as progress:
        found = private_instructions(records, progress)
    if not found["records"]:
        return
    ids = found["ids"]
    named = ", ".join(f"'{name}'" for name in ids[:_NAMED]) + (" and others" if len(ids) > _NAMED else "")
    kinds = ", ".join(f"{count} x {kind}" for kind, count in found["by_kind"].items())
    print(
        f"warning: {len(ids)} of {len(records)} public instructions contain private units of their user's context "
        f"({kinds}), which the cloud will see: {named}. Check whether they are public.",
        file=sys.stderr,
    )

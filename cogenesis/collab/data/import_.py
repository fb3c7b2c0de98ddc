"""`cogenesis collab data import`: converts the CoGenesis authors' data to records."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.output import JsonOption
from cogenesis.options.records import report_skipped, usable_records, warn_of_private_instructions
from personalization.collab.records.records import write_collab_file


def import_records(
    source: Annotated[
        Path, typer.Argument(help="A file of the CoGenesis authors, with or without context.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of records to write.", show_default=False)],
    without_users_of: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Records whose users to leave out; may be given again.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert the CoGenesis authors' data to records, which separate the public instruction from the private context.

    Example:
      cogenesis collab data import ctx_dev.json --out ctx.jsonl
    """
    from personalization.collab.records.authors_files import read_authors_file

    found = read_authors_file(source)
    report_skipped(found.skipped, source)
    others = {record.user for path in without_users_of or () for record in usable_records(path)}
    records = [record for record in found.records if record.user not in others]
    write_collab_file(out, records)
    warn_of_private_instructions(records)
    users = len({record.user for record in records})
    if as_json:
        skipped = [asdict(item) for item in found.skipped]
        left_out = len(found.records) - len(records)
        report = {"out": str(out), "records": len(records), "users": users, "left_out": left_out, "skipped": skipped}
        print(json.dumps(report))
    else:
        print(f"{len(records)} records of {users} users, {len(found.skipped)} skipped: {out}")

"""`cogenesis collab data split`: splits records into parts that share no user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.lamp import PartOption
from cogenesis.options.output import JsonOption
from cogenesis.options.records import RecordsArgument, usable_records
from cogenesis.options.sampling import SeedOption
from personalization.collab.records.records import split_by_user, write_collab_file
from personalization.users.parts import shares_of


def split(
    records: RecordsArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory to write PART.jsonl to, for each part.", show_default=False)
    ],
    part: PartOption,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Split records into parts that share no user.

    Example:
      cogenesis collab data split ctx.jsonl --part tune=0.5 --part fuse=0.25 --part test=0.25 --out parts
    """
    parts = split_by_user(usable_records(records), shares_of(part), seed)
    for name, own in parts.items():
        write_collab_file(out / f"{name}.jsonl", own)
    if as_json:
        print(json.dumps({"out": str(out), "records": {name: len(own) for name, own in parts.items()}}))
    else:
        print(", ".join(f"{len(own)} records in {name}" for name, own in parts.items()) + f": {out}")

"""`cogenesis collab data`: records of writing tasks, from where they come to how they are divided."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.collab.generate import generate
from cogenesis.options.records import RecordsArgument, report_skipped, usable_records, warn_of_private_instructions
from cogenesis.options.users import JsonOption
from personalization.collab.records.records import split_by_user, write_collab_file
from personalization.users.parts import shares_of

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Import, generate, count and divide writing tasks with their users' context.",
)


@app.command("import")
def import_records(
    source: Annotated[Path, typer.Argument(help="A file of the CoGenesis authors, with or without context.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of records to write.")],
    without_users_of: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Leave out users who are in these records, too; may be given again."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make records of the CoGenesis authors' data, the public instruction apart from what is private.

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


@app.command()
def stats(records: RecordsArgument, as_json: JsonOption = False) -> None:
    """Count records, users, words, and what public instructions give away of their users.

    Example:
      cogenesis collab data stats ctx.jsonl
    """
    from cogenesis.terminal.counter import terminal_progress
    from cogenesis.terminal.tables import print_table
    from personalization.collab.records.statistics import statistics

    with terminal_progress("Looking for private units") as progress:
        counts = statistics(usable_records(records), progress)
    if as_json:
        print(json.dumps({"file": str(records), **counts}))
        return
    per_user, private = counts["records_per_user"], counts["private_in_instruction"]
    print(
        f"{counts['records']} records of {counts['users']} users ({per_user['mean']:.1f} each), "
        f"{counts['with_context']} with context ({counts['past_texts']['mean']:.1f} past texts each), "
        f"{counts['with_sketch']} with a sketch"
    )
    print_table([{"words of": part, **summary} for part, summary in counts["words"].items()])
    kinds = ", ".join(f"{count} x {kind}" for kind, count in private["by_kind"].items())
    print(f"{private['records']} public instructions have something of their user's context ({kinds or 'nothing'})")


@app.command()
def split(
    records: RecordsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write PART.jsonl to, for each part.")],
    part: Annotated[list[str], typer.Option(metavar="NAME=SHARE", help="A part and its share; give two or more.")],
    seed: Annotated[int, typer.Option(help="Of the users' order.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Divide records into parts that share no user.

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


app.command()(generate)

"""`cogenesis collab data stats`: counts the contents of a file of records."""

from __future__ import annotations

import json

from cogenesis.options.output import JsonOption
from cogenesis.options.records import RecordsArgument, usable_records


def stats(records: RecordsArgument, as_json: JsonOption = False) -> None:
    """Count records, users, words, and the private units in public instructions.

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
    print(f"{private['records']} public instructions contain private units of their user's context ({kinds or 'none'})")

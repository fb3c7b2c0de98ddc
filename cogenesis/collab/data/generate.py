"""`cogenesis collab data generate`: makes a data set of invented people, their tasks and their texts."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.expand import expand
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.records import warn_of_private_instructions
from cogenesis.options.sampling import SeedOption
from cogenesis.options.source import SourceOptions
from personalization.errors import DataError

if TYPE_CHECKING:
    from personalization.collab.synthesis.generate import Generated

_NAMED = 10
_AUTHOR = SourceOptions(max_new_tokens=2048, temperature=0.8, tries=4)


@expand
def generate(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Directory for records.jsonl and the progress.", show_default=False),
    ],
    who: SourceOptions = _AUTHOR,
    portraits: Annotated[int, typer.Option(help="Number of groups of people.")] = 10,
    people: Annotated[int, typer.Option(help="Number of people in each group.")] = 2,
    tasks: Annotated[int, typer.Option(help="Number of texts per person.")] = 8,
    history: Annotated[
        int, typer.Option(help="Number of those texts that become past texts. Each other text becomes a record.")
    ] = 4,
    seed: SeedOption = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make records with a large model in four steps: groups of people, people, their tasks, their texts.

    The command checks and repairs replies, or asks again. It names and leaves out failed questions; run it again to
    retry only those. It keeps all replies, so you can stop it at any time.

    Example:
      cogenesis collab data generate --endpoint http://127.0.0.1:8000/v1 --endpoint-model mine --out made
    """
    from cogenesis.terminal.tables import ProgressLines
    from personalization.collab.records.records import write_collab_file
    from personalization.collab.synthesis.generate import GenerateSettings, generate_records

    settings = GenerateSettings(portraits, people, tasks, history, who.tries, seed)
    source = who.open()
    lines = ProgressLines()

    def report(step: str, done: int, total: int) -> None:
        lines(step, "answered", done, total, worked=done > 0)

    made = generate_records(source, settings, out, report=report, force=force)
    if not made.records:
        raise DataError(
            f"Nothing was made: {len(made.failed)} questions failed, {made.short} people have too few texts. "
            f"{' '.join(made.failed[:1])} Run the command again to ask for what failed."
        )
    write_collab_file(out / "records.jsonl", made.records)
    warn_of_private_instructions(made.records)
    _say(made, out / "records.jsonl", as_json)


def _say(made: Generated, path: Path, as_json: bool) -> None:
    users = len({record.user for record in made.records})
    if as_json:
        body = {"out": str(path), "records": len(made.records), "users": users, "people_with_too_few_texts": made.short}
        print(json.dumps(body | {"steps": made.steps, "failed": made.failed, "usage": asdict(made.usage)}))
        return
    from cogenesis.terminal.tables import print_table

    for failure in made.failed[:_NAMED]:
        print(f"failed: {failure}", file=sys.stderr)
    if len(made.failed) > _NAMED:
        print(f"and {len(made.failed) - _NAMED} more", file=sys.stderr)
    print_table([{"step": step, **counts} for step, counts in made.steps.items()])
    usage = made.usage
    print(
        f"{len(made.records)} records of {users} users, {made.short} people left out with too few texts; "
        f"{usage.calls:,} calls, {usage.prompt_tokens:,} tokens of prompts, {usage.answer_tokens:,} of answers: {path}"
    )

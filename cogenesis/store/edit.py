"""The commands `cogenesis store ...`: look at and change what the device knows of its user."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cogenesis.options.store import DEFAULT_STORE, AsJson, StoreFile
from cogenesis.store.search import embed, search
from cogenesis.terminal.counter import terminal_progress
from edge_runtime.errors import RequestError
from edge_runtime.store.profile_store import ProfileStore

app = typer.Typer(name="store", help="The profile and past texts on this device.", no_args_is_help=True)

app.command()(search)
app.command()(embed)


@app.command("import")
def import_file(
    file: Annotated[
        Path,
        typer.Argument(help="A request or user file, LaMP questions or CoGenesis records (JSON).", show_default=False),
    ],
    task: Annotated[str | None, typer.Option(help="Of LaMP questions: LaMP-1 to LaMP-7 or LaMP-2-news.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="ID", help="Whose texts to take, where the file has several users.")
    ] = None,
    store: StoreFile = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Take over profile and past texts from a file; what is known already is left alone.

    Examples:
      cogenesis store import examples/user/user.json

      cogenesis store import LaMP_5/dev_questions.json --task LaMP-5 --user 12
    """
    with ProfileStore(store) as opened, terminal_progress("Importing") as progress:
        done = opened.import_file(file, task=task, user=user, progress=progress)
    profile = "profile set" if done.profile else "profile left as it was"
    _say(
        {"added": done.added, "known": done.known, "profile": done.profile, "store": str(store)},
        f"Past texts: {done.added} added, {done.known} known before; {profile}: {store}",
        as_json,
    )


@app.command()
def show(store: StoreFile = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show everything in the store; the JSON form can be imported again.

    Example: cogenesis store show --json > copy.json
    """
    with ProfileStore(store) as opened:
        profile, items = opened.profile, opened.items
    history = [asdict(item) for item in items]
    lines = [profile or "(no profile)", "", f"Past texts: {len(items)}"]
    lines += [f"{item.id:>5}  {item.date or '':10}  {item.title}  ({len(item.text):,} characters)" for item in items]
    _say({"profile": profile, "history": history}, "\n".join(lines), as_json)


@app.command()
def add(
    title: Annotated[str, typer.Option(help="The task it was written for.", show_default=False)],
    text: Annotated[str | None, typer.Option(help="The text itself.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with the text; - reads standard input.")] = None,
    date: Annotated[str | None, typer.Option(help="When it was written, YYYY-MM-DD.")] = None,
    store: StoreFile = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Add a past text.

    Example: cogenesis store add --title "A note to Oskar" --text "The sea was calm." --date 2024-05-01
    """
    content = _content(text, file)
    if content is None:
        raise RequestError("There is no text to add. Give --text or --file.")
    with ProfileStore(store) as opened:
        item_id = opened.add(title, content, date)
    _say({"id": item_id}, f"Added as {item_id}.", as_json)


@app.command()
def update(
    item_id: Annotated[int, typer.Argument(metavar="ID", help="As `show` lists it.", show_default=False)],
    title: Annotated[str | None, typer.Option(help="The new title.")] = None,
    text: Annotated[str | None, typer.Option(help="The new text.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with the new text; - reads standard input.")] = None,
    date: Annotated[str | None, typer.Option(help="The new date, YYYY-MM-DD.")] = None,
    store: StoreFile = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Change what is given of a past text.

    Example: cogenesis store update 3 --date 2024-02-29
    """
    content = _content(text, file)
    if title is None and content is None and date is None:
        raise RequestError("There is nothing to change. Give --title, --text, --file or --date.")
    with ProfileStore(store) as opened:
        opened.update(item_id, title=title, text=content, date=date)
    _say({"id": item_id}, f"Changed {item_id}.", as_json)


@app.command()
def remove(
    ids: Annotated[list[int], typer.Argument(help="Ids, as `show` lists them.", show_default=False)],
    store: StoreFile = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Remove past texts, all or none.

    Example: cogenesis store remove 3 7
    """
    with ProfileStore(store) as opened:
        opened.remove(*ids)
    _say({"removed": sorted(set(ids))}, f"Removed {', '.join(str(i) for i in sorted(set(ids)))}.", as_json)


@app.command()
def profile(
    text: Annotated[str | None, typer.Argument(help="The new profile; without it the profile is shown.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with the new profile; - reads standard input.")] = None,
    store: StoreFile = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show or replace the profile.

    Example: cogenesis store profile "Name: Ada, lighthouse keeper"
    """
    content = _content(text, file)
    with ProfileStore(store) as opened:
        if content is not None:
            opened.set_profile(content)
        current = opened.profile
    _say({"profile": current}, current or "(no profile)", as_json)


def _content(text: str | None, file: Path | None) -> str | None:
    if text is not None and file is not None:
        raise RequestError("Both a text and a --file are given. Give one of them.")
    if file is None:
        return text
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RequestError(f"The file is not UTF-8 text: {file}. Save it as UTF-8.") from None
    except OSError as error:
        raise RequestError(f"The file can't be read: {file} ({error.strerror}). Check its name.") from None


def _say(body: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(body, ensure_ascii=False) if as_json else words)

"""`cogenesis store show`: shows everything in the store."""

from __future__ import annotations

from dataclasses import asdict

from cogenesis.options.output import JsonOption, say
from cogenesis.options.store import DEFAULT_STORE, StoreOption
from edge_runtime.store.profile_store import ProfileStore


def show(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show everything in the store; `store import` can read the JSON output.

    Example: cogenesis store show --json > copy.json
    """
    with ProfileStore(store) as opened:
        profile, items = opened.profile, opened.items
    history = [asdict(item) for item in items]
    lines = [profile or "(no profile)", "", f"Past texts: {len(items)}"]
    lines += [f"{item.id:>5}  {item.date or '':10}  {item.title}  ({len(item.text):,} characters)" for item in items]
    say({"profile": profile, "history": history}, "\n".join(lines), as_json)

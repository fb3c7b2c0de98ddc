"""What is noted beside a retriever selector's weights or graph: what it reads, of which pool, and how much of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edge_runtime.errors import BundleError

SELECTOR_NAME = "selector.json"
FORMAT = "cogenesis-selector/1"


class SelectorMode(StrEnum):
    """When a retriever is selected: PRE by the prompts alone, POST by the prompts and what was written from them."""

    PRE = "pre"
    POST = "post"


@dataclass(frozen=True, slots=True)
class SelectorCard:
    """What `selector.json` says.

    Attributes:
        mode: what of a candidate it reads.
        retrievers: names of the retrievers that it chooses from, in order; of equally good ones the first is taken.
        max_tokens: of a candidate.
    """

    mode: SelectorMode
    retrievers: tuple[str, ...]
    max_tokens: int

    def json(self) -> str:
        """The card as a file's content."""
        body = {
            "format": FORMAT,
            "mode": str(self.mode),
            "retrievers": list(self.retrievers),
            "max_tokens": self.max_tokens,
        }
        return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def read_selector_card(directory: Path) -> SelectorCard:
    """Read a directory's `selector.json`.

    Raises:
        BundleError: there is none, or it is damaged or from another version.
    """
    path = directory / SELECTOR_NAME
    try:
        body = json.loads(path.read_bytes())
        if body["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        card = SelectorCard(SelectorMode(body["mode"]), tuple(map(str, body["retrievers"])), int(body["max_tokens"]))
        if not card.retrievers or card.max_tokens < 1:
            raise ValueError("it has no retrievers, or no room for tokens")
    except FileNotFoundError:
        raise BundleError(f"There is no selector here: {directory} (no {SELECTOR_NAME}).") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"The selector can't be read: {path} ({error}). Make it again.") from None
    return card

"""Reads and writes a retriever selector's card: what the selector reads, and which retrievers it chooses from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edge_runtime.errors import BundleError

SELECTOR_NAME = "selector.json"
FORMAT = "cogenesis-selector/1"


class SelectorMode(StrEnum):
    """When a retriever is selected: PRE reads only the prompts, POST also the answers generated from them."""

    PRE = "pre"
    POST = "post"


@dataclass(frozen=True, slots=True)
class SelectorCard:
    """The content of `selector.json`.

    Attributes:
        mode: parts of a candidate that the selector reads.
        retrievers: names of the retrievers to choose from, in order; ties go to the first.
        max_tokens: maximum tokens per candidate.
    """

    mode: SelectorMode
    retrievers: tuple[str, ...]
    max_tokens: int

    def json(self) -> str:
        """Return the card as the file's content."""
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
        BundleError: the card is missing, damaged or of another version.
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
        raise BundleError(
            f"There is no selector here: {directory} (no {SELECTOR_NAME}). Train one with `cogenesis rspg train`."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"The selector can't be read: {path} ({error}). Make it again.") from None
    return card

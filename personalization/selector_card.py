"""What is noted beside a retriever selector's weights or graph: what it reads, of which pool, and how much of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from export.errors import SourceError

SELECTOR_NAME = "selector.json"
FORMAT = "cogenesis-selector/1"


class SelectorMode(StrEnum):
    """When a retriever is selected: before generation by the prompt, or after it by prompt and output."""

    PRE = "pre"
    POST = "post"


@dataclass(frozen=True, slots=True)
class SelectorCard:
    """What a device must know of a selector, beside its graph and tokenizer; `selector.json`.

    Attributes:
        mode: what of a candidate it reads.
        retrievers: names of the pool that it was trained on, in order.
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


def read_card(path: Path) -> SelectorCard:
    """Read a `selector.json`.

    Raises:
        SourceError: there is none, or it is damaged.
    """
    try:
        body = json.loads(path.read_bytes())
        if body["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return SelectorCard(SelectorMode(body["mode"]), tuple(map(str, body["retrievers"])), int(body["max_tokens"]))
    except FileNotFoundError:
        raise SourceError(f"This is no selector: {path.parent} (no {SELECTOR_NAME}).") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"The selector can't be read: {path} ({error}). Train it again.") from None

"""What a retriever learns from: a question's query, some profile items, and what each was worth to the model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RetrieverExample:
    """One question.

    Attributes:
        query: what the profile is searched for.
        documents: items' texts.
        gains: what each item was worth, higher is better.
    """

    query: str = field(repr=False)
    documents: tuple[str, ...] = field(repr=False)
    gains: tuple[float, ...]

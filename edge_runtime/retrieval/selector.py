"""Picks the retriever for a question on the device (RSPG, Salemi et al., 2024): a trained encoder scores candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_runtime.errors import BundleError
from edge_runtime.retrieval.selector_card import SelectorCard, SelectorMode, read_selector_card
from edge_runtime.retrieval.selector_tokens import candidate_tokens
from edge_runtime.retrieval.text_graph import TextGraph


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one retriever led to: the prompt, and the answer (mode post)."""

    prompt: str = field(repr=False)
    answer: str | None = field(default=None, repr=False)


class Selector:
    """A selector's directory, loaded; `card` says what it reads, and which retrievers it chooses from."""

    def __init__(self, card: SelectorCard, graph: TextGraph) -> None:
        self.card = card
        self._graph = graph

    @classmethod
    def load(cls, directory: Path | str, *, threads: int | None = None) -> Selector:
        """Load a directory with `selector.json`, `model.onnx` and `tokenizer.json`.

        Raises:
            BundleError: a file is missing, damaged or from another version.
        """
        return cls(read_selector_card(Path(directory)), TextGraph(Path(directory), threads))

    @property
    def reads_answers(self) -> bool:
        """Whether every candidate needs an answer."""
        return self.card.mode is SelectorMode.POST

    def choose(self, candidates: Sequence[Candidate]) -> int:
        """Place of the best candidate, the first of equally good ones.

        Args:
            candidates: at least one; their answers count in mode post alone.

        Raises:
            BundleError: the graph fails.
        """
        tokens = [
            candidate_tokens(
                self._graph.tokenizer,
                one.prompt,
                (one.answer or "") if self.reads_answers else None,
                self.card.max_tokens,
            )
            for one in candidates
        ]
        scores = self._graph.run(tokens).reshape(-1)
        if len(scores) != len(candidates) or not np.isfinite(scores).all():
            raise BundleError(f"The selector gives no score a candidate: {self._graph.path}. Export it again.")
        return int(scores.argmax())

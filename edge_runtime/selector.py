"""Picks the retriever for a question on the device (RSPG, Salemi et al., 2024): a trained encoder scores candidates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np

from edge_runtime.errors import BundleError
from edge_runtime.selector_tokens import candidate_tokens
from edge_runtime.text_graph import TextGraph

SELECTOR_NAME = "selector.json"
FORMAT = "cogenesis-selector/1"


class SelectorMode(StrEnum):
    """When a retriever is selected: PRE by the prompts alone, POST by the prompts and what was written from them."""

    PRE = "pre"
    POST = "post"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one retriever led to: the prompt, and the answer (mode post)."""

    prompt: str = field(repr=False)
    answer: str | None = field(default=None, repr=False)


class Selector:
    """A selector's directory, loaded.

    Attributes:
        mode: what it reads.
        retrievers: names of the retrievers that it chooses from.
    """

    def __init__(self, mode: SelectorMode, retrievers: tuple[str, ...], max_tokens: int, graph: TextGraph) -> None:
        self.mode = mode
        self.retrievers = retrievers
        self._max_tokens = max_tokens
        self._graph = graph

    @classmethod
    def load(cls, directory: Path | str, *, threads: int | None = None) -> Selector:
        """Load a directory with `selector.json`, `model.onnx` and `tokenizer.json`.

        Raises:
            BundleError: a file is missing, damaged or from another version.
        """
        path = Path(directory) / SELECTOR_NAME
        try:
            body = json.loads(path.read_bytes())
            if body["format"] != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            mode, max_tokens = SelectorMode(body["mode"]), int(body["max_tokens"])
            retrievers = tuple(str(name) for name in body["retrievers"])
            if not retrievers or max_tokens < 1:
                raise ValueError("it has no retrievers, or no room for tokens")
        except FileNotFoundError:
            raise BundleError(f"There is no selector here: {directory} (no {SELECTOR_NAME}).") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleError(f"The selector can't be read: {path} ({error}). Export it again.") from None
        return cls(mode, retrievers, max_tokens, TextGraph(Path(directory), threads))

    @property
    def reads_answers(self) -> bool:
        """Whether every candidate needs an answer."""
        return self.mode is SelectorMode.POST

    def choose(self, candidates: Sequence[Candidate]) -> int:
        """Place of the best candidate, the first of equally good ones.

        Args:
            candidates: at least one; their answers count in mode post alone.

        Raises:
            BundleError: the graph fails.
        """
        tokens = [
            candidate_tokens(
                self._graph.tokenizer, one.prompt, (one.answer or "") if self.reads_answers else None, self._max_tokens
            )
            for one in candidates
        ]
        scores = self._graph.run(tokens).reshape(-1)
        if len(scores) != len(candidates) or not np.isfinite(scores).all():
            raise BundleError(f"The selector gives no score a candidate: {self._graph.path}. Export it again.")
        return int(scores.argmax())

"""How fast profiles are ranked: ours against rank_bm25 and bm25s, on the same profiles, scores compared.

Three times are told apart: `index`, from texts to what can be searched; `search`, from a query to the order of all
items; and `whole`, both, which LaMP needs for every question. bm25s has no epsilon for words of negative weight, so its
scores differ (method "robertson", whose weights are never below 0); it is here for its speed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import bm25s
import numpy as np
from rank_bm25 import BM25Okapi

from benchmarks.report import emit, median, progress, ratio, spread
from edge_runtime.store.bm25 import K1, B
from personalization.lamp.bm25 import Bm25
from tests.support.records import SHARED_DATA

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

QUESTIONS = SHARED_DATA / "lamp" / "LaMP_5" / "dev_questions.json"
SIZES = (10, 100, 1_000, 10_000)
QUICK = (10, 1_000)
RUNS = 9
_LEAST_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Engine:
    """One way to rank: makes an index of texts, and scores all of them for a query."""

    name: str
    index: Callable[[list[str]], Any]
    scores: Callable[[Any, str], NDArray[np.float64]]


@dataclass(slots=True)
class Times:
    """Seconds of each run."""

    index: list[float] = field(default_factory=list)
    search: list[float] = field(default_factory=list)

    @property
    def whole(self) -> list[float]:
        """Both together."""
        return [one + other for one, other in zip(self.index, self.search, strict=True)]


def _bm25s_index(texts: list[str]) -> bm25s.BM25:
    index = bm25s.BM25(method="robertson", k1=K1, b=B)
    index.index([text.split() for text in texts], show_progress=False)
    return index


ENGINES = (
    Engine("ours", Bm25, lambda index, query: index.scores(query)),
    Engine(
        "rank_bm25",
        lambda texts: BM25Okapi([text.split() for text in texts], k1=K1, b=B),
        lambda index, query: index.get_scores(query.split()),
    ),
    Engine("bm25s", _bm25s_index, lambda index, query: index.get_scores(query.split())),
)


def measure(size: int, runs: int) -> dict[str, Times]:
    """Time all engines by turns on one profile.

    Args:
        size: items of the profile.
        runs: how often; every run has another query.

    Returns:
        Times by the engine's name.
    """
    texts, queries = profile(size), profile(runs, seed=1)
    times = {engine.name: Times() for engine in ENGINES}
    repeats = 1 + int(_LEAST_SECONDS / (size * 1e-4))
    for query in queries:
        found = {}
        for engine in ENGINES:
            started = time.perf_counter()
            for _ in range(repeats):
                index = engine.index(texts)
            indexed = time.perf_counter()
            for _ in range(repeats):
                scores = engine.scores(index, query)
                np.argsort(scores, kind="stable")
            ended = time.perf_counter()
            times[engine.name].index.append((indexed - started) / repeats)
            times[engine.name].search.append((ended - indexed) / repeats)
            found[engine.name] = scores
        if not np.allclose(found["ours"], found["rank_bm25"], rtol=1e-9, atol=1e-9):
            sys.exit("The scores are not those of rank_bm25.")
    return times


def profile(size: int, seed: int = 0) -> list[str]:
    """Texts as long as LaMP-5's, of its words, each as often as it is there."""
    if not QUESTIONS.exists():
        sys.exit(f"The LaMP-5 questions are missing: {QUESTIONS}. Put them beside the project.")
    questions = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    texts = [f"{item['title']} {item['abstract']}" for question in questions for item in question["profile"]]
    words = [word for text in texts for word in text.split()]
    lengths = [len(text.split()) for text in texts]
    draw = random.Random(f"{size} {seed}")
    return [" ".join(draw.choices(words, k=draw.choice(lengths))) for _ in range(size)]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"queries of each size (default {RUNS})")
    parser.add_argument("--quick", action="store_true", help=f"profiles of {QUICK} items alone, three queries each")
    parser.add_argument("--json", action="store_true", help="print for machines")
    arguments = parser.parse_args()
    rows, headline = [], {}
    for size in QUICK if arguments.quick else SIZES:
        progress(f"{size:,} items")
        times = measure(size, 3 if arguments.quick else arguments.runs)
        ours, theirs = times["ours"], times["rank_bm25"]
        if size == 1_000:
            headline = {
                "speedup_1000": ratio(theirs.search, ours.search),
                "whole_speedup_1000": ratio(theirs.whole, ours.whole),
                "search_ms_1000": 1e3 * median(ours.search),
                "whole_ms_1000": 1e3 * median(ours.whole),
            }
        for engine in ENGINES:
            found = times[engine.name]
            rows.append(
                {
                    "items": size,
                    "engine": engine.name,
                    "index_ms": 1e3 * median(found.index),
                    "search_ms": 1e3 * median(found.search),
                    "whole_ms": 1e3 * median(found.whole),
                    "spread": spread(found.whole),
                    "ours_search_is_faster": ratio(found.search, ours.search),
                    "ours_whole_is_faster": ratio(found.whole, ours.whole),
                }
            )
    emit(
        headline,
        rows,
        arguments.json,
        title="Ranking a profile by BM25",
        notes=(
            "index: from texts, splitting included. search: an abstract as the query, all scores and their order.",
            "Every score of ours is that of rank_bm25 (1e-9). One thread.",
        ),
    )


if __name__ == "__main__":
    main()

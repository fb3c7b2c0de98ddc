"""How fast past texts are stored, changed and found on a device, and what that takes in memory and on the disk.

Texts of 20 to 100 words as frequent as in LaMP-5's profiles, 3 in 100 of them rare ones of an open vocabulary. Queries
are of 12 such words (an instruction), or LaMP-5's own inputs (170 words, an abstract). Searches run in fresh processes
on one thread, and give the 10 best texts with their content. Vectors are random ones: how long a search takes does not
depend on what they say, and it leaves out the encoder's own time for the query.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.report import CACHE, emit, median, progress
from edge_runtime.store.item import NewItem
from edge_runtime.store.profile_store import ProfileStore
from tests.support.records import SHARED_DATA

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

QUESTIONS = SHARED_DATA / "lamp" / "LaMP_5" / "dev_questions.json"
SIZES = (1_000, 100_000, 1_000_000)
HEADLINE_SIZE = 100_000
RARE_SHARE, LARGEST_RARE = 0.03, 10**7
BATCH = 50_000
CHANGES, SEARCHES, FOUND = 200, 41, 10
DIMENSION, LARGEST_WITH_VECTORS = 384, 100_000


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=list(SIZES), help=f"items of a store (default {SIZES})")
    parser.add_argument("--json", action="store_true", help="print for machines")
    arguments = parser.parse_args()
    if not QUESTIONS.is_file():
        sys.exit(f"The evaluation data are missing: {QUESTIONS}. Put them beside the project.")
    CACHE.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in arguments.items:
        # Beside the other benchmarks' files, not in /tmp, which may be memory.
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            rows.append({"items": size} | _measure(size, Path(work)))
    tracked = min(rows, key=lambda row: abs(row["items"] - HEADLINE_SIZE))
    headline = {
        "search_ms_1e5": tracked["search_ms"],
        "search_long_ms_1e5": tracked["long_ms"],
        "inserts_per_s": tracked["imported_per_s"],
        "adds_per_s": tracked["added_per_s"],
        "search_rss_mb_1e5": tracked["rss_mb"],
    }
    emit(
        {name: round(value, 2) for name, value in headline.items()},
        rows,
        arguments.json,
        title="A store of past texts on a device, one thread",
        notes=(
            "imported: in one transaction; added, updated, removed: a transaction each, on the disk when it returns.",
            "first: from opening the file to the first result; after a change: the next search. long: queries of 170 "
            "words. vector: the dot product with all vectors, after the first, which reads them.",
        ),
    )


def _measure(size: int, work: Path) -> dict[str, Any]:
    path, texts = work / "profile.db", _Texts(size)
    progress(f"Storing {size:,} texts")
    with ProfileStore(path) as store:
        spent = 0.0
        for batch in texts.batches(size):
            started = time.perf_counter()
            store.import_items(batch)
            spent += time.perf_counter() - started
        changes = _changes(store, texts)
    words = _search(path, [texts.text(12) for _ in range(SEARCHES)], None)
    long = _search(path, texts.questions[:SEARCHES], None)
    row = {
        "imported_per_s": round(size / spent),
        **changes,
        "first_ms": round(words["first_ms"], 1),
        "search_ms": round(words["search_ms"], 2),
        "slowest_ms": round(words["slowest_ms"], 2),
        "long_ms": round(long["search_ms"], 2),
        "rss_mb": round(words["peak_rss_mb"]),
        "disk_mb": round(path.stat().st_size / 1e6, 1),
    }
    return row | (_vectors(path, texts) if size <= LARGEST_WITH_VECTORS else {})


def _changes(store: ProfileStore, texts: _Texts) -> dict[str, Any]:
    """Changes one by one."""
    fresh = [texts.text(60) for _ in range(CHANGES)]
    started = time.perf_counter()
    ids = [store.add("A task", text) for text in fresh]
    added = time.perf_counter() - started
    after = []
    for item_id in ids[:5]:
        store.update(item_id, text=texts.text(60))
        query = texts.text(12)
        started = time.perf_counter()
        store.word_scores(query)
        after.append(time.perf_counter() - started)
    old = [int(number) for number in texts.draw.choice(len(store) // 2, 40, replace=False) + 1]
    started = time.perf_counter()
    for item_id in old[:20]:
        store.update(item_id, text=fresh[0])
    updated = time.perf_counter()
    for item_id in old[20:]:
        store.remove(item_id)
    return {
        "added_per_s": round(CHANGES / added),
        "update_ms": round((updated - started) / 20 * 1e3, 2),
        "remove_ms": round((time.perf_counter() - updated) / 20 * 1e3, 2),
        "after_change_ms": round(median(after) * 1e3, 2),
    }


def _vectors(path: Path, texts: _Texts) -> dict[str, Any]:
    progress("Storing vectors")
    with ProfileStore(path) as store:
        while waiting := store.without_vector("random", 5_000):
            store.put_vectors("random", waiting, texts.vectors(len(waiting)))
    found = _search(path, texts.vectors(SEARCHES).tolist(), "random")
    return {
        "vector_first_ms": round(found["first_ms"], 1),
        "vector_ms": round(found["search_ms"], 2),
        "vector_rss_mb": round(found["peak_rss_mb"]),
    }


def _search(path: Path, queries: Sequence[Any], encoder: str | None) -> dict[str, float]:
    progress("Searching")
    asked = path.with_name("queries.json")
    asked.write_text(json.dumps(queries), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("store_process.py")), str(path), str(asked)]
    command += ["--count", str(FOUND), *(["--encoder", encoder] if encoder else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"Searching failed: {' '.join(command)}.")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


class _Texts:
    """Texts with the word frequencies of real ones; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        body = json.loads(QUESTIONS.read_text(encoding="utf-8"))
        profiles = (f"{item['title']} {item['abstract']}" for question in body for item in question["profile"])
        self._words = np.array([word for text in profiles for word in text.split()], dtype=object)
        self.questions = [question["input"] for question in body]
        self.draw = np.random.default_rng(seed)

    def text(self, length: int) -> str:
        """Words drawn one by one."""
        words = self._words[self.draw.integers(0, len(self._words), length)]
        rare = self.draw.random(length) < RARE_SHARE
        words[rare] = [f"w{number}" for number in self.draw.zipf(1.15, int(rare.sum())).clip(0, LARGEST_RARE)]
        return " ".join(words)

    def batches(self, count: int) -> Iterator[list[NewItem]]:
        """New items, some at a time."""
        for start in range(0, count, BATCH):
            places = range(start, min(start + BATCH, count))
            yield [NewItem(f"Task {place}", self.text(int(self.draw.integers(20, 100)))) for place in places]

    def vectors(self, count: int) -> Any:
        """Random vectors: (count, DIMENSION) float32."""
        return self.draw.standard_normal((count, DIMENSION), np.float32)


if __name__ == "__main__":
    main()

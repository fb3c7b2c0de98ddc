"""One device process that searches a store, to be measured from outside.

Run by store.py in fresh interpreters, as memory and the first search can only be measured there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.report import median


def main() -> None:
    """Open a store and search it, by words or by vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("queries", type=Path, help="JSON list of texts, or of vectors with --encoder")
    parser.add_argument("--encoder", help="fingerprint of the vectors to search; without it words are searched")
    parser.add_argument("--count", type=int, required=True, help="items to find")
    arguments = parser.parse_args()

    import numpy as np

    from edge_runtime.machine.peak_memory import peak_rss_bytes
    from edge_runtime.retrieval.search import StoreSearch, best
    from edge_runtime.store.profile_store import ProfileStore

    queries = json.loads(arguments.queries.read_text(encoding="utf-8"))
    opened = time.perf_counter()
    with ProfileStore(arguments.store) as store:
        seconds = []
        search = StoreSearch(store)
        for query in queries:
            started = time.perf_counter()
            if arguments.encoder is None:
                search.find(query, "bm25", arguments.count)
            else:
                ids, _ = best(*store.vector_scores(arguments.encoder, np.array(query, np.float32)), arguments.count)
                store.get(ids)
            seconds.append(time.perf_counter() - started)
            if len(seconds) == 1:
                first = seconds[0] + started - opened
        result = {
            "first_ms": first * 1e3,
            "search_ms": median(seconds[1:]) * 1e3,
            "slowest_ms": max(seconds[1:]) * 1e3,
            "peak_rss_mb": peak_rss_bytes() / 1e6,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

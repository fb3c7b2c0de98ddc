"""One device process for many users, to be measured from outside: lists all, then answers for one after another.

Run by adapters.py in fresh interpreters, as memory can only be measured there.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from benchmarks.report import median


def main() -> None:
    """List the adapters of a store, and write a token for users in random order, each with their adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--adapters", type=Path, required=True, help="directory of users' adapters")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--turns", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()

    import edge_runtime
    from edge_runtime.machine.peak_memory import peak_rss_bytes

    assistant = edge_runtime.load(
        arguments.bundle, arguments.backend, threads=arguments.threads, adapters=arguments.adapters
    )
    started = time.perf_counter()
    users = [entry.header.user for entry in assistant.adapters.entries() if entry.header is not None]
    listed = time.perf_counter() - started
    chance = random.Random(0)
    turns = []
    for _ in range(arguments.turns):
        user = chance.choice(users)
        started = time.perf_counter()
        assistant.use_user(user)
        turns.append(time.perf_counter() - started)
        assistant.decoder.extend([1, 2, 3, 4])
    result = {
        "list_ms": listed * 1e3,
        "use_ms": median(turns) * 1e3,
        "peak_rss_mb": peak_rss_bytes() / 1e6,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

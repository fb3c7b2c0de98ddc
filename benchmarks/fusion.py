"""What fusing one row costs on the device, against the same formula over two dense rows in scipy."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax as scipy_log_softmax
from scipy.special import logsumexp

from benchmarks import report
from edge_runtime.fusion.fuse import Fusion, Strategy, fuse
from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.fusion.sparse import RowFormat, sparsify

Row = NDArray[np.float32]

VOCABULARIES = {"49k": 49_152, "152k": 151_936}
WEIGHT = 0.5


def language_model_row(rng: np.random.Generator, vocabulary: int) -> Row:
    """A row as peaked as a language model's: Zipf-like, in random order, with noise."""
    ranks = rng.permutation(vocabulary) + 1.0
    logits = -1.2 * np.log(ranks) + 0.8 * rng.standard_normal(vocabulary)
    return log_softmax(logits.astype(np.float32))


def dense_peer(strategy: Strategy, edge: Row, cloud: Row, without: Row) -> Row:
    """The published formula over whole rows, as written."""
    match strategy:
        case Strategy.GEOMETRIC:
            return np.asarray(scipy_log_softmax(WEIGHT * edge + (1 - WEIGHT) * cloud))
        case Strategy.ARITHMETIC:
            return np.asarray(logsumexp([edge + np.log(WEIGHT), cloud + np.log1p(-WEIGHT)], axis=0))
        case Strategy.MAX:
            return np.asarray(scipy_log_softmax(np.maximum(edge, cloud)))
        case Strategy.DELTA:
            return np.asarray(scipy_log_softmax(cloud + WEIGHT * (edge - without)))


def milliseconds(function: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--top-k", type=int, default=256, help="kept log-probs a row (default 256)")
    parser.add_argument("--repeats", type=int, default=200, help="interleaved runs (default 200)")
    parser.add_argument("--json", action="store_true", help="print for machines")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    headline: dict[str, float] = {}
    for name, vocabulary in VOCABULARIES.items():
        edge, cloud, without = (language_model_row(rng, vocabulary) for _ in range(3))
        sparse = sparsify(cloud, RowFormat(arguments.top_k))
        for strategy in (one for one in Strategy if one is not Strategy.LEARNED):  # benchmarks/combiner.py
            fusion = Fusion(strategy, WEIGHT)
            ours, theirs = [], []
            for _ in range(arguments.repeats):
                ours.append(milliseconds(lambda: fuse(edge, sparse, fusion, without)))  # noqa: B023
                theirs.append(milliseconds(lambda: dense_peer(strategy, edge, cloud, without)))  # noqa: B023
            rows.append(
                {
                    "words": vocabulary,
                    "strategy": str(strategy),
                    "ms": report.median(ours),
                    "spread": report.spread(ours),
                    "scipy_dense_ms": report.median(theirs),
                    "ratio": report.ratio(theirs, ours),
                }
            )
        # The dearest strategy speaks for all.
        headline[f"fuse_ms_{name}"] = max(float(row["ms"]) for row in rows if row["words"] == vocabulary)
    report.emit(headline, rows, arguments.json, title=f"Fusing one row, top {arguments.top_k} of the cloud")


if __name__ == "__main__":
    main()

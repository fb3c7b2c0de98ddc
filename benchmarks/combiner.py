"""What the learned combiner costs on the device, in microseconds a row and bytes, beside CoGenesis' own combiner.

Example: python benchmarks/combiner.py --json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.fusion import VOCABULARIES, language_model_row
from edge_runtime.fusion.combiner import EDGE_TOP, OUTPUTS, ROW_FEATURES, Candidates, Combiner, Layer
from edge_runtime.fusion.combiner_file import encode_combiner
from edge_runtime.fusion.edge_features import SCHEDULE_FEATURES
from edge_runtime.fusion.fuse import Fusion, Strategy, fuse
from edge_runtime.fusion.sparse import THIN, RowFormat, SparseLogProbs, likeliest, sparsify
from personalization.collab.combiner.reference import TOP, Inputs, ReferenceCombiner
from personalization.collab.combiner.settings import CombinerSettings

FORMS = {"thin": THIN, "top 256": RowFormat(256)}


def combiner_of_usual_size(rng: np.random.Generator) -> Combiner:
    """Random weights: what a row costs does not depend on them."""
    usual = CombinerSettings()

    def layer(inputs: int, outputs: int) -> Layer:
        return Layer(rng.standard_normal((inputs, outputs)) / 10, np.zeros(outputs))

    width = usual.members * usual.hidden
    first, second = layer(ROW_FEATURES, width), layer(width, OUTPUTS)
    predicting = usual.members * usual.gain_hidden
    gain = layer(SCHEDULE_FEATURES, predicting), layer(predicting, 1)
    return Combiner("", "", THIN, False, first, second, *gain, 0.0)


def inputs_of(edge: NDArray[np.float32], cloud: SparseLogProbs, vocabulary: int) -> Inputs:
    """What the reference reads of one row."""
    top = likeliest(edge, TOP)
    sent = np.argsort(-cloud.log_probs)[:TOP]
    ids = torch.from_numpy(np.concatenate([top, cloud.ids[sent] + vocabulary]).astype(np.int64))
    return Inputs(
        ids, torch.from_numpy(np.concatenate([edge[top], cloud.log_probs[sent]])), torch.zeros(1, dtype=torch.int64)
    )


def microseconds(function: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e6


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="interleaved runs (default 300)")
    parser.add_argument("--json", action="store_true", help="print for machines")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    combiner = combiner_of_usual_size(rng)
    learned = Fusion(Strategy.LEARNED, combiner=combiner)
    size = len(encode_combiner(combiner))
    rows: list[dict[str, Any]] = []
    headline: dict[str, float] = {"combiner_bytes": size}
    for name, vocabulary in VOCABULARIES.items():
        edge, dense = (language_model_row(rng, vocabulary) for _ in range(2))
        reference = ReferenceCombiner(vocabulary).eval()
        for form_name, form in FORMS.items():
            cloud = sparsify(dense, form)
            given = inputs_of(edge, cloud, vocabulary)
            top = likeliest(edge, EDGE_TOP)
            ids = np.concatenate([cloud.ids, np.setdiff1d(top, cloud.ids)])
            times: dict[str, list[float]] = {
                "combine": [],
                "whole": [],
                "schedule": [],
                "reference": [],
                "geometric": [],
            }
            for _ in range(arguments.repeats):
                times["combine"].append(microseconds(lambda: _combined(combiner, edge, cloud, top, ids)))  # noqa: B023
                times["whole"].append(microseconds(lambda: fuse(edge, cloud, learned)))  # noqa: B023
                times["schedule"].append(microseconds(lambda: combiner.expects(edge, (-1.0, -2.0, -3.0), 5)))  # noqa: B023
                times["geometric"].append(microseconds(lambda: fuse(edge, cloud, Fusion())))  # noqa: B023
                with torch.inference_mode():
                    times["reference"].append(microseconds(lambda: reference(given)))  # noqa: B023
            middle = {f"{what}_us": report.median(taken) for what, taken in times.items()}
            rows.append(
                {"words": vocabulary, "cloud": form_name, "sent": len(cloud.ids), **middle}
                | {"spread": report.spread(times["whole"]), "bytes": size, "reference_bytes": reference.size}
            )
            if form is THIN:
                headline[f"combine_us_{name}"] = middle["combine_us"]
                headline[f"learned_us_{name}"] = middle["whole_us"]
    report.emit(
        headline,
        rows,
        arguments.json,
        title="Learned fusion of one row",
        notes=(
            "combine: both sparse rows to the fused distribution of the candidates; whole: with all words in and out;",
            "schedule: whether to ask; reference: CoGenesis' network alone, in torch; geometric: a fixed mix, whole.",
        ),
    )


def _combined(
    combiner: Combiner,
    edge: NDArray[np.float32],
    cloud: SparseLogProbs,
    top: NDArray[np.intp],
    ids: NDArray[np.intp],
) -> NDArray[np.float64]:
    """The combiner's own part, from two sparse rows; which of the edge's are in its own was found before."""
    row = Candidates.of(
        edge[ids].astype(np.float64),
        edge[top].astype(np.float64),
        cloud.log_probs.astype(np.float64),
        cloud.tail_mass,
        0.1,
        None,
    )
    return combiner.mix(row, 5)


if __name__ == "__main__":
    main()

"""What thin rows cost: bytes on the wire against what they change of the fused distribution, on real answers."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from benchmarks.answer_rows import answer_rows
from benchmarks.report import emit
from cloud_bridge.wire import decode_verified, encode_verified
from edge_runtime.cloud import Verified
from edge_runtime.fusion.fuse import Fusion, Strategy, fuse
from edge_runtime.fusion.sparse import THIN, RowFormat, SparseLogProbs, sparsify
from edge_runtime.generation.sampling import Sampling, choose

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from benchmarks.answer_rows import AnswerRows

    Row = NDArray[np.float32]

FORMATS = (
    THIN,
    *(RowFormat(256, 1.0, "bits12", floor) for floor in (0.02, 0.005, 0.001, 0.0007)),
    *(RowFormat(k, 1.0, "bits12") for k in (16, 100)),
    *(RowFormat(k, mass, "bits12") for k, mass in ((32, 0.7), (128, 0.9))),
    RowFormat(256, 1.0, "float16", THIN.floor),
    RowFormat(256, 1.0, "float32", THIN.floor),
)
FUSIONS = (Fusion(), Fusion(weight=0.8), Fusion(Strategy.ARITHMETIC), Fusion(Strategy.MAX))
SAMPLING = Sampling(temperature=0.7, top_p=0.9)
WINDOW = 4
FRAMING = 14
"""Bytes around a message: gRPC's five and an HTTP/2 frame's nine."""


def measure(form: RowFormat = THIN, fusion: Fusion | None = None, records: int = 16) -> dict[str, float]:
    """Measure one format.

    Args:
        form: how rows are cut and coded.
        fusion: of edge and cloud; None is the default.
        records: answers of ctx_dev, of which the first 128 tokens count.

    Returns:
        `kl`: mean KL(fused with the whole cloud row || fused with the coded one), in nats; `kl_error`, its standard
        error over positions. `greedy_unchanged`: share of positions whose likeliest fused token stays.
        `bytes_down_per_token`: bytes of replies a fused token, sampled with drafts in windows of 4, whose rejected rows
        and whose framing count. `bytes_a_row` and `tokens_a_row`: of a row alone.
    """
    rows = answer_rows(records)
    fusion = fusion or Fusion()
    divergences, unchanged, accepted, sent = [], [], [], []
    for position in range(rows.cloud.shape[0]):
        edge, cloud = np.array(rows.edge[position]), np.array(rows.cloud[position])
        sparse = sparsify(cloud, form)
        whole, thin = fuse_whole(edge, cloud, fusion), fuse(edge, _received(sparse, form), fusion)
        divergences.append(float(np.exp(whole, dtype=np.float64) @ (whole - thin)))
        unchanged.append(whole.argmax() == thin.argmax())
        step = int(rows.steps[position])
        accepted.append(choose(edge, step, SAMPLING) == choose(thin, step, SAMPLING))
        sent.append(sparse)
    return {
        "kl": float(np.mean(divergences)),
        "kl_error": float(np.std(divergences) / len(divergences) ** 0.5),
        "greedy_unchanged": float(np.mean(unchanged)),
        "bytes_down_per_token": _bytes_per_token(rows, sent, accepted, form),
        "bytes_a_row": _bytes_per_row(sent, form),
        "tokens_a_row": float(np.mean([row.ids.size for row in sent])),
    }


def fuse_whole(edge: Row, cloud: Row, fusion: Fusion) -> Row:
    """The fused row where the cloud sends all it has."""
    everything = np.arange(cloud.shape[0], dtype=np.int32)
    return fuse(edge, SparseLogProbs(everything, np.minimum(cloud, 0.0), 0.0), fusion)


def _received(row: SparseLogProbs, form: RowFormat) -> SparseLogProbs:
    """What a row is after its way over the wire."""
    data = encode_verified(0, Verified((row,)), form)
    return decode_verified(data, number=0, count=1, vocab_size=int(row.ids[-1]) + 1, form=form).rows[0]


def _bytes_per_row(rows: Sequence[SparseLogProbs], form: RowFormat) -> float:
    one, two = (sum(len(encode_verified(0, Verified((row,) * n), form)) for row in rows) for n in (1, 2))
    return (two - one) / len(rows)


def _bytes_per_token(
    rows: AnswerRows, sent: Sequence[SparseLogProbs], accepted: Sequence[bool], form: RowFormat
) -> float:
    """Bytes of replies a token, for drafts in fixed windows along each answer."""
    spent = tokens = 0
    position = number = 0
    while position < len(sent):
        end = position + 1
        while end < len(sent) and end < position + WINDOW and rows.records[end] == rows.records[position]:
            end += 1
        reply = Verified(tuple(sent[position:end]), 0.02, 0.001)
        spent += len(encode_verified(number, reply, form)) + FRAMING
        number += 1
        # Up to the first draft that is not the fused choice, which takes its place.
        gained = next((i + 1 for i in range(end - position) if not accepted[position + i]), end - position)
        tokens += gained
        position += gained
    return spent / tokens


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=16, help="answers, 128 tokens of each (default 16)")
    parser.add_argument("--quick", action="store_true", help="the default format alone")
    parser.add_argument("--json", action="store_true", help="print for machines")
    arguments = parser.parse_args()
    cases = [(form, FUSIONS[0]) for form in FORMATS] + [(THIN, fusion) for fusion in FUSIONS[1:]]
    if arguments.quick:
        cases = cases[:1]
    rows: list[dict[str, Any]] = []
    for form, fusion in cases:
        result = measure(form, fusion, arguments.records)
        rows.append({**_described(form, fusion), **result})
    emit(
        _headline(rows[0]),
        rows if arguments.json else [_shown(row) for row in rows],
        arguments.json,
        title=f"Rows on the wire, at {answer_rows(arguments.records).cloud.shape[0]:,} tokens of real answers",
        notes=(
            f"B/token: of replies, with rejected rows and framing, in windows of {WINDOW} at temperature "
            f"{SAMPLING.temperature} and top-p {SAMPLING.top_p}.",
            "KL: nats, of the fused row with the whole cloud row from that with the row as sent; ± its standard error.",
        ),
    )


def _described(form: RowFormat, fusion: Fusion) -> dict[str, Any]:
    return {
        "fusion": f"{fusion.strategy} {fusion.weight:g}",
        "top_k": form.top_k,
        "mass": form.mass,
        "floor": form.floor,
        "values": form.value_type,
    }


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    cuts = (f"top {row['top_k']}", f"mass {row['mass']:g}" if row["mass"] < 1 else "", _floor(row["floor"]))
    return {
        "fusion": row["fusion"],
        "row": ", ".join(cut for cut in cuts if cut),
        "values": row["values"],
        "K": row["tokens_a_row"],
        "B/row": row["bytes_a_row"],
        "B/token": row["bytes_down_per_token"],
        "KL": row["kl"],
        "±": row["kl_error"],
        "greedy": f"{row['greedy_unchanged']:.2%}",
    }


def _floor(floor: float) -> str:
    return f"floor {floor:g}" if floor else ""


def _headline(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(row[name]) for name in ("greedy_unchanged", "kl", "bytes_down_per_token")}


if __name__ == "__main__":
    main()

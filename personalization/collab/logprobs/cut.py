"""Cuts whole rows of edge and cloud to what a log-prob file keeps of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_runtime.fusion.edge_features import probes_of
from edge_runtime.fusion.fuse import Tail, tail_of
from edge_runtime.fusion.sparse import SparseLogProbs
from personalization.collab.logprobs.file import STEERING, LogProbs, LogProbsOf, RecordRows

# Log of a mass that is 0 in float64; adding it changes nothing.
_NOTHING = -700.0


@dataclass(frozen=True, eq=False, slots=True)
class AnswerRows:
    """What the models said at every token of one answer.

    Attributes:
        target: (n,) int32, the answer's tokens.
        edge: (n, V) float32 log-probabilities with context.
        cloud: n rows as they came over the wire.
        cloud_target: (n,) float32, the cloud's log-probs of the answer's tokens; NaN where it did not say.
        without: (n, V) float32 log-probabilities of the edge without context, or None.
    """

    target: NDArray[np.int32]
    edge: NDArray[np.float32] = field(repr=False)
    cloud: Sequence[SparseLogProbs] = field(repr=False)
    cloud_target: NDArray[np.float32] = field(repr=False)
    without: NDArray[np.float32] | None = field(default=None, repr=False)


def cut_rows(rows: AnswerRows, about: LogProbsOf, record: str, user: str) -> LogProbs:
    """Cut the rows of one record's answer.

    Args:
        rows: at least one.
        about: whose they are; `edge_top` says how many of the edge's likeliest tokens to keep.
        record: its id.
        user: whose it is.
    """
    tails = [tail_of(edge, cloud) for edge, cloud in zip(rows.edge, rows.cloud, strict=True)]
    tails_without = (
        None
        if rows.without is None
        else [tail_of(edge, cloud) for edge, cloud in zip(rows.without, rows.cloud, strict=True)]
    )
    kept = [
        _kept(rows, index, about.edge_top, tails[index], tails_without[index] if tails_without else None)
        for index in range(len(rows.target))
    ]
    columns = {
        "target": rows.target.astype(np.int32),
        "cloud_count": np.array([cloud.ids.shape[0] for cloud in rows.cloud], np.int32),
        "token_count": np.array([ids.shape[0] for ids in kept], np.int32),
        "ids": np.concatenate(kept).astype(np.int32),
        "edge": np.concatenate([row[ids] for row, ids in zip(rows.edge, kept, strict=True)]),
        "cloud": np.concatenate([cloud.log_probs for cloud in rows.cloud]),
        "edge_rest": _rest(rows.edge, kept),
        "shift": np.array([tail.shift for tail in tails], np.float32),
        "ceiling": np.array([tail.ceiling for tail in tails], np.float32),
        "tail_mass": np.array([cloud.tail_mass for cloud in rows.cloud], np.float32),
        "cloud_target": rows.cloud_target.astype(np.float32),
        "probes": probes_of(rows.edge),
    }
    if rows.without is not None and tails_without is not None:
        steered = [_rest((1 - w) * rows.without + w * rows.edge, kept) for w in STEERING]
        columns |= {
            "without": np.concatenate([row[ids] for row, ids in zip(rows.without, kept, strict=True)]),
            "without_rest": _rest(rows.without, kept),
            "without_shift": np.array([tail.shift for tail in tails_without], np.float32),
            "steering_rest": np.stack(steered, axis=1),
        }
    return LogProbs(about, (RecordRows(record, user, len(rows.target)),), **columns)


def _kept(rows: AnswerRows, index: int, edge_top: int, tail: Tail, tail_without: Tail | None) -> NDArray[np.int64]:
    """The cloud's tokens as they are, then those of the edge that have to be kept, the likeliest first."""
    edge, sent = rows.edge[index], rows.cloud[index].ids.astype(np.int64)
    most = min(edge_top, edge.shape[0])
    others = [
        np.argpartition(-edge, most - 1)[:most],
        np.flatnonzero(edge > tail.ceiling - tail.shift),
        rows.target[index : index + 1].astype(np.int64),
    ]
    if rows.without is not None and tail_without is not None:
        others.append(np.flatnonzero(rows.without[index] > tail_without.ceiling - tail_without.shift))
    new = np.setdiff1d(np.concatenate(others), sent)
    return np.concatenate([sent, new[np.argsort(-edge[new], kind="stable")]])


def _rest(log_weights: NDArray[np.float32], kept: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
    """Log of the sum of the weights of all tokens that are not kept: (n,) float32."""
    rests = np.empty(len(kept), np.float32)
    for index, ids in enumerate(kept):
        weights = np.exp(log_weights[index], dtype=np.float64)
        weights[ids] = 0.0
        mass = float(weights.sum())
        rests[index] = math.log(mass) if mass > 0.0 else _NOTHING
    return rests

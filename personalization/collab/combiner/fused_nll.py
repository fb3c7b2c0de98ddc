"""Negative log-likelihood of reference answers under any fusion, exactly, from a log-prob file alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_runtime.fusion.combiner import Combiner
from edge_runtime.fusion.fuse import Fusion, Strategy
from edge_runtime.generation.schedule import LearnedSchedule, Schedule
from personalization.collab.combiner.rows import learned_asks, learned_nll
from personalization.collab.logprobs.file import STEERING, LogProbs
from personalization.errors import SettingsError

Row = NDArray[np.float64]


def fused_nll(rows: LogProbs, fusion: Fusion, schedule: Schedule | LearnedSchedule | None = None) -> Row:
    """What `fuse` gives the reference's tokens, and the edge alone where the cloud is not asked.

    Args:
        rows: of edge and cloud.
        fusion: strategy and weight; delta steering's is one of `STEERING`, learned fusion has its combiner.
        schedule: where the cloud is asked; None for everywhere.

    Returns:
        (n,) float64, nats: minus the fused log-prob of each row's reference token.

    Raises:
        DataError: delta steering, or the combiner, needs the edge's rows without context, and the file has none.
        SettingsError: delta steering with a weight that the file has no sums for, or a combiner is missing.
    """
    fused = _everywhere(rows, fusion)
    return fused if schedule is None else np.where(asks(rows, schedule), fused, rows.edge_nll)


def asks(rows: LogProbs, schedule: Schedule | LearnedSchedule) -> NDArray[np.bool_]:
    """At which rows the cloud is asked: (n,) bool.

    Raises:
        SettingsError: a learned schedule has no combiner.
    """
    if isinstance(schedule, LearnedSchedule):
        return learned_asks(rows, _present(schedule.combiner), schedule)
    return np.array([schedule.asks(int(step)) for step in rows.step], bool)


def _present(combiner: Combiner | None) -> Combiner:
    if combiner is None:
        raise SettingsError(
            "Learned fusion and a learned schedule need a combiner. Train one with `collab fuse-train`."
        )
    return combiner


def _everywhere(rows: LogProbs, fusion: Fusion) -> Row:
    edge, cloud, weight = rows.edge.astype(np.float64), rows.completed.astype(np.float64), fusion.weight
    rest, shift = rows.edge_rest.astype(np.float64), rows.shift.astype(np.float64)
    match fusion.strategy:
        case Strategy.GEOMETRIC:
            return _nll(rows, weight * edge + (1 - weight) * cloud, rest + (1 - weight) * shift)
        case Strategy.ARITHMETIC:
            if weight in (0.0, 1.0):
                return rows.edge_nll if weight else _nll(rows, cloud, rest + shift)
            of_edge, of_cloud = np.log(weight), np.log1p(-weight)
            kept = np.logaddexp(edge + of_edge, cloud + of_cloud)
            return _nll(rows, kept, rest + np.logaddexp(of_edge, shift + of_cloud))
        case Strategy.MAX:
            return _nll(rows, np.maximum(edge, cloud), rest + np.maximum(shift, 0.0))
        case Strategy.DELTA:
            return _steered_nll(rows, weight)
        case Strategy.LEARNED:
            return learned_nll(rows, _present(fusion.combiner))


def _steered_nll(rows: LogProbs, weight: float) -> Row:
    bare = rows.completed_without.astype(np.float64)  # raises where the file has none
    assert rows.without is not None and rows.without_shift is not None and rows.steering_rest is not None
    if weight not in STEERING:
        raise SettingsError(
            f"The log-probs tell delta steering only with the weights {', '.join(f'{w:g}' for w in STEERING)}, "
            f"not {weight:g}."
        )
    kept = bare + weight * (rows.edge.astype(np.float64) - rows.without)
    return _nll(rows, kept, rows.steering_rest[:, STEERING.index(weight)].astype(np.float64) + rows.without_shift)


def _nll(rows: LogProbs, kept: Row, rest: Row) -> Row:
    """Normalise: `kept` (m,) are log-weights of the kept tokens, `rest` (n,) logs of the sums over all others."""
    most = np.maximum(np.maximum.reduceat(kept, rows.starts), rest)
    weights = np.add.reduceat(np.exp(kept - most[rows.row_of]), rows.starts) + np.exp(rest - most)
    total: Row = most + np.log(weights) - kept[rows.target_at]
    return total

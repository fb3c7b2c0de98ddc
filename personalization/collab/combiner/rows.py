"""What a combiner reads of a log-prob file's rows, by the very code that reads them on a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_runtime.fusion.combiner import EDGE_TOP, Candidates, Combiner, Vector
from edge_runtime.fusion.edge_features import RECENT, schedule_features
from edge_runtime.fusion.logprobs import CANCELLATION
from edge_runtime.generation.schedule import Decision, LearnedSchedule
from personalization.collab.logprobs.file import LogProbs
from personalization.errors import DataError


@dataclass(frozen=True, eq=False, slots=True)
class CombinerRow:
    """One row as a combiner sees it.

    Attributes:
        candidates: of the row.
        step: which token of its answer it predicts.
        recent: what the edge's rows gave the tokens before, the latest last.
        probes: (PROBES,) float32, of the edge's row.
        target: the reference token's place among the candidates; the last is the rest.
        offset: what the token has of its candidate's log-prob: 0, or its share of the rest.
    """

    candidates: Candidates = field(repr=False)
    step: int
    recent: tuple[float, ...]
    probes: NDArray[np.float32] = field(repr=False)
    target: int
    offset: float

    @property
    def of_edge(self) -> Vector:
        """What tells the cloud's worth: (SCHEDULE_FEATURES,)."""
        return schedule_features(self.candidates.top, self.recent, self.probes, self.step)


def combiner_rows(rows: LogProbs, *, without: bool) -> Iterator[CombinerRow]:
    """Each row of a file, in order.

    Args:
        rows: the file.
        without: whether the edge's rows without context are read, too.

    Raises:
        DataError: they are, and the file has none; or it has too few of the edge's tokens.
    """
    if without and rows.without is None:
        raise DataError("The log-probs are without those of the edge without context. Make them with --without.")
    if rows.about.edge_top < EDGE_TOP:
        raise DataError(f"A combiner needs the edge's {EDGE_TOP} likeliest tokens, the log-probs have fewer.")
    sent_starts = np.cumsum(rows.cloud_count) - rows.cloud_count
    edge, bare = rows.edge.astype(np.float64), None if rows.without is None else rows.without.astype(np.float64)
    target_place = rows.place[rows.target_at]
    told = (-rows.edge_nll).tolist()
    rest = np.exp(rows.edge_rest.astype(np.float64))
    for index, (first, sent, count) in enumerate(zip(rows.starts, rows.cloud_count, rows.token_count, strict=True)):
        kept = edge[first : first + count]
        # Of equally likely tokens those with the lowest ids, as on the device.
        likeliest = np.lexsort((rows.ids[first : first + count], -kept))[:EDGE_TOP]
        chosen = np.concatenate([np.arange(sent), likeliest[likeliest >= sent]])
        values = kept[chosen]
        outside = 1.0 - float(np.exp(values).sum())
        if outside < CANCELLATION:
            outside = float(rest[index] + np.exp(np.delete(kept, chosen)).sum())
        candidates = Candidates.of(
            values,
            kept[likeliest],
            rows.cloud[sent_starts[index] : sent_starts[index] + sent].astype(np.float64),
            float(rows.tail_mass[index]),
            outside,
            bare[first : first + count][chosen] if without and bare is not None else None,
        )
        place = np.flatnonzero(chosen == target_place[index])
        target = int(place[0]) if place.size else chosen.size
        offset = 0.0 if place.size else float(kept[target_place[index]]) - candidates.log_rest
        step = int(rows.step[index])
        yield CombinerRow(
            candidates, step, tuple(told[index - min(step, RECENT) : index]), rows.probes[index], target, offset
        )


def learned_nll(rows: LogProbs, combiner: Combiner) -> Vector:
    """What a combiner gives the reference's tokens: (n,) float64, nats.

    Raises:
        DataError: it reads the edge's rows without context, and the file has none.
    """
    found = combiner_rows(rows, without=combiner.uses_without)
    return np.array([-combiner.mix(row.candidates, row.step)[row.target] - row.offset for row in found])


def learned_asks(rows: LogProbs, combiner: Combiner, schedule: LearnedSchedule) -> NDArray[np.bool_]:
    """Where a learned schedule asks the cloud, by a combiner's worth: (n,) bool; always at the first step."""
    worths = np.array([combiner.worth(row.of_edge) for row in combiner_rows(rows, without=False)])
    return asks_by_worth(rows, worths, combiner.threshold, schedule)


def asks_by_worth(rows: LogProbs, worths: Vector, threshold: float, schedule: LearnedSchedule) -> NDArray[np.bool_]:
    """The same where the (n,) worths are known already."""
    asked = np.ones(rows.size, bool)
    decisions: list[Decision] = []
    for index, (step, worth) in enumerate(zip(rows.step.tolist(), worths.tolist(), strict=True)):
        if step == 0:
            decisions = []
            continue
        decisions.append(schedule.decide_by(worth, threshold, decisions))
        asked[index] = decisions[-1].asks
    return asked

"""Random rows of two models as a log-prob file keeps them, and the whole rows that they were cut from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.fusion.sparse import RowFormat, sparsify
from personalization.collab.logprobs.cut import AnswerRows, cut_rows
from personalization.collab.logprobs.file import LogProbs, LogProbsOf, joined


@dataclass(frozen=True)
class Whole:
    """What the models said, uncut: `answers` in the order of the file's records."""

    answers: list[AnswerRows]
    file: LogProbs


def random_logprobs(
    seed: int, vocabulary: int, form: RowFormat, *, records: int = 1, length: int = 6, spread: float = 3.0
) -> Whole:
    """Edge and cloud that agree in part; each record is another user's."""
    rng = np.random.default_rng(seed)
    about = LogProbsOf("edge", "base", "cloud", vocabulary, form, 16, without_context=True)
    answers, parts = [], []
    for record in range(records):
        common = rng.standard_normal((length, vocabulary)) * spread
        edge, without, cloud = (_row(common, rng, spread) for _ in range(3))
        # Mostly what both expect, as text is.
        target = np.array([rng.choice(vocabulary, p=_shares(row)) for row in common], np.int32)
        sent = [sparsify(row, form) for row in cloud]
        answers.append(AnswerRows(target, edge, sent, cloud[np.arange(length), target], without))
        parts.append(cut_rows(answers[-1], about, f"record-{record}", f"user-{record}"))
    return Whole(answers, joined(parts))


def _row(common: NDArray[np.float64], rng: np.random.Generator, spread: float) -> NDArray[np.float32]:
    return log_softmax((common + rng.standard_normal(common.shape) * spread / 2).astype(np.float32))


def _shares(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()

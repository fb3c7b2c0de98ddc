"""What the edge's own rows tell: the numbers that the learned combiner and the learned schedule read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

EDGE_FEATURES = 7
RECENT = 3
"""Tokens before a row whose log-probs, by the edge's own rows, the learned schedule looks at."""
PROBES = 128
"""Tokens, the same for all rows, whose log-probs the learned schedule looks at."""
SCHEDULE_FEATURES = EDGE_FEATURES + RECENT + PROBES

# Features are logs of masses that can be 0.
LEAST_MASS = 1e-4
LEAST_RECENT = -12.0
LEAST_PROBE = -40.0
# Before the first token.
NO_TOKEN = -2.0


@lru_cache(maxsize=8)
def probe_ids(vocab_size: int) -> NDArray[np.int64]:
    """(PROBES,) int64: the probes' ids, evenly over the vocabulary.

    A logit is a linear function of the model's last hidden state, so many tokens' logits tell where that state is, as
    no likeliest tokens can: what kind of place in a text this is. Any tokens do, if they differ.
    """
    ids = np.arange(PROBES) * (vocab_size - 1) // (PROBES - 1)
    ids.flags.writeable = False
    return ids


def probes_of(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probes' log-probs in one row, or in several: (..., V) gives (..., PROBES) float32."""
    return np.maximum(rows[..., probe_ids(rows.shape[-1])], np.float32(LEAST_PROBE))


def edge_features(top: NDArray[np.float64], step: int) -> list[float]:
    """What the edge alone tells of a row: EDGE_FEATURES numbers.

    Args:
        top: log-probs of its likeliest tokens, the likeliest first.
        step: which token of the answer the row predicts.
    """
    share = np.exp(top)
    rest = max(1.0 - float(share.sum()), LEAST_MASS)
    second = float(top[1]) if top.size > 1 else float(top[0])
    return [
        float(top[0]),
        float(top[0]) - second,
        -float(share @ top) - rest * math.log(rest),
        math.log(rest),
        float(share[0]),
        math.log1p(step),
        math.exp(-step / 8.0),
    ]


def schedule_features(
    top: NDArray[np.float64], recent: Sequence[float], probes: NDArray[np.float32], step: int
) -> NDArray[np.float64]:
    """What tells the cloud's worth before it is asked: (SCHEDULE_FEATURES,).

    Behind a token that it found unlikely the edge is often lost, however sure it is.

    Args:
        top: see `edge_features`.
        recent: log-probs that the edge's rows gave the tokens before, the latest last.
        probes: of the row, see `probes_of`.
        step: which token of the answer the row predicts.
    """
    told = [max(one, LEAST_RECENT) for one in reversed(recent[-RECENT:])]
    features = np.empty(SCHEDULE_FEATURES)
    features[:-PROBES] = [*edge_features(top, step), *told, *[NO_TOKEN] * (RECENT - len(told))]
    features[-PROBES:] = probes
    return features

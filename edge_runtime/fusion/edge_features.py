"""Computes features of the edge's rows: the inputs of the learned combiner and the learned schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

EDGE_FEATURES = 7
RECENT = 3
"""Number of previous tokens whose edge log-probs the learned schedule reads."""
PROBES = 128
"""Number of fixed tokens, the same for all rows, whose log-probs the learned schedule reads."""
SCHEDULE_FEATURES = EDGE_FEATURES + RECENT + PROBES

# Floors: features are logs of masses that can be 0.
LEAST_MASS = 1e-4
LEAST_RECENT = -12.0
LEAST_PROBE = -40.0
# Stands for the missing tokens before the first one.
NO_TOKEN = -2.0


@lru_cache(maxsize=8)
def probe_ids(vocab_size: int) -> NDArray[np.int64]:
    """Return the probes' ids, spread evenly over the vocabulary: (PROBES,) int64.

    A logit is a linear function of the model's last hidden state. So the logits of many fixed tokens locate that state,
    and with it the kind of place in the text; the likeliest tokens alone can't. Any distinct tokens will do.
    """
    ids = np.arange(PROBES) * (vocab_size - 1) // (PROBES - 1)
    ids.flags.writeable = False
    return ids


def probes_of(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probes' log-probs in one or several rows: (..., V) gives (..., PROBES) float32."""
    return np.maximum(rows[..., probe_ids(rows.shape[-1])], np.float32(LEAST_PROBE))


def edge_features(top: NDArray[np.float64], step: int) -> list[float]:
    """Compute the features of an edge row: EDGE_FEATURES numbers.

    Args:
        top: log-probs of the row's likeliest tokens, the likeliest first.
        step: index of the answer token that the row predicts.
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
    """Compute the features that predict the cloud's gain before it is asked: (SCHEDULE_FEATURES,).

    Recent log-probs matter because after a token that it found unlikely, the edge is often wrong, even if certain.

    Args:
        top: see `edge_features`.
        recent: log-probs that the edge's rows gave the previous tokens, the latest last.
        probes: the row's probes, see `probes_of`.
        step: index of the answer token that the row predicts.
    """
    told = [max(one, LEAST_RECENT) for one in reversed(recent[-RECENT:])]
    features = np.empty(SCHEDULE_FEATURES)
    features[:-PROBES] = [*edge_features(top, step), *told, *[NO_TOKEN] * (RECENT - len(told))]
    features[-PROBES:] = probes
    return features

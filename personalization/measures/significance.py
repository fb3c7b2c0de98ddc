"""Tells whether one of two systems is better on the same samples, or only luckier.

The test is approximate randomization (Noreen, 1989; Yeh, 2000): were both alike, each sample's two results could as
well be the other way round. So they are exchanged at random, many times, and the p-value is how often the difference is
as large as the one that was seen. For accuracy this is McNemar's exact test, by sampling. Nothing is assumed of how
scores are distributed, and every score that is a function of means can be tested, F1 and RMSE as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Score: TypeAlias = Callable[[Array], Array]

RESAMPLES = 10_000
_CELLS_AT_ONCE = 1 << 22  # of the matrices of resamples by samples: 32 MB
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems by one score.

    Attributes:
        score: of the system.
        baseline: score of the other.
        difference: score - baseline.
        low, high: the difference's 95 % interval, by paired bootstrap over samples.
        p: two-sided p-value of the paired randomization test.
    """

    score: float
    baseline: float
    difference: float
    low: float
    high: float
    p: float

    def document(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return asdict(self)


def compare_systems(
    system: Array, baseline: Array, scores: Mapping[str, Score], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Comparison]:
    """Compare two systems.

    Args:
        system: (samples, m) float64, statistics of one system's answers.
        baseline: (samples, m), those of the other's, to the same samples in the same order.
        scores: by name, (..., m) means of statistics -> (...) scores.
        resamples: how often results are exchanged, and samples are drawn.
        seed: of both.

    Returns:
        By name. A p-value is at least 1 / (resamples + 1).
    """
    means = system.mean(axis=0), baseline.mean(axis=0)
    exchanged = _exchanged_means(system, baseline, resamples, np.random.default_rng([seed, 0]))
    drawn = _drawn_means(system, baseline, resamples, np.random.default_rng([seed, 1]))
    found = {}
    for name, score in scores.items():
        ours, theirs = (float(score(mean)) for mean in means)
        differences = score(exchanged[0]) - score(exchanged[1])
        as_large = np.abs(differences) >= abs(ours - theirs) - _ROUNDING * max(abs(ours), abs(theirs), 1.0)
        low, high = np.quantile(score(drawn[0]) - score(drawn[1]), (0.025, 0.975))
        p = (1 + int(as_large.sum())) / (1 + resamples)
        found[name] = Comparison(ours, theirs, ours - theirs, float(low), float(high), p)
    return found


def _exchanged_means(system: Array, baseline: Array, resamples: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Means of both, (resamples, m) each, where about half of the samples' results were exchanged."""
    samples, gap = len(system), baseline - system
    moved = np.concatenate(
        [
            rng.integers(0, 2, (rows, samples), dtype=np.int8).astype(np.float64) @ gap / samples
            for rows in _portions(resamples, samples)
        ]
    )
    return system.mean(axis=0) + moved, baseline.mean(axis=0) - moved


def _drawn_means(system: Array, baseline: Array, resamples: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Means of both, (resamples, m) each, over as many samples, drawn with replacement."""
    samples = len(system)
    ours, theirs = [], []
    for rows in _portions(resamples, samples):
        drawn = rng.integers(0, samples, (rows, samples)) + samples * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * samples).reshape(rows, samples) / samples
        ours.append(times @ system)
        theirs.append(times @ baseline)
    return np.concatenate(ours), np.concatenate(theirs)


def _portions(resamples: int, samples: int) -> list[int]:
    """Resamples to do at once, so that memory stays bounded."""
    most = max(_CELLS_AT_ONCE // samples, 1)
    return [min(most, resamples - start) for start in range(0, resamples, most)]

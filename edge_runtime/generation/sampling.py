"""Chooses a token from log-probabilities, with noise that is a function of (seed, position, token) alone.

A draft and a verified row at the same position therefore use the same noise ("common noise"), and the result does not
depend on how tokens were grouped into calls.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import RequestError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_POSITION = np.uint64(0xD1B54A32D192ED03)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen. The filters apply in this order, one after the other, as in transformers.

    Attributes:
        temperature: 0 is greedy (the filters then have no effect).
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the fewest likeliest tokens whose mass reaches p (nucleus sampling, Holtzman et al. 2020).
        min_p: keep tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024).
        repetition_penalty: factor for log-probs of tokens already in the answer (Keskar et al. 2019). It applies to
            log-probs because fused rows have no logits. The prompt does not count, since that would penalise the user's
            own words.
        seed: seed of the noise.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    @property
    def looks_back(self) -> bool:
        """Whether a choice depends on the tokens of the answer so far, not only on their number."""
        return self.repetition_penalty != 1.0

    def __post_init__(self) -> None:
        for name, right, words in (
            ("temperature", 0.0 <= self.temperature <= 100.0, "in 0 .. 100"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", 0.0 <= self.min_p < 1.0, "at least 0 and below 1"),
            ("repetition_penalty", 0.1 <= self.repetition_penalty <= 10.0, "in 0.1 .. 10"),
            ("seed", 0 <= self.seed < 2**64, "in 0 .. 2^64 - 1"),
        ):
            if not right:
                # Named apart from the `top_k` of the cloud's rows.
                shown = "sampling.top_k" if name == "top_k" else name
                raise RequestError(f"`{shown}` must be {words}, not {getattr(self, name)}.")


def choose(log_probs: NDArray[np.float32], position: int, sampling: Sampling, answer: Collection[int] = ()) -> int:
    """Choose the token at `position` of the answer: argmax(filtered log-probs / T + Gumbel noise(seed, position)).

    By the Gumbel-max trick this is an exact sample of the filtered distribution.

    Args:
        log_probs: (V,) float32, natural log-probabilities; not changed.
        position: index in the answer, from 0.
        sampling: the settings.
        answer: tokens of the answer so far, for the repetition penalty.

    Returns:
        A token id. Ties go to the lowest id.
    """
    if sampling.looks_back and answer:
        log_probs = log_probs.copy()
        seen = np.unique(np.fromiter(answer, np.int64, len(answer)))
        log_probs[seen] *= np.float32(sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return int(log_probs.argmax())
    scaled = log_probs / np.float32(sampling.temperature)
    kept = candidates(scaled, sampling)
    bits = _bits(sampling.seed, position, kept)
    likeliest = int(scaled[kept].argmax())
    best = float(scaled[kept[likeliest]]) + float(_gumbel(bits[likeliest : likeliest + 1])[0])
    # A token beats `best` only if -log u < exp(score - best); since -log u >= 1 - u, most are ruled out without a log.
    with np.errstate(over="ignore"):
        hopeful = 1.0 - _uniform(bits) <= np.exp(scaled[kept] - np.float32(best - 1e-3))
    scores = scaled[kept[hopeful]].astype(np.float64) + _gumbel(bits[hopeful])
    return int(kept[hopeful][scores.argmax()])


def candidates(scaled: NDArray[np.float32], sampling: Sampling) -> NDArray[np.int64]:
    """Return the token ids that pass top-k, top-p and min-p, ascending.

    Args:
        scaled: (V,) float32, log-probabilities divided by the temperature.
        sampling: the settings.
    """
    vocabulary = scaled.shape[0]
    kept = np.arange(vocabulary)
    if 0 < sampling.top_k < vocabulary:
        kept = np.sort(np.argpartition(scaled, -sampling.top_k)[-sampling.top_k :])
    if sampling.top_p < 1.0:
        kept = _nucleus(scaled, kept, sampling.top_p)
    if sampling.min_p > 0.0:
        kept = kept[scaled[kept] >= scaled[kept].max() + np.log(np.float32(sampling.min_p))]
    return kept


def _nucleus(scaled: NDArray[np.float32], kept: NDArray[np.int64], top_p: float) -> NDArray[np.int64]:
    scores = scaled[kept]
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum(dtype=np.float64)
    # Tokens below (1 - p) / n have a total mass below 1 - p, so the nucleus lies among the others: sort only those.
    likely = np.flatnonzero(probabilities >= (1.0 - top_p) / kept.shape[0])
    order = likely[np.argsort(-probabilities[likely], kind="stable")]
    before = np.cumsum(probabilities[order], dtype=np.float64) - probabilities[order]
    # A token stays while the mass before it is below p; the likeliest always stays.
    nucleus: NDArray[np.int64] = kept[np.sort(order[before < top_p])]
    return nucleus


def gumbel(seed: int, position: int, token_ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return standard Gumbel noise for tokens at a position; a pure function of its arguments.

    Counter-based: token t gets the t-th number of a SplitMix64 stream (Steele et al. 2014) whose state comes from seed
    and position. So every port gives the same numbers, and only the candidates' numbers are computed.

    Args:
        seed: 0 .. 2^64 - 1.
        position: 0 .. 2^64 - 1.
        token_ids: (n,) integers.

    Returns:
        (n,) float64.
    """
    return _gumbel(_bits(seed, position, token_ids))


def _bits(seed: int, position: int, token_ids: NDArray[np.integer]) -> NDArray[np.uint64]:
    key = _mix(_mix(np.array([seed], np.uint64) + _GOLDEN) ^ (np.array([position], np.uint64) * _POSITION))
    return _mix(token_ids.astype(np.uint64) * _GOLDEN + key)


def _uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    uniform = (bits >> np.uint64(11)).astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-53
    return uniform


def _gumbel(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    noise: NDArray[np.float64] = -np.log(-np.log(_uniform(bits)))
    return noise


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))

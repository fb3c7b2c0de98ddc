"""Combiners with random weights, as strong as trained ones."""

from __future__ import annotations

import numpy as np

from edge_runtime.fusion.combiner import (
    EXPERTS,
    OUTPUTS,
    ROW_FEATURES,
    TOKEN_FEATURES,
    WITHOUT_FEATURES,
    Combiner,
    Layer,
)
from edge_runtime.fusion.edge_features import EDGE_FEATURES, SCHEDULE_FEATURES
from edge_runtime.fusion.sparse import THIN, RowFormat


def random_combiner(
    seed: int, *, without: bool = False, base: str = "base", gap: float = 0.0, rows: RowFormat = THIN
) -> Combiner:
    """A combiner whose experts are near what training begins with: the product, the edge, the cloud.

    Its schedule asks where the edge's two likeliest tokens are less than about `gap` nats apart: more behind a token
    that is less likely than the one before.
    """
    rng = np.random.default_rng(seed)

    def layer(inputs: int, outputs: int, scale: float) -> Layer:
        weight, bias = rng.standard_normal((inputs, outputs)) * scale, rng.standard_normal(outputs) * scale
        return Layer(weight.astype(np.float32).astype(np.float64), bias.astype(np.float32).astype(np.float64))

    worth = np.eye(SCHEDULE_FEATURES, 1, -1) * -0.5
    worth[EDGE_FEATURES : EDGE_FEATURES + 2, 0] = -0.05, 0.05
    out = layer(8, OUTPUTS, 0.1)
    begun = out.bias.copy()
    begun[EXPERTS:].reshape(EXPERTS, TOKEN_FEATURES)[:, :2] += np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    return Combiner(
        base,
        "cloud",
        rows,
        without,
        layer(ROW_FEATURES + WITHOUT_FEATURES * without, 8, 0.2),
        Layer(out.weight, begun.astype(np.float32).astype(np.float64)),
        Layer(worth, np.array([0.5 * gap])),
        Layer(np.ones((1, 1)), np.zeros(1)),
        0.0,
    )

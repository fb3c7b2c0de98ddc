"""Random row formats and sparse rows, from flat to certain, for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, sparsify

VALUE_TYPES = st.sampled_from(["float32", "float16", "bits12"])
FORMATS = st.builds(
    RowFormat,
    st.integers(1, 2**32 - 1),
    st.floats(0, 1, exclude_min=True, width=32),
    VALUE_TYPES,
    st.floats(0, 1, exclude_max=True, width=32),
)


@st.composite
def random_rows(draw: st.DrawFn, vocab_size: int = 300) -> SparseLogProbs:
    """The likeliest tokens of a normalised row."""
    seed, k, sharpness = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, vocab_size)), draw(st.floats(0, 60))
    logits = np.random.default_rng(seed).normal(size=vocab_size) * sharpness
    logits -= logits.max()
    return sparsify((logits - np.log(np.exp(logits).sum())).astype(np.float32), RowFormat(k, 1.0, "float32", 0.0))

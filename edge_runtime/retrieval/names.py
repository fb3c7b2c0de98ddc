"""Names the built-in retrievers; every other name is a text encoder's."""

from __future__ import annotations

NONE = "none"
RECENCY = "recency"
BM25 = "bm25"
HYBRID = "hybrid"
MIXED = "mixed"
AUTO = "auto"
DENSE = "dense"
"""The default encoder of rankings; also an alias for a directory's only encoder."""

WITHOUT_ENCODER = (NONE, RECENCY, BM25)
RESERVED = (*WITHOUT_ENCODER, HYBRID, MIXED, AUTO)

"""What the ways to find past texts are called; every other name is that of a text encoder."""

from __future__ import annotations

NONE = "none"
RECENCY = "recency"
BM25 = "bm25"
HYBRID = "hybrid"
MIXED = "mixed"
AUTO = "auto"
DENSE = "dense"
"""The encoder of rankings that name none; what a directory's only encoder answers to, too."""

WITHOUT_ENCODER = (NONE, RECENCY, BM25)
RESERVED = (*WITHOUT_ENCODER, HYBRID, MIXED, AUTO)

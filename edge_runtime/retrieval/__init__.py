"""Finds the stored texts that belong in a prompt."""

from edge_runtime.retrieval.kit import RetrievalKit, bundle_retrieval, open_retrieval_kit
from edge_runtime.retrieval.search import Found, StoreSearch

__all__ = ["Found", "RetrievalKit", "StoreSearch", "bundle_retrieval", "open_retrieval_kit"]

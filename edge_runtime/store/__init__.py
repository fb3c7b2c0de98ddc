"""The profile store: one SQLite file with a word index and a vector index."""

from edge_runtime.store.importing import read_import
from edge_runtime.store.item import NewItem, StoredItem
from edge_runtime.store.profile_store import ProfileStore

__all__ = ["NewItem", "ProfileStore", "StoredItem", "read_import"]

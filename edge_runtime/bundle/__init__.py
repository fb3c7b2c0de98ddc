"""The directory that ships to a device: its manifest, its reader and its tensor files."""

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.reader import Bundle, open_bundle

__all__ = ["Bundle", "Manifest", "open_bundle"]

"""The bundle, the directory that ships to a device: manifest, reader and tensor files."""

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.reader import Bundle, open_bundle

__all__ = ["Bundle", "Manifest", "open_bundle"]

"""What an export hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.manifest import DecoderSpec, Manifest


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished bundle: where it is, its manifest, the decoder just made, and its size in bytes without manifest."""

    path: Path
    manifest: Manifest
    decoder: DecoderSpec
    size: int


def exported(out: Path, manifest: Manifest, backend: str) -> Exported:
    """Describe the bundle at `out`, whose decoder for `backend` was just made."""
    decoder = next(spec for spec in manifest.decoders if spec.backend == backend)
    return Exported(out, manifest, decoder, sum(entry.size for entry in manifest.files))

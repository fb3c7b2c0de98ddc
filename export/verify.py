"""Checks a finished bundle: every file's hash, and that the decoder gives the logits of the conformance vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.bundle import open_bundle
from edge_runtime.manifest import ROLE_GOLDEN
from edge_runtime.open_decoder import open_decoder
from edge_runtime.tokenizer import Tokenizer
from export.conformance import Conformance, compare, read_vectors
from export.errors import ConformanceError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked: `files` with `size` bytes in all, and the decoder's `conformance`."""

    files: int
    size: int
    conformance: Conformance


def verify_bundle(path: Path, *, threads: int | None = None) -> Verification:
    """Check a bundle's files, tokenizer and logits.

    Args:
        path: the bundle's directory.
        threads: of the decoder; all usable cores where None.

    Raises:
        BundleError: the manifest or a file is missing, damaged, unsafe or of another version.
        ConformanceError: there are no conformance vectors, or the decoder gives other logits.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    tokenizer = Tokenizer.load(bundle.path(manifest.tokenizer.path))
    if tokenizer.fingerprint != manifest.tokenizer.fingerprint:
        raise ConformanceError(
            f"The tokenizer is not the one of the manifest: {bundle.path(manifest.tokenizer.path)}. Export it again."
        )
    entry = manifest.file(ROLE_GOLDEN)
    if entry is None:
        raise ConformanceError(f"The bundle has no conformance vectors: {path}. Export it again.")
    golden = bundle.path(entry.path)
    vectors = read_vectors(golden.read_bytes(), str(golden), manifest.vocab_size)
    conformance = compare(open_decoder(bundle, threads=threads), vectors, str(path))
    return Verification(len(manifest.files), sum(item.size for item in manifest.files), conformance)

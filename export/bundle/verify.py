"""Checks a finished bundle: every file's hash, and that its decoders give the logits of their conformance vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders.open import open_decoder
from edge_runtime.retrieval.kit import bundle_retrieval, open_retrieval_kit
from edge_runtime.text.tokenizer import Tokenizer
from export.bundle.conformance import Conformance, compare, read_vectors
from export.errors import ConformanceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked: `files` with `size` bytes in all, and each decoder's `conformance`, by backend.

    `encoders` are the text encoders for retrieval by name, with the largest difference to their golden vectors.
    """

    files: int
    size: int
    conformance: Mapping[str, Conformance]
    encoders: Mapping[str, float]


def verify_bundle(path: Path, *, threads: int | None = None) -> Verification:
    """Check a bundle's files, tokenizer and logits.

    Args:
        path: the bundle's directory.
        threads: of each decoder; all usable cores where None.

    Raises:
        BundleError: the manifest or a file is missing, damaged, unsafe or of another version.
        ConformanceError: the conformance vectors can't be read, or a decoder gives other logits.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    tokenizer = Tokenizer.load(bundle.path(manifest.tokenizer.path))
    if tokenizer.fingerprint != manifest.tokenizer.fingerprint:
        raise ConformanceError(
            f"The tokenizer is not the one of the manifest: {bundle.path(manifest.tokenizer.path)}. Export it again."
        )
    conformance = {}
    for spec in manifest.decoders:
        golden = bundle.path(spec.golden)
        vectors = read_vectors(golden.read_bytes(), str(golden), manifest.vocab_size)
        decoder = open_decoder(bundle, spec.backend, threads=threads)
        conformance[spec.backend] = compare(decoder, vectors, f"{path}, {spec.backend}")
    retrieval = bundle_retrieval(path)
    encoders = {} if retrieval is None else verify_encoders(retrieval)
    return Verification(len(manifest.files), sum(item.size for item in manifest.files), conformance, encoders)


def verify_encoders(root: Path) -> dict[str, float]:
    """Check the text encoders of a directory: every file's hash and the golden vectors.

    Args:
        root: an encoder's directory, or one whose subdirectories are encoders.

    Returns:
        The largest difference to a golden vector, as a share of its length, by the encoder's name.

    Raises:
        BundleError: something is missing or damaged, or a vector is another one.
    """
    kit = open_retrieval_kit(root)
    return {name: kit.encoder(name).check() for name in kit.encoders}

"""Writes a bundle, all at once or not at all: graph, tokenizer, conformance vectors and the manifest over them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from tokenizers import Tokenizer as HFTokenizer

from edge_runtime.bundle import Bundle, sha256_of
from edge_runtime.manifest import (
    FORMAT,
    MANIFEST_NAME,
    ROLE_GOLDEN,
    ROLE_GRAPH,
    ROLE_TOKENIZER,
    ROLE_WEIGHTS,
    FileEntry,
    Manifest,
    ModelCard,
    TokenizerSpec,
    write_manifest,
)
from edge_runtime.manifest import WeightSource as ManifestSource
from edge_runtime.tokenizer import Tokenizer
from export.conformance import make_vectors, write_vectors
from export.errors import SourceError
from export.progress import Progress, silent
from export.staging import staged_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.manifest import DecoderSpec, Quantization
    from export.weights import Provenance, TokenizerAssets

GRAPH_DIRECTORY = "onnx"
TOKENIZER_NAME = "tokenizer.json"
GOLDEN_NAME = "golden.json"


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What a manifest says and the files alone don't tell."""

    architecture: str
    provenance: Provenance
    tokenizer: TokenizerAssets
    context_length: int
    vocab_size: int
    quantization: Quantization


def write_bundle(
    out: Path,
    parts: BundleParts,
    write_graph: Callable[[Path], DecoderSpec],
    *,
    replace_existing: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Make a bundle.

    Args:
        out: its directory; an existing bundle is replaced if told so, anything else never.
        parts: for the manifest.
        write_graph: writes the decoder's files into the directory that it is given, and describes it.
        replace_existing: replace a bundle that is already there.
        progress: see `export.progress`.

    Raises:
        WriteError: the disk is full, or something is in the way; nothing half-written remains.
        SourceError: the tokenizer has ids that the model doesn't.
    """
    with staged_directory(out, replaceable=is_bundle, replace=replace_existing) as root:
        graph_directory = root / GRAPH_DIRECTORY
        graph_directory.mkdir()
        decoder = write_graph(graph_directory)
        (root / TOKENIZER_NAME).write_text(parts.tokenizer.json, encoding="utf-8")
        fingerprint = _checked_fingerprint(parts)
        files = [_entry(root, root / TOKENIZER_NAME, ROLE_TOKENIZER)]
        for file in sorted(path for path in graph_directory.rglob("*") if path.is_file()):
            role = ROLE_GRAPH if file.suffix == ".onnx" else ROLE_WEIGHTS
            files.append(_entry(root, file, role))
        manifest = _manifest(parts, decoder, fingerprint, tuple(files))
        progress("Computing conformance vectors", 0, 1)
        vectors = make_vectors(Bundle(root, manifest))
        progress("Computing conformance vectors", 1, 1)
        (root / GOLDEN_NAME).write_text(write_vectors(vectors), encoding="utf-8")
        manifest = replace(manifest, files=(*files, _entry(root, root / GOLDEN_NAME, ROLE_GOLDEN)))
        (root / MANIFEST_NAME).write_text(write_manifest(manifest), encoding="utf-8")
    return manifest


def is_bundle(path: Path) -> bool:
    """Whether a directory holds a bundle, of any version and in any condition."""
    try:
        body = json.loads((path / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(body, dict) and body.get("format") == FORMAT


def created_by() -> str:
    """Name and version of this exporter."""
    try:
        return f"cogenesis-edge {version('cogenesis-edge')}"
    except PackageNotFoundError:
        return "cogenesis-edge (not installed)"


def _manifest(parts: BundleParts, decoder: DecoderSpec, fingerprint: str, files: tuple[FileEntry, ...]) -> Manifest:
    source, tokenizer = parts.provenance, parts.tokenizer
    return Manifest(
        created_by=created_by(),
        model=ModelCard(source.model_id, source.revision, parts.architecture, source.license, source.parameters),
        tokenizer=TokenizerSpec(
            TOKENIZER_NAME, fingerprint, tokenizer.bos_token, tokenizer.eos_token, tokenizer.stop_token_ids
        ),
        chat_template=tokenizer.chat_template,
        context_length=parts.context_length,
        vocab_size=parts.vocab_size,
        decoder=decoder,
        quantization=parts.quantization,
        source=ManifestSource(source.kind, source.name, source.sha256),
        files=files,
    )


def _checked_fingerprint(parts: BundleParts) -> str:
    tokenizer = Tokenizer(HFTokenizer.from_str(parts.tokenizer.json))
    largest = max(tokenizer.backend.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= parts.vocab_size:
        raise SourceError(
            f"Tokenizer and weights don't belong together: token {largest} exists, "
            f"but the model has only {parts.vocab_size:,}. Check the model's files."
        )
    return tokenizer.fingerprint


def _entry(root: Path, path: Path, role: str) -> FileEntry:
    return FileEntry(path.relative_to(root).as_posix(), role, path.stat().st_size, sha256_of(path))

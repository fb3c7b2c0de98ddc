"""Writes a bundle atomically: decoder, tokenizer, conformance vectors and manifest."""

from __future__ import annotations

import functools
import json
import os
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as HFTokenizer

from edge_runtime.adapters.store import ADAPTER_NAME, ADAPTERS_DIRECTORY
from edge_runtime.bundle.manifest import (
    BACKEND_ONNX,
    FORMAT,
    MANIFEST_NAME,
    ROLE_COMBINER,
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
from edge_runtime.bundle.manifest import WeightSource as ManifestSource
from edge_runtime.bundle.reader import Bundle, open_bundle, sha256_of
from edge_runtime.errors import BundleError, WriteError
from edge_runtime.files.staged_directory import staged_directory
from edge_runtime.text.prompt_form import prompt_form
from edge_runtime.text.tokenizer import Tokenizer
from export.bundle.conformance import make_vectors, write_vectors
from export.errors import SourceError
from export.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_runtime.bundle.manifest import DecoderSpec, SourceCheck
    from export.model.architecture import Architecture
    from export.model.weights import Provenance, TokenizerAssets, WeightSource

TOKENIZER_NAME = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class BundleParts:
    """Contents of the manifest that can't be read from the bundle's files.

    `template_variables` None keeps those of the bundle to which a decoder is added.
    """

    architecture: str
    provenance: Provenance
    tokenizer: TokenizerAssets
    context_length: int
    vocab_size: int
    template_variables: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, source: WeightSource, architecture: Architecture, template_variables: Mapping[str, Any] | None = None
    ) -> BundleParts:
        """Parts for a model of one of the families that we write ourselves."""
        return cls(
            architecture.family,
            source.provenance(),
            source.tokenizer(),
            architecture.context_length,
            architecture.vocab,
            template_variables,
        )

    def check_template_variables(self) -> None:
        """Check that the chat template uses the variables.

        Raises:
            RequestError: it does not use one of them.
        """
        if self.template_variables:
            prompt_form(self.tokenizer.chat_template, self.tokenizer.template_tokens, self.template_variables)


def write_bundle(
    out: Path,
    parts: BundleParts,
    backend: str,
    write_decoder: Callable[[Path], DecoderSpec],
    *,
    check: Callable[[Bundle, DecoderSpec], SourceCheck] | None = None,
    replace_existing: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Make a bundle, or add a decoder to one.

    An existing bundle of the same model keeps its decoders for other backends, its combiner and its adapters.

    Args:
        out: the bundle's directory; a directory that is not a bundle is never replaced.
        parts: contents of the manifest.
        backend: the decoder's backend; its files go into a directory of this name.
        write_decoder: writes the decoder's files into the given directory and returns the decoder's description.
        check: compares the finished decoder with its source; None leaves that out, and the manifest says so.
        replace_existing: replace an existing decoder for this backend, or a bundle of another model.
        progress: see `export.progress`.

    Raises:
        WriteError: the disk is full, or something is in the way (such as adapters of another model); no partial
            files remain.
        SourceError: the tokenizer has token ids outside the model's vocabulary.
        WrongExportError: the decoder does not compute what its source does.
        RequestError: the chat template does not use a template variable.
    """
    parts.check_template_variables()
    present = _same_model(out, parts)
    if present is None and replace_existing:
        _refuse_to_lose_adapters(out, parts)
    others = () if present is None else tuple(spec for spec in present.manifest.decoders if spec.backend != backend)
    if present is not None and others and parts.template_variables is None:
        parts = replace(parts, template_variables=present.manifest.template_variables)
    adds = present is not None and len(others) == len(present.manifest.decoders)
    if present is not None and others and present.manifest.context_length != parts.context_length:
        raise WriteError(
            f"The bundle's other decoder serves {present.manifest.context_length:,} positions, this one would serve "
            f"{parts.context_length:,}: {out}. Set `context_length` to {present.manifest.context_length}."
        )
    with staged_directory(out, replaceable=is_bundle, replace=replace_existing or adds) as root:
        kept = () if present is None else _carry(present, others, root)
        directory = root / backend
        directory.mkdir()
        decoder = write_decoder(directory)
        (root / TOKENIZER_NAME).write_text(parts.tokenizer.json, encoding="utf-8")
        fingerprint = _checked_fingerprint(parts)
        files = [_entry(root, root / TOKENIZER_NAME, ROLE_TOKENIZER)]
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):
            role = ROLE_GRAPH if file == root / decoder.graph else ROLE_WEIGHTS
            files.append(_entry(root, file, role))
        manifest = _manifest(parts, (decoder,), fingerprint, tuple(files))
        if check is not None:
            progress("Comparing with the source", 0, 1)
            decoder = replace(decoder, checked=check(Bundle(root, manifest), decoder))
            progress("Comparing with the source", 1, 1)
        decoders = (*others, decoder) if adds else (decoder, *others)
        manifest = _manifest(parts, decoders, fingerprint, (*files, *kept))
        progress("Computing conformance vectors", 0, 1)
        vectors = make_vectors(Bundle(root, manifest), decoder)
        progress("Computing conformance vectors", 1, 1)
        (root / decoder.golden).write_text(write_vectors(vectors), encoding="utf-8")
        golden = _entry(root, root / decoder.golden, ROLE_GOLDEN)
        manifest = replace(manifest, files=(*files, golden, *kept))
        (root / MANIFEST_NAME).write_text(write_manifest(manifest), encoding="utf-8")
    return manifest


def golden_name(backend: str) -> str:
    """Return the name of the file with a decoder's conformance vectors."""
    return "golden.json" if backend == BACKEND_ONNX else f"golden.{backend}.json"


def _same_model(out: Path, parts: BundleParts) -> Bundle | None:
    """Return the existing bundle if it was made from the same weights."""
    try:
        present = open_bundle(out, verify=False)
    except BundleError:
        return None
    return present if present.manifest.source.sha256 == parts.provenance.sha256 else None


def _refuse_to_lose_adapters(out: Path, parts: BundleParts) -> None:
    adapters = out / ADAPTERS_DIRECTORY
    count = sum(1 for _ in adapters.glob(f"*/{ADAPTER_NAME}"))
    if count:
        raise WriteError(
            f"The bundle in this place was not made from {parts.provenance.name}, so that model can't use the {count} "
            f"adapters in it: {adapters}. Move them away, or choose another place."
        )


def _carry(present: Bundle, others: tuple[DecoderSpec, ...], root: Path) -> tuple[FileEntry, ...]:
    """Copy other backends' decoders and the combiner to the new directory, and link adapters; return the files."""
    wanted = {entry.path for spec in others for entry in present.decoder_files(spec)} | {spec.golden for spec in others}
    kept = tuple(entry for entry in present.manifest.files if entry.path in wanted or entry.role == ROLE_COMBINER)
    for entry in kept:
        (root / entry.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(present.path(entry.path), root / entry.path)
    adapters = present.root / ADAPTERS_DIRECTORY
    if adapters.is_dir():
        # Links, because the adapters may take gigabytes.
        shutil.copytree(adapters, root / ADAPTERS_DIRECTORY, symlinks=True, copy_function=_link)
    return kept


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copy2(source, target)


def is_bundle(path: Path) -> bool:
    """Whether a directory holds a bundle, of any version and even if damaged."""
    try:
        body = json.loads((path / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(body, dict) and body.get("format") == FORMAT


@functools.cache
def created_by() -> str:
    """Return the exporter's name and version."""
    try:
        return f"cogenesis-edge {version('cogenesis-edge')}"
    except PackageNotFoundError:
        return "cogenesis-edge (not installed)"


def _manifest(
    parts: BundleParts, decoders: tuple[DecoderSpec, ...], fingerprint: str, files: tuple[FileEntry, ...]
) -> Manifest:
    source, tokenizer = parts.provenance, parts.tokenizer
    return Manifest(
        created_by=created_by(),
        model=ModelCard(source.model_id, source.revision, parts.architecture, source.license, source.parameters),
        tokenizer=TokenizerSpec(
            TOKENIZER_NAME,
            fingerprint,
            tokenizer.bos_token,
            tokenizer.eos_token,
            tokenizer.stop_token_ids,
            tokenizer.special_tokens,
        ),
        chat_template=tokenizer.chat_template,
        context_length=parts.context_length,
        vocab_size=parts.vocab_size,
        decoders=decoders,
        source=ManifestSource(source.kind, source.name, source.sha256),
        files=files,
        template_variables=dict(parts.template_variables or {}),
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

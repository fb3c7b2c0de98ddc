"""Opens a bundle: reads its manifest, checks every file's size and hash, and gives typed access to the parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.bundle.manifest import (
    MANIFEST_NAME,
    ROLE_GRAPH,
    ROLE_WEIGHTS,
    DecoderSpec,
    FileEntry,
    Manifest,
    read_manifest,
)
from edge_runtime.errors import (
    BundleError,
    DamagedFileError,
    ManifestError,
    MissingFileError,
    UnsafePathError,
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest has been read; `root` is its directory."""

    root: Path
    manifest: Manifest

    def decoder(self, backend: str | None = None) -> DecoderSpec:
        """The decoder of a backend, the default one where that is None.

        Raises:
            BundleError: the bundle has no decoder of that backend.
        """
        spec = self.manifest.decoder if backend is None else self.manifest.decoder_for(backend)
        if spec is None:
            offered = ", ".join(spec.backend for spec in self.manifest.decoders)
            raise BundleError(
                f"The bundle has no decoder for {backend}, only for {offered}: {self.root}. "
                f"Add one with `cogenesis export {backend}`."
            )
        return spec

    def decoder_files(self, spec: DecoderSpec) -> list[FileEntry]:
        """Graph and weights of a decoder."""
        roles = (ROLE_GRAPH, ROLE_WEIGHTS)
        return [entry for entry in self.manifest.files if entry.role in roles and entry.path.startswith(spec.directory)]

    def fingerprint(self, spec: DecoderSpec) -> str:
        """Identity of a decoder's graph and weights: what prompt caches are bound to."""
        digest = hashlib.sha256()
        for entry in sorted(self.decoder_files(spec), key=lambda entry: entry.path):
            digest.update(f"{entry.path}\0{entry.sha256}\n".encode())
        return digest.hexdigest()

    @property
    def base(self) -> str:
        """Identity of the model that the bundle was made from, however it is stored here: adapters are bound to it."""
        return self.manifest.source.sha256

    def path(self, relative: str) -> Path:
        """Absolute path of a file that the manifest names."""
        return self.root / relative

    def verify(self) -> None:
        """Compare every file with the manifest.

        Raises:
            MissingFileError: a file is not there.
            DamagedFileError: a file's size or hash differs.
            UnsafePathError: a file is a link out of the bundle.
        """
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(self._verify_file, self._largest_first()))

    def _largest_first(self) -> Iterable[FileEntry]:
        return sorted(self.manifest.files, key=lambda entry: -entry.size)

    def _verify_file(self, entry: FileEntry) -> None:
        path = self.path(entry.path)
        mend = "Copy the bundle again, or export it again."
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise UnsafePathError(f"The bundle is not safe: {path} leads outside it. Don't use this bundle.")
        try:
            size = path.stat().st_size
            if size != entry.size:
                raise DamagedFileError(
                    f"A bundle file is damaged: {path} has {size:,} bytes, the manifest says {entry.size:,}. {mend}"
                )
            digest = sha256_of(path)
        except FileNotFoundError:
            raise MissingFileError(f"A bundle file is missing: {path}. {mend}") from None
        except OSError as error:
            raise MissingFileError(f"A bundle file can't be read: {path} ({error.strerror}). {mend}") from None
        if digest != entry.sha256:
            raise DamagedFileError(f"A bundle file is damaged: {path} (its SHA-256 differs). {mend}")


def open_bundle(root: Path | str, *, verify: bool = True) -> Bundle:
    """Read a bundle's manifest and, unless told otherwise, check its files.

    Args:
        root: the bundle's directory.
        verify: compare every file's size and SHA-256 with the manifest (about 60 ms for 100 MB).

    Raises:
        BundleError: the manifest or a file is missing, damaged, unsafe or from another version.
    """
    root = Path(root)
    manifest_path = root / MANIFEST_NAME
    try:
        text = manifest_path.read_bytes()
    except FileNotFoundError:
        raise BundleError(
            f"There is no bundle here: {root} (no {MANIFEST_NAME}). Make one with `cogenesis export onnx`."
        ) from None
    except OSError as error:
        raise ManifestError(f"The manifest can't be read: {manifest_path} ({error.strerror}).") from None
    bundle = Bundle(root, read_manifest(text, str(manifest_path)))
    if verify:
        bundle.verify()
    return bundle


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

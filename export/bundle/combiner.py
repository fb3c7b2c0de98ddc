"""Puts a trained combiner into a bundle, where learned fusion finds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edge_runtime.bundle.manifest import MANIFEST_NAME, ROLE_COMBINER, FileEntry, write_manifest
from edge_runtime.bundle.reader import open_bundle, sha256_of
from edge_runtime.errors import WriteError
from edge_runtime.files.whole_file import write_whole_file
from edge_runtime.fusion.combiner_file import COMBINER_DIRECTORY, check_base, encode_combiner, read_combiner


@dataclass(frozen=True, slots=True)
class AddedCombiner:
    """Where the combiner lies now, and its size in bytes."""

    path: Path
    size: int


def add_combiner(file: Path, bundle_root: Path, *, replace_existing: bool = False) -> AddedCombiner:
    """Copy a combiner into a bundle and note it in the manifest; killed at any point, the bundle is whole.

    Args:
        file: of the combiner, as `collab fuse-train` writes it.
        bundle_root: directory of the bundle.
        replace_existing: replace a combiner that is there already.

    Raises:
        BundleError: bundle or combiner can't be used, or don't belong together.
        WriteError: there is one already, or it can't be written.
    """
    bundle = open_bundle(bundle_root, verify=False)
    combiner = read_combiner(file)
    check_base(combiner, bundle.base, file)
    before = bundle.manifest.file(ROLE_COMBINER)
    # A name of its own for each content: the manifest never names a file that is not what it says.
    relative = f"{COMBINER_DIRECTORY}/combiner-{combiner.fingerprint[:12]}.safetensors"
    if before is not None and before.path != relative and not replace_existing:
        raise WriteError(f"The bundle has a combiner already: {bundle.path(before.path)}. Pass --force to replace it.")
    target = bundle.path(relative)
    write_whole_file(target, encode_combiner(combiner))
    entry = FileEntry(relative, ROLE_COMBINER, target.stat().st_size, sha256_of(target))
    others = tuple(one for one in bundle.manifest.files if one.role != ROLE_COMBINER)
    manifest = replace(bundle.manifest, files=(*others, entry))
    write_whole_file(bundle.root / MANIFEST_NAME, write_manifest(manifest).encode())
    if before is not None and before.path != relative:
        bundle.path(before.path).unlink(missing_ok=True)
    return AddedCombiner(target, entry.size)

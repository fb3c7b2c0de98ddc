"""Writes a directory all at once: it is made beside its place and renamed there when complete, or nothing remains."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def staged_directory(target: Path, *, replaceable: Callable[[Path], bool], replace: bool) -> Iterator[Path]:
    """Give a temporary directory that becomes `target` when the block ends without an error.

    Args:
        target: where the result goes; its parents are made.
        replaceable: whether what is in `target` now is of the kind that may be replaced.
        replace: whether to replace it.

    Yields:
        An empty directory on the same file system.

    Raises:
        WriteError: something else is in the target's place, or it can't be written.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 (resolve() would follow a link and replace what it leads to)
    _check_target(target, replaceable, replace)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        staging.chmod(0o777 & ~_umask())
    except OSError as error:
        raise write_error(error, target) from None
    try:
        yield staging
        _synchronize(staging)
        _check_target(target, replaceable, replace)
        _put_in_place(staging, target)
    except OSError as error:
        raise write_error(error, target) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_error(error: OSError, target: Path) -> WriteError:
    """What went wrong while writing, in one sentence."""
    if error.errno in _FULL:
        return WriteError(
            f"The disk is full: {target} could not be written, and nothing of it remains. "
            "Free some space or choose another place."
        )
    return WriteError(f"This can't be written: {target} ({error.strerror or error}). Choose another place.")


def _check_target(target: Path, replaceable: Callable[[Path], bool], replace: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not target.is_symlink():
        if not any(target.iterdir()):
            return
        if replaceable(target):
            if replace:
                return
            raise WriteError(f"There is already one: {target}. Pass --force to replace it.")
    raise WriteError(f"Something else is in this place: {target}. Choose another, it is not replaced.")


def _put_in_place(staging: Path, target: Path) -> None:
    """Two renames where something is replaced; the first is undone if the second fails."""
    if not target.exists():
        staging.rename(target)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        target.rename(old)
        try:
            staging.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _synchronize_one(target.parent)


def _synchronize(directory: Path) -> None:
    for root, _, files in os.walk(directory):
        for name in files:
            _synchronize_one(Path(root, name))
        _synchronize_one(Path(root))


def _synchronize_one(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows has no handle for a directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

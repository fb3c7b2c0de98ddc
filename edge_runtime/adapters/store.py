"""Many users' adapters in one directory, such as that of a bundle: listed, read, put in place and removed."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.adapters.adapter import Adapter, AdapterHeader, load_adapter, parse_adapter, read_adapter_header
from edge_runtime.adapters.lru_cache import LruCache
from edge_runtime.errors import AdapterError

ADAPTERS_DIRECTORY = "adapters"
"""Where a bundle keeps its users' adapters."""
ADAPTER_NAME = "adapter.safetensors"

_LOADED_BYTES = 16 << 20
_LONGEST_SLUG = 64
_HASH_DIGITS = 16
_NOT_SAFE = re.compile(r"[^a-z0-9._-]+")
_LOOKS_HASHED = re.compile(rf"-[0-9a-f]{{{_HASH_DIGITS}}}\Z")
# Windows takes these for devices, whatever extension follows.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\Z)")


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """One adapter of a store.

    Attributes:
        directory: the name of the one that it is in.
        header: what the adapter says of itself; None where it can't be read.
        problem: why it can't be used, "" where it can.
    """

    directory: str
    header: AdapterHeader | None
    problem: str

    @property
    def reachable(self) -> bool:
        """Whether it is found by a user's id; what is damaged or in another's place is not."""
        return self.header is not None and directory_name(self.header.user) == self.directory


class AdapterStore:
    """A directory with an adapter for each of any number of users; those used last stay in memory, up to some bytes.

    Safe to share between threads; other processes may put adapters in place meanwhile.
    """

    def __init__(self, root: Path, base: str, *, loaded_bytes: int = _LOADED_BYTES) -> None:
        """Open a store; its directory need not be there yet.

        Args:
            root: the directory, `BUNDLE/adapters` or one elsewhere, where the bundle itself can't be written.
            base: identity of the model that its adapters must be trained on (`Bundle.base`).
            loaded_bytes: how much of what was read last to keep.
        """
        self.root = root
        self.base = base
        self._loaded = LruCache[tuple[tuple[int, ...], Adapter]](loaded_bytes)

    def __contains__(self, user: str) -> bool:
        """Whether the user has an adapter here, in whatever condition."""
        return self.path(user).is_file()

    def path(self, user: str) -> Path:
        """Where the user's adapter is, or would be."""
        return self.root / directory_name(user) / ADAPTER_NAME

    def entries(self, *, whole: bool = False) -> Iterator[StoredAdapter]:
        """All adapters, sorted by directory, read one by one as they are asked for; none stops the others.

        Args:
            whole: read the weights, too, which tells all damage; else the headers alone.

        Raises:
            AdapterError: the store's directory can't be read.
        """
        try:
            names = sorted(name for name in os.listdir(self.root) if not name.startswith("."))  # noqa: PTH208 (names)
        except FileNotFoundError:
            return
        except OSError as error:
            raise AdapterError(f"The adapters can't be listed: {self.root} ({error.strerror}).") from None
        for name in names:
            path = self.root / name / ADAPTER_NAME
            if os.path.lexists(path):
                yield self._entry(path, whole)

    def load(self, user: str) -> Adapter:
        """The user's adapter, from memory if it was used lately and the file is the same.

        Raises:
            AdapterError: the user has none here, or it is damaged, another user's, or was trained on another base.
        """
        path = self.path(user)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(user) from None
        except OSError as error:
            raise AdapterError(f"The adapter can't be read: {path} ({error.strerror}).") from None
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        kept = self._loaded.get(user)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        adapter = load_adapter(path)
        _refuse(path, self._problem(path, adapter))
        self._loaded.put(user, (stamp, adapter), adapter.nbytes)
        return adapter

    def install(self, content: bytes, *, replace: bool = False) -> Path:
        """Put an adapter file in its user's place, whole or not at all, readable by its owner alone.

        Args:
            content: of the file.
            replace: also where the user has an adapter already.

        Returns:
            The file's path.

        Raises:
            AdapterError: it is damaged, has no user or another base, is in another's way, or can't be written.
        """
        adapter = parse_adapter(content, "the new adapter")
        if not adapter.user:
            raise AdapterError("The adapter does not say whose it is. Export it again with --user ID.")
        path = self.path(adapter.user)
        _refuse(path, self._problem(path, adapter))
        if os.path.lexists(path):
            if not replace:
                raise AdapterError(f"User '{adapter.user}' has an adapter already: {path}. Pass --force to replace it.")
            there = self._entry(path, whole=False).header
            if there is not None and there.user != adapter.user:
                raise AdapterError(f"The place of user '{adapter.user}' is taken by user '{there.user}': {path}.")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_private(path, content)
        except OSError as error:
            raise AdapterError(f"The adapter can't be written: {path} ({error.strerror}).") from None
        return path

    def remove(self, user: str) -> None:
        """Remove a user's adapter; one that can't be reached by an id goes by the name of its directory.

        Raises:
            AdapterError: there is none, or it can't be removed.
        """
        path = self.path(user)
        if not os.path.lexists(path) and any(
            entry.directory == user and not entry.reachable for entry in self.entries()
        ):
            path = self.root / user / ADAPTER_NAME
        try:
            path.unlink()
            self._loaded.drop(user)
            for unfinished in path.parent.glob(f".{ADAPTER_NAME}.*"):
                unfinished.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(user) from None
        except OSError as error:
            raise AdapterError(f"The adapter can't be removed: {path} ({error.strerror}).") from None

    def _entry(self, path: Path, whole: bool) -> StoredAdapter:
        directory = path.parent.name
        try:
            header = read_adapter_header(path)
            if whole:
                load_adapter(path)
        except AdapterError as error:
            return StoredAdapter(directory, None, str(error))
        return StoredAdapter(directory, header, self._problem(path, header))

    def _problem(self, path: Path, adapter: Adapter | AdapterHeader) -> str:
        """Why an adapter in this place can't be used, "" where it can."""
        if path.is_symlink() or path.parent.is_symlink():
            return "it is a link, which could lead anywhere; put the file itself there"
        if directory_name(adapter.user) != path.parent.name:
            return f"it belongs to user '{adapter.user}'; export it again"
        if adapter.base != self.base:
            return (
                f"it was trained on another base model ({adapter.base_name or 'unnamed'}, {adapter.base[:12]}), this "
                f"is {self.base[:12]}; train it on this bundle's model"
            )
        return ""

    def _missing(self, user: str) -> AdapterError:
        return AdapterError(
            f"User '{user}' has no adapter here: {self.root}. Export one with `cogenesis export adapter`; "
            "`cogenesis export adapters` lists those that are there."
        )


def directory_name(user: str) -> str:
    """The directory of a user, for any text as id: safe on every file system, and another for every other id.

    An id of at most 64 characters out of `a-z 0-9 . _ -` is its own name. Any other keeps what it has of those, and
    gets the beginning of its SHA-256: `Anna` and `anna` are two users, but one name where case doesn't count. ASCII
    alone is lower-cased, so that the name is the same with every version of Unicode.

    Returns:
        1 to 86 characters out of `a-z 0-9 . _ -`, the first and last neither `.` nor `-`.
    """
    lowered = "".join(chr(ord(char) + 32) if "A" <= char <= "Z" else char for char in user)
    slug = _NOT_SAFE.sub("-", lowered).strip(".-")[:_LONGEST_SLUG].rstrip(".-")
    if not slug or _DEVICE.match(slug):
        slug = f"user-{slug}" if slug else "user"
    if slug == user and not _LOOKS_HASHED.search(slug):
        return slug
    # Sixteen digits, because ids in other scripts all share the slug "user".
    digest = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{slug}-{digest[:_HASH_DIGITS]}"


def _refuse(path: Path, problem: str) -> None:
    if problem:
        raise AdapterError(f"The adapter can't be used: {path} ({problem}).")


def _write_private(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600 from the start
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

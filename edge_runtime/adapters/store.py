"""Manages many users' adapters in one directory, such as a bundle's: lists, loads, installs and removes them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.adapters.adapter import Adapter, AdapterHeader, load_adapter, parse_adapter, read_adapter_header
from edge_runtime.adapters.lru_cache import LruCache
from edge_runtime.errors import AdapterError
from edge_runtime.files.whole_file import private_file

ADAPTERS_DIRECTORY = "adapters"
"""Directory of the users' adapters in a bundle."""
ADAPTER_NAME = "adapter.safetensors"

_LOADED_BYTES = 16 << 20
_LONGEST_SLUG = 64
_HASH_DIGITS = 16
_NOT_SAFE = re.compile(r"[^a-z0-9._-]+")
_LOOKS_HASHED = re.compile(rf"-[0-9a-f]{{{_HASH_DIGITS}}}\Z")
# Windows treats these names as devices, with any extension.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\Z)")


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """One adapter of a store.

    Attributes:
        directory: name of the adapter's directory.
        header: the adapter's header; None if it can't be read.
        problem: reason why the adapter can't be used; "" if it can.
    """

    directory: str
    header: AdapterHeader | None
    problem: str

    @property
    def reachable(self) -> bool:
        """Whether a user's id leads to this adapter; false if it is damaged or in another user's directory."""
        return self.header is not None and directory_name(self.header.user) == self.directory


class AdapterStore:
    """A directory with one adapter per user; recently used adapters are cached in memory, up to a size limit.

    The store is thread-safe; other processes may install adapters at the same time.
    """

    def __init__(self, root: Path, base: str, *, loaded_bytes: int = _LOADED_BYTES) -> None:
        """Open a store; its directory need not exist yet.

        Args:
            root: the directory: `BUNDLE/adapters`, or another one if the bundle is read-only.
            base: identity of the model that the adapters must be trained on (`Bundle.base`).
            loaded_bytes: maximum bytes of cached adapters.
        """
        self.root = root
        self.base = base
        self._loaded = LruCache[tuple[tuple[int, ...], Adapter]](loaded_bytes)

    def __contains__(self, user: str) -> bool:
        """Whether the user has an adapter here, even a damaged one."""
        return self.path(user).is_file()

    def path(self, user: str) -> Path:
        """Return the path of the user's adapter, whether or not it exists."""
        return self.root / directory_name(user) / ADAPTER_NAME

    def entries(self, *, whole: bool = False) -> Iterator[StoredAdapter]:
        """Yield all adapters, sorted by directory and read lazily; a damaged adapter does not stop the iteration.

        Args:
            whole: read the weights too, which detects all damage; otherwise read only the headers.

        Raises:
            AdapterError: the store's directory can't be read.
        """
        try:
            names = sorted(name for name in os.listdir(self.root) if not name.startswith("."))  # noqa: PTH208 (names)
        except FileNotFoundError:
            return
        except OSError as error:
            raise AdapterError(
                f"The adapters can't be listed: {self.root} ({error.strerror}). Check who may read it."
            ) from None
        for name in names:
            path = self.root / name / ADAPTER_NAME
            if os.path.lexists(path):
                yield self._entry(path, whole)

    def load(self, user: str) -> Adapter:
        """Load the user's adapter, from the cache if the file is unchanged.

        Raises:
            AdapterError: the user has no adapter here, or it is damaged, another user's or trained on another base.
        """
        path = self.path(user)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(user) from None
        except OSError as error:
            raise AdapterError(
                f"The adapter can't be read: {path} ({error.strerror}). Check who may read it."
            ) from None
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        kept = self._loaded.get(user)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        adapter = load_adapter(path)
        _refuse(path, self._problem(path, adapter))
        self._loaded.put(user, (stamp, adapter), adapter.nbytes)
        return adapter

    def install(self, content: bytes, *, replace: bool = False) -> Path:
        """Install an adapter file for its user, atomically and readable only by its owner.

        Args:
            content: content of the file.
            replace: whether to replace an existing adapter of the user.

        Returns:
            Path of the installed file.

        Raises:
            AdapterError: the adapter is damaged, lacks a user, has another base, can't be written, or its place is
                taken.
        """
        adapter = parse_adapter(content, "the new adapter")
        if not adapter.user:
            raise AdapterError("The adapter does not say whose it is. Export it again with its user's id.")
        path = self.path(adapter.user)
        _refuse(path, self._problem(path, adapter))
        if os.path.lexists(path):
            if not replace:
                raise AdapterError(
                    f"User '{adapter.user}' has an adapter already: {path}. Set `replace` to replace it."
                )
            there = self._entry(path, whole=False).header
            if there is not None and there.user != adapter.user:
                raise AdapterError(f"The place of user '{adapter.user}' is taken by user '{there.user}': {path}.")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with private_file(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise AdapterError(f"The adapter can't be written: {path} ({error.strerror}).") from None
        return path

    def remove(self, user: str) -> None:
        """Remove a user's adapter; if no user id leads to it, give the name of its directory instead.

        Raises:
            AdapterError: the adapter does not exist or can't be removed.
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
            raise AdapterError(
                f"The adapter can't be removed: {path} ({error.strerror}). Check who may write there."
            ) from None

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
        """Return why the adapter at this path can't be used; "" if it can."""
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
    """Return the directory name for a user id: safe on every file system, and different for every id.

    The id may be any text. An id of at most 64 characters from `a-z 0-9 . _ -` is its own name. Any other id is reduced
    to these characters and extended by the beginning of its SHA-256: `Anna` and `anna` are two users, but the same name
    on a file system that ignores case. Only ASCII is lower-cased, so the name is the same in every version of Unicode.

    Returns:
        1 to 86 characters from `a-z 0-9 . _ -`; the first and last are neither `.` nor `-`.
    """
    lowered = "".join(chr(ord(char) + 32) if "A" <= char <= "Z" else char for char in user)
    slug = _NOT_SAFE.sub("-", lowered).strip(".-")[:_LONGEST_SLUG].rstrip(".-")
    if not slug or _DEVICE.match(slug):
        slug = f"user-{slug}" if slug else "user"
    if slug == user and not _LOOKS_HASHED.search(slug):
        return slug
    # Sixteen digits, because all ids in other scripts share the slug "user".
    digest = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{slug}-{digest[:_HASH_DIGITS]}"


def _refuse(path: Path, problem: str) -> None:
    if problem:
        raise AdapterError(f"The adapter can't be used: {path} ({problem}).")

"""Tells Linux how the model's memory is used: weights on huge pages, the mapped file let go of after use.

Decoding reads all weights for every token. With pages of 4 KiB a step of a 100 MB model looks up 28,000 of them, more
than any processor remembers; on virtual machines, where a look-up walks two tables, that is a tenth to a fifth of the
step (docs/performance.md). Elsewhere than on Linux nothing is done.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_HUGE = 2 << 20
_MADV_DONTNEED, _MADV_HUGEPAGE = 4, 14
# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGEST_MMAP_THRESHOLD = 32 << 20
# One model at a time: what it maps, and where malloc looks meanwhile, is the process's.
_OPENING = threading.Lock()


@contextmanager
def huge_pages(size: int) -> Iterator[None]:
    """Let what is allocated inside, up to `size` bytes, come from one stretch of memory marked for huge pages.

    Nothing is taken that isn't used. Does nothing where the system gives huge pages to all or to none, and outside
    Linux with glibc: onnxruntime allocates with malloc, which only there can be told where to look.
    """
    libc = _libc() if _on_request() else None
    if libc is None:
        yield
        return
    # Large blocks from the heap, which is one stretch, and the heap not cut back when the stretch is handed over.
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        stretch = libc.malloc(size)
        if stretch:
            start = -(-stretch // _HUGE) * _HUGE
            libc.madvise(start, stretch + size - start, _MADV_HUGEPAGE)
            libc.free(stretch)
        yield
    finally:
        # Where glibc's own rules would have arrived after blocks of this size.
        libc.mallopt(_M_MMAP_MAX, 1 << 16)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)  # what loading freed goes back to the system, not to the peak


class MappedFile:
    """What opening a model maps from a file that is only read; it can be let go of at any time.

    Args:
        file: its path.
    """

    def __init__(self, file: Path) -> None:
        self._libc = _libc() if sys.platform == "linux" else None
        self._name = str(file.resolve())
        self._ranges: list[tuple[int, int]] = []

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Take what is mapped from the file inside for this model's, and to last as long as it does.

        Nothing else: the mapping of another model of the same file ends with that one, and what then lies at its
        addresses, this model's keys and values perhaps, would be wiped by `release`.
        """
        with _OPENING:
            before = self._mappings()
            yield
            self._ranges = [found for found in self._mappings() if not any(_overlap(found, old) for old in before)]

    def release(self) -> None:
        """Count the file's pages as ours no longer; those needed again come from the system's cache.

        A prompt reads a few rows all over the embedding, and Linux maps sixteen pages around each: nearly all of it.
        """
        if self._libc is not None:
            for start, size in self._ranges:
                self._libc.madvise(start, size, _MADV_DONTNEED)

    def _mappings(self) -> list[tuple[int, int]]:
        return [] if self._libc is None else _mappings(self._name)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < sum(other) and other[0] < sum(one)


def _mappings(name: str) -> list[tuple[int, int]]:
    """Start and size of what this process has mapped from the file."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = []
    for parts in (line.split(maxsplit=5) for line in lines):
        if len(parts) == 6 and parts[5] == name:
            start, end = (int(address, 16) for address in parts[0].split("-"))
            found.append((start, end - start))
    return found


def _on_request() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return "[madvise]" in _SETTING.read_text()
    except OSError:
        return False


def _libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 (only glibc has it; others understand other options)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    except (OSError, AttributeError):
        return None
    return libc

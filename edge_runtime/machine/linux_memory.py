"""Tells Linux how the model's memory is used: weights on huge pages, the mapped file released after use.

Decoding reads all weights for every token. With 4 KiB pages, a step of a 100 MB model translates 28,000 page addresses,
more than any processor caches. On virtual machines each look-up walks two page tables, which costs a tenth to a fifth
of the step (docs/performance.md). On other systems this module does nothing.
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
# One model at a time: mappings and malloc's settings belong to the whole process.
_OPENING = threading.Lock()


@contextmanager
def huge_pages(size: int) -> Iterator[None]:
    """Serve allocations inside the block, up to `size` bytes, from one memory range marked for huge pages.

    Unused memory is not taken. This does nothing if the system gives huge pages to every process or to none. It needs
    Linux with glibc: onnxruntime allocates with malloc, and only glibc's malloc can be directed.
    """
    libc = _libc() if _on_request() else None
    if libc is None:
        yield
        return
    # Take large blocks from the heap, which is one range, and don't trim the heap when the range is freed.
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
        # The values that glibc's own dynamic thresholds would reach after blocks of this size.
        libc.mallopt(_M_MMAP_MAX, 1 << 16)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)  # return memory freed by loading to the system, so it doesn't add to the peak


class MappedFile:
    """The mappings of a read-only file that opening a model creates; their pages can be released at any time.

    Args:
        file: path of the file.
    """

    def __init__(self, file: Path) -> None:
        self._libc = _libc() if sys.platform == "linux" else None
        self._name = str(file.resolve())
        self._ranges: list[tuple[int, int]] = []

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Record the mappings of the file made inside the block as this model's; they last as long as the model.

        Mappings of another model of the same file are excluded: they end with that model. Their addresses may then hold
        other data, such as this model's keys and values, and `release` would wipe it.
        """
        with _OPENING:
            before = self._mappings()
            yield
            self._ranges = [found for found in self._mappings() if not any(_overlap(found, old) for old in before)]

    def release(self) -> None:
        """Release the file's pages from this process; pages needed again come from the system's cache.

        A prompt reads a few rows all over the embedding. Linux maps sixteen pages around each, so nearly all of it.
        """
        if self._libc is not None:
            for start, size in self._ranges:
                self._libc.madvise(start, size, _MADV_DONTNEED)

    def _mappings(self) -> list[tuple[int, int]]:
        return [] if self._libc is None else _mappings(self._name)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < sum(other) and other[0] < sum(one)


def _mappings(name: str) -> list[tuple[int, int]]:
    """Return start and size of this process's mappings of the file."""
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
        libc.gnu_get_libc_version  # noqa: B018 (only glibc has it; other libraries use other options)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    except (OSError, AttributeError):
        return None
    return libc

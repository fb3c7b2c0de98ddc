"""Many users' adapters in one bundle: a directory for each user, named safely for any file system."""

from __future__ import annotations

import hashlib
import re

_LONGEST_SLUG = 64
_HASH_DIGITS = 16
_NOT_SAFE = re.compile(r"[^a-z0-9._-]+")
_LOOKS_HASHED = re.compile(rf"-[0-9a-f]{{{_HASH_DIGITS}}}\Z")
# Windows takes these for devices, whatever extension follows.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\Z)")


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

"""Authenticates clients by API keys from a file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cloud_bridge.server.errors import RefusalError, ServeError
from cloud_bridge.wire import Reason


@dataclass(frozen=True, slots=True, repr=False)
class ApiKeys:
    """SHA-256 digests of the keys by name; the keys themselves are not stored."""

    digests: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Read a keys file: one `KEY` or `NAME:KEY` per line; blank lines and lines that start with `#` are skipped.

        Raises:
            ServeError: the file can't be read, or has no valid key.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ServeError(f"The API keys can't be read: {path} ({cause}). Give another file.") from None
        digests: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            name, separator, key = (part.strip() for part in entry.partition(":"))
            name, key = (name, key) if separator else (f"line {number}", name)
            if not key or not key.isascii() or not key.isprintable() or " " in key or name in digests:
                raise ServeError(f"An API key is empty, malformed or named twice: {path}, line {number}. Correct it.")
            digests[name] = _digest(key)
        if not digests:
            raise ServeError(f"The file holds no API key: {path}. Write one key a line, or leave out `api_keys`.")
        return cls(digests)

    def check(self, authorization: str | None) -> str:
        """Return the name of the key in an `authorization` header.

        Raises:
            RefusalError: there is no key, or it is unknown.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise RefusalError(Reason.API_KEY, "no API key was sent")
        digest = _digest(key)
        # Compare with all keys, so that the time does not reveal a match.
        names = [name for name, known in self.digests.items() if hmac.compare_digest(known, digest)]
        if not names:
            raise RefusalError(Reason.API_KEY, "the API key is not known")
        return names[0]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()

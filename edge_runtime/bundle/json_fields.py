"""Reads typed fields of a manifest's JSON object; errors name the file and the field."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from edge_runtime.errors import ManifestError, UnsafePathError

_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:")


class JsonFields:
    """The fields of one JSON object.

    Every method raises `ManifestError` if the field is missing or of another type.
    """

    def __init__(self, body: Mapping[str, Any], where: str, prefix: str) -> None:
        self._body, self._where, self._prefix = body, where, prefix

    def error(self, name: str, problem: str) -> ManifestError:
        """Return the error that names the file, the field and the problem."""
        return ManifestError(
            f"The manifest is not valid: {self._where}, field '{self._prefix}{name}' {problem}. "
            "Export the bundle again."
        )

    def _get(self, name: str, kind: type, words: str) -> Any:
        if name not in self._body:
            raise self.error(name, "is missing")
        value = self._body[name]
        if type(value) is not kind:
            raise self.error(name, f"must be {words}")
        return value

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._body.get(name) is not None

    def number(self, name: str) -> float:
        """Return a finite number."""
        value: Any = self._body.get(name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.error(name, "must be a finite number")
        return float(value)

    def text(self, name: str) -> str:
        """Return a string."""
        return str(self._get(name, str, "a string"))

    def integer(self, name: str, minimum: int = 0) -> int:
        """Return a whole number of at least `minimum`."""
        value = int(self._get(name, int, "a whole number"))
        if value < minimum:
            raise self.error(name, f"must be at least {minimum}")
        return value

    def sequence(self, name: str) -> Sequence[Any]:
        """Return a list."""
        return list(self._get(name, list, "a list"))

    def integers(self, name: str) -> Sequence[int]:
        """Return a list of whole numbers that are not negative."""
        values = self.sequence(name)
        if any(type(value) is not int or value < 0 for value in values):
            raise self.error(name, "must be a list of whole numbers")
        return values

    def optional_object(self, name: str) -> dict[str, Any]:
        """Return an object; {} if the field is missing."""
        return dict(self._get(name, dict, "an object")) if name in self._body else {}

    def path(self, name: str) -> str:
        """Return a plain path inside the bundle.

        Raises:
            UnsafePathError: it leads elsewhere.
        """
        value = self.text(name)
        if not safe_path(value):
            raise UnsafePathError(
                f"The manifest is not safe: {self._where}, field '{self._prefix}{name}' is '{value}', "
                "which is not a plain path inside the bundle. Don't use this bundle."
            )
        return value

    def child(self, name: str) -> JsonFields:
        """Return the fields of an object."""
        return JsonFields(self._get(name, dict, "an object"), self._where, f"{self._prefix}{name}.")

    def children(self, name: str) -> list[JsonFields]:
        """Return the fields of each object of a list."""
        values = self.sequence(name)
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.error(f"{name}[{index}]", "must be an object")
        return [JsonFields(value, self._where, f"{self._prefix}{name}[{index}].") for index, value in enumerate(values)]


def safe_path(path: str) -> bool:
    """Whether a manifest path stays inside the bundle on every operating system."""
    if not path or "\\" in path or "\0" in path or _WINDOWS_DRIVE.match(path):
        return False
    parts = PurePosixPath(path).parts
    return not path.startswith("/") and ".." not in parts and str(PurePosixPath(path)) == path and path != "."

"""Records which model a directory was written from, so that both have the same identity.

Adapters are bound to the identity of their base model. A directory that `cogenesis export hf` wrote for training holds
the same model as its GGUF file. Adapters trained on the directory must therefore fit a bundle made from the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.reader import sha256_of
from export.errors import SourceError
from export.model.weights import Origin

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LINEAGE_NAME = "cogenesis_source.json"
_FORMAT = "cogenesis-source/1"


def weights_digest(files: Iterable[Path]) -> str:
    """Compute the SHA-256 over names and contents of a directory's weight files, in lower-case hex."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def write_lineage(directory: Path, origin: Origin, weights: Iterable[Path]) -> None:
    """Note in a directory what its weight files were written from."""
    noted = {field.name: getattr(origin, field.name) for field in fields(Origin)}
    body = {"format": _FORMAT, "origin": noted, "weights_sha256": weights_digest(weights)}
    (directory / LINEAGE_NAME).write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_lineage(directory: Path, weights_sha256: str) -> Origin | None:
    """Read which model the directory was written from; None if there is no note, or if the weights have changed.

    Args:
        directory: a model directory.
        weights_sha256: `weights_digest` of the current weight files.

    Raises:
        SourceError: the note exists but is not valid.
    """
    path = directory / LINEAGE_NAME
    try:
        body: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise _damaged(path, f"its format is not '{_FORMAT}'")
    noted = body.get("origin")
    names = [field.name for field in fields(Origin)]
    if not isinstance(noted, dict) or not all(isinstance(noted.get(name), str) for name in names):
        raise _damaged(path, f"'origin' must have texts for {', '.join(names)}")
    if body.get("weights_sha256") != weights_sha256:  # another model now: it was trained further
        return None
    return Origin(**{name: noted[name] for name in names})


def _damaged(path: Path, problem: str) -> SourceError:
    return SourceError(
        f"The note of what the model was written from can't be read: {path} ({problem}). "
        "Write it again with `cogenesis export hf`, or delete the note: adapters of that model then won't fit."
    )

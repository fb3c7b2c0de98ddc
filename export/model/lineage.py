"""What a model directory was written from: kept beside the weights, so that both have one identity.

Adapters are bound to the identity of their base. A directory that `cogenesis export hf` wrote for training holds the
same model as the GGUF file that the bundle is made from, so what is trained on the one must fit the other.
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
    """SHA-256 over names and contents of a directory's weight files, in lower-case hex."""
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
    """What the directory's weights were written from; None where nothing is noted, or for other weights than these.

    Args:
        directory: a model directory.
        weights_sha256: `weights_digest` of the weight files that are there now.

    Raises:
        SourceError: the note is there but can't be understood.
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
    if body.get("weights_sha256") != weights_sha256:  # trained further since, so a model of its own
        return None
    return Origin(**{name: noted[name] for name in names})


def _damaged(path: Path, problem: str) -> SourceError:
    return SourceError(
        f"The note of what the model was written from can't be read: {path} ({problem}). "
        "Write it again with `cogenesis export hf`, or delete the note: adapters of that model then won't fit."
    )

"""Finds all files of a GGUF model, which may be split into parts, and reads their headers as one.

llama.cpp's `gguf-split` names the parts `NAME-00001-of-00003.gguf` and numbers them in the fields `split.*`. Only the
first part has the metadata, and any part may hold any tensor: https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.reader import sha256_of
from export.errors import ModelNotFoundError, SourceError, UnsupportedModelError
from export.model.gguf.file import GGUFFile, GGUFTensor, read_gguf
from export.model.lineage import weights_digest

if TYPE_CHECKING:
    from pathlib import Path

# "Model-Q4_K_M-00001-of-00003.gguf"
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\Z")
_PROJECTOR = "mmproj"
_PROJECTOR_ARCHITECTURE = "clip"


@dataclass(frozen=True, slots=True)
class GGUFParts:
    """A model of one file or of several.

    Attributes:
        files: all of them, in order.
        fields: the metadata by name.
        tensors: of all files.
    """

    files: tuple[Path, ...]
    fields: dict[str, Any]
    tensors: tuple[GGUFTensor, ...]

    def sha256(self) -> str:
        """Return the digest of the content; of several files, over their names and contents, in lower-case hex."""
        return sha256_of(self.files[0]) if len(self.files) == 1 else weights_digest(self.files)


def read_parts(path: Path) -> GGUFParts:
    """Read the header of a model and of all its parts.

    Args:
        path: its file, or any of its parts.

    Raises:
        SourceError: a file is missing or damaged, or the files are no parts of one model.
        UnsupportedModelError: the file is no language model, or of an unknown form.
    """
    named = read_gguf(path)
    count = int(named.fields.get("split.count", 1) or 1)
    if count == 1:
        parts = [named]
    else:
        files = _part_files(path, count)
        parts = [named if file == path else read_gguf(file) for file in files]
        _check_parts(parts, count)
    _refuse_projectors(parts[0])
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    return GGUFParts(tuple(part.path for part in parts), parts[0].fields, tensors)


def model_in_directory(path: Path) -> Path:
    """Return the GGUF model of a directory; if it is split, its first part.

    Projectors for images or sound (`mmproj`) are no models and don't count.

    Raises:
        ModelNotFoundError: there is no model, or there are several.
    """
    files = sorted(path.glob("*.gguf"))
    models: dict[str, Path] = {}
    for file in files:
        if _PROJECTOR not in file.name.lower():
            models.setdefault(_stem(file), file)
    if len(models) == 1:
        return next(iter(models.values()))
    if models:
        raise ModelNotFoundError(f"There are {len(models)} GGUF models here: {path}. Name one of them.")
    if files:
        raise ModelNotFoundError(
            f"There is only a projector for images or sound here: {files[0]}. Name the model's file."
        )
    raise ModelNotFoundError(f"There are no GGUF files here: {path}.")


def name_without_part(path: Path) -> str:
    """Return a file's name without its suffix and without the part's number."""
    return _stem(path).removesuffix("/")


def _stem(file: Path) -> str:
    match = _PART.match(file.stem)
    return f"{match['stem']}/" if match else file.stem  # a slash, because a file "NAME.gguf" may lie beside


def _part_files(path: Path, count: int) -> list[Path]:
    match = _PART.match(path.stem)
    if match is None or int(match["count"]) != count:
        raise SourceError(
            f"This file is one of {count} parts, but its name doesn't end with its number, as in "
            f"'-00001-of-{count:05}.gguf': {path}. Give the parts their names back."
        )
    files = [
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}{path.suffix}") for number in range(1, count + 1)
    ]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise SourceError(f"Parts of the model are missing: {', '.join(missing)} in {path.parent}. Download them too.")
    return files


def _check_parts(parts: list[GGUFFile], count: int) -> None:
    """Check that each part has the place that its name says, and that all parts together are whole."""
    names: set[str] = set()
    for index, part in enumerate(parts):
        place = (part.fields.get("split.no"), part.fields.get("split.count"))
        if place != (index, count):
            raise SourceError(
                f"By its name, this is part {index + 1} of {count}, but not by its content: {part.path}. "
                "Download all parts again."
            )
        for tensor in part.tensors:
            if tensor.name in names:
                raise SourceError(f"The tensor '{tensor.name}' is in two parts: {part.path}. Download all parts again.")
            names.add(tensor.name)
    expected = parts[0].fields.get("split.tensors.count")
    if expected is not None and expected != len(names):
        raise SourceError(
            f"The parts hold {len(names)} tensors together, but should hold {expected}: {parts[0].path}. "
            "Download all parts again."
        )


def _refuse_projectors(file: GGUFFile) -> None:
    kind, architecture = file.fields.get("general.type"), file.fields.get("general.architecture")
    if kind == _PROJECTOR or architecture == _PROJECTOR_ARCHITECTURE:
        raise UnsupportedModelError(
            f"This is a projector for images or sound, no language model: {file.path}. "
            "Name the model's own file; only its text is used."
        )
    if kind not in (None, "model"):
        raise UnsupportedModelError(f"This GGUF file holds no model, but is of type '{kind}': {file.path}.")

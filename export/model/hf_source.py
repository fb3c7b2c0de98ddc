"""Reads a Hugging Face model directory: its configuration and, one at a time, its tensors from safetensors files."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from export.errors import ModelNotFoundError, SourceError, UnsupportedModelError
from export.model.architecture import from_hf_config
from export.model.fused import fused_widths, split_names, whole_of
from export.model.hf_tokenizer import hf_tokenizer
from export.model.lineage import read_lineage, weights_digest
from export.model.packed.checkpoint import PackedCheckpoint, dense, packed_checkpoint
from export.model.quantized_matrix import QuantizedMatrix
from export.model.text_part import text_config, text_tensor
from export.model.weights import HEAD, Provenance, TokenizerAssets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from export.model.quantized_matrix import Matrix

# Older versions of transformers saved these buffers; we compute positions from the configuration.
_NOT_WEIGHTS = re.compile(r"(rotary_emb\.inv_freq|masked_bias|attn\.bias)$")
_FLOATS = ("F32", "F16", "BF16", "F64")
_SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-4.0": "CC-BY-4.0"}


class HFDirectory:
    """A model directory of any architecture.

    Attributes:
        path: of the directory.
        config: its parsed `config.json`, of a model that also reads images the part for text.
        reads_images: whether it is such a model.

    Raises:
        ModelNotFoundError: the directory has no `config.json`.
        SourceError: the file can't be read or is not a JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = read_config(path)
        self.config = text_config(whole, str(path / "config.json"))
        self.reads_images = self.config.get("model_type") != whole.get("model_type")

    @property
    def family(self) -> str:
        """The architecture's name in transformers."""
        return str(self.config.get("model_type"))

    def provenance(self) -> Provenance:
        """See `WeightSource.provenance`."""
        return hf_provenance(self.path)

    def tokenizer(self) -> TokenizerAssets:
        """See `WeightSource.tokenizer`."""
        return hf_tokenizer(self.path, self.config)


class HFSource:
    """A Llama-family model directory with `config.json` and safetensors files.

    Raises:
        ModelNotFoundError: the directory has no `config.json`.
        SourceError: a file is missing or damaged.
        UnsupportedModelError: the family is not supported, or weights are not floating point.
    """

    def __init__(self, path: Path, directory: HFDirectory | None = None) -> None:
        """Read the directory's configuration, unless it is open already, and the names of its tensors."""
        self.path = path
        self._directory = directory or HFDirectory(path)
        self.architecture = from_hf_config(self._directory.config, str(path / "config.json"))
        self._files: dict[str, Path] = {}
        self._stored: dict[str, str] = {}  # names in the files, if they differ
        for file in weight_files(path):
            for stored in _tensor_names(file):
                name = text_tensor(stored) if self._directory.reads_images else stored
                if name is not None and not _NOT_WEIGHTS.search(name):
                    self._files[name], self._stored[name] = file, stored
        # Checkpoints saved from the model without its head lack the usual prefix.
        self._prefix = "" if any(name.startswith("model.") for name in self._files) else "model."
        self._packed = packed_checkpoint(self._directory.config, str(path / "config.json"))
        if self.architecture.tied_head:
            self._files.pop(HEAD, None)

    @property
    def is_packed(self) -> bool:
        """Whether matrices are stored quantized."""
        return self._packed is not None

    def names(self) -> tuple[str, ...]:
        """Return the full names of all tensors, with those that are stored together apart."""
        stored: Iterable[str | None] = self._files
        if self._packed is not None:
            stored = {self._packed.weight_name(name): None for name in self._files}
        names = (name for name in stored if name is not None)
        return tuple(split_names(name if name.startswith("lm_head.") else self._prefix + name for name in names))

    def read(self, name: str) -> NDArray[np.float32]:
        """See `WeightSource.read`."""
        packed = self._packed_matrix(name)
        if packed is not None:
            return dense(packed)
        stored = self._stored_name(name)
        file = self._files.get(stored)
        fused = whole_of(name, self.architecture)
        if file is None and fused is not None and fused[0].removeprefix(self._prefix) in self._files:
            return self._checked_rows(self.read(fused[0]), fused[0])[fused[1]]
        if file is None:
            raise SourceError(f"The model has no tensor '{name}': {self.path}. Download it again.")
        try:
            # Read with torch, because numpy has no bfloat16.
            with safe_open(file, framework="pt") as tensors:
                kind = tensors.get_slice(self._stored[stored]).get_dtype()
                if kind not in _FLOATS:
                    raise UnsupportedModelError(
                        f"The tensor '{name}' is stored as {kind}, not as floating point: {file}. "
                        "Use the original model."
                    )
                array: NDArray[np.float32] = tensors.get_tensor(self._stored[stored]).float().numpy()
        except (OSError, SafetensorError) as error:
            raise SourceError(f"A weight file can't be read: {file} ({error}). Download it again.") from None
        return array

    def _checked_rows(self, whole: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        wanted = sum(fused_widths(self.architecture)[name.split(".")[-2]])
        if len(whole) != wanted:
            raise SourceError(
                f"The tensor '{name}' has {len(whole)} rows, not {wanted}: {self.path}. Download it again."
            )
        return whole

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """See `WeightSource.blocks`."""
        packed = self._packed_matrix(name)
        return packed if isinstance(packed, QuantizedMatrix) else None

    def quantization(self) -> str:
        """See `WeightSource.quantization`."""
        return "not quantized" if self._packed is None else self._packed.description

    def _packed_matrix(self, name: str) -> Matrix | None:
        """Read a packed matrix; None if the tensor is stored as it is."""
        base = self._stored_name(name).removesuffix(".weight")
        if self._packed is None or not name.endswith(".weight"):
            return None
        if f"{base}.qweight" not in self._files and f"{base}.weight_packed" not in self._files:
            kind = self._raw(f"{base}.weight", kind_only=True)
            if kind is None or kind in _FLOATS:
                return None
        return self._packed.read(lambda part: self._raw(f"{base}.{part}"), name)

    def _raw(self, stored: str, *, kind_only: bool = False) -> Any:
        """Read a tensor as it is stored, short floats as float32, or only its type; None if there is none."""
        file = self._files.get(stored)
        if file is None:
            return None
        try:
            with safe_open(file, framework="pt") as tensors:
                if kind_only:
                    return tensors.get_slice(self._stored[stored]).get_dtype()
                tensor = tensors.get_tensor(self._stored[stored])
                return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except (OSError, SafetensorError) as error:
            raise SourceError(f"A weight file can't be read: {file} ({error}). Download it again.") from None

    def _stored_name(self, name: str) -> str:
        return name if name.startswith("lm_head.") else name.removeprefix(self._prefix)

    def provenance(self) -> Provenance:
        """See `WeightSource.provenance`."""
        found = self._directory.provenance()
        return found if self._packed is None else replace(found, parameters=self._parameters(self._packed))

    def _parameters(self, packed: PackedCheckpoint) -> int:
        """Count weights, not the words that they are packed in."""
        total = 0
        for stored, file in self._files.items():
            if packed.weight_name(stored) is not None:
                with safe_open(file, framework="pt") as tensors:
                    part = tensors.get_slice(self._stored[stored])
                    total += int(np.prod(part.get_shape())) * packed.weights_per_element(part.get_dtype())
        return total

    def tokenizer(self) -> TokenizerAssets:
        """See `WeightSource.tokenizer`."""
        return self._directory.tokenizer()


def read_config(path: Path) -> dict[str, Any]:
    """Parse a model directory's `config.json`.

    Raises:
        ModelNotFoundError: the file does not exist.
        SourceError: the file can't be read or is not a JSON object.
    """
    file = path / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"This is no model directory: {path} (no config.json). Name a directory in Hugging Face format."
        ) from None
    except (OSError, ValueError) as error:
        raise SourceError(
            f"The model's configuration can't be read: {file} ({error}). Download the model again."
        ) from None
    if not isinstance(config, dict):
        raise SourceError(f"The model's configuration is not a JSON object: {file}. Download the model again.")
    return config


def weight_files(path: Path) -> list[Path]:
    """List the safetensors files that transformers reads: `model.safetensors`, or else the files of the index.

    Others are copies, other precisions, adapters or the authors' own form (`consolidated.safetensors`).

    Raises:
        SourceError: there are no such files, or one is missing.
    """
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.exists():
        others = sorted(file.name for file in path.glob("*.safetensors"))
        remedy = "Save it again with safe_serialization=True" if list(path.glob("*.bin")) else "Download it again"
        if others:
            remedy = f"There are {', '.join(others)}, which transformers does not read; rename the model's own"
        raise SourceError(f"There are no safetensors files of the model: {path} (no {single.name}). {remedy}.")
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        files = [path / name for name in names]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise SourceError(
            f"The index of weight files can't be read: {index} ({error}). Download the model again."
        ) from None
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise SourceError(f"Weight files are missing: {', '.join(missing)} in {path}. Download the model again.")
    return files


def hf_provenance(path: Path) -> Provenance:
    """Hash the weights and read the license and revision if the directory has them.

    A directory that was written from another model and not changed since has that model's identity.

    Raises:
        SourceError: weight files are missing, or the lineage note is damaged.
    """
    files = weight_files(path)
    parameters = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            parameters += sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118
    sha256 = weights_digest(files)
    origin = read_lineage(path, sha256)
    if origin is not None:
        return Provenance(**asdict(origin), parameters=parameters)
    resolved = path.resolve()
    # In the hub's cache, a snapshot's directory is named for its commit: models--owner--name/snapshots/<revision>.
    in_cache = resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--")
    model_id = resolved.parent.parent.name.removeprefix("models--").replace("--", "/") if in_cache else resolved.name
    return Provenance(
        kind="huggingface",
        name=resolved.name,
        sha256=sha256,
        model_id=model_id,
        revision=resolved.name if in_cache else "",
        license=model_license(path),
        parameters=parameters,
    )


def spdx(name: str) -> str:
    """Return a license's SPDX identifier in its usual spelling."""
    return _SPDX.get(name.lower(), name) or "unknown"


def model_license(path: Path) -> str:
    """Return the license in the model card's front matter, or "unknown"."""
    try:
        card = (path / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    front = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    named = re.search(r"^license:\s*['\"]?([\w.\-]+)", front.group(1), re.MULTILINE) if front else None
    return spdx(named.group(1)) if named else "unknown"


def _tensor_names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise SourceError(f"A weight file can't be read: {file} ({error}). Download it again.") from None

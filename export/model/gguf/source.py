"""Reads a GGUF file: metadata, tokenizer, and weights, either as float32 or as their exact quantized blocks."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from export.errors import SourceError, UnsupportedModelError
from export.model.fused import split_names, whole_of
from export.model.gguf.blocks import EXACT, exact_blocks, wide_tensors
from export.model.gguf.families import FACTORS, PERMUTED, check_supported, hf_name, read_architecture
from export.model.gguf.parts import name_without_part, read_parts
from export.model.gguf.tokenizer import gguf_tokenizer
from export.model.hf_source import spdx
from export.model.weights import EMBEDDING, Provenance, TokenizerAssets

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from export.model.architecture import Architecture
    from export.model.gguf.file import GGUFTensor
    from export.model.quantized_matrix import QuantizedMatrix
    from export.model.rope import Rope

_DENSE = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
# The end of a quantized file's name, as in "Model.Q4_1.gguf".
_QUANTIZATION_SUFFIX = re.compile(r"[.\-](I?Q\d\w*|F16|F32|BF16)\Z", re.IGNORECASE)


class GGUFSource:
    """A model of one of `export.model.gguf.families.FAMILIES` in one GGUF file or in several parts; any part names it.

    Raises:
        SourceError: the file is damaged or lacks a field.
        UnsupportedModelError: the architecture is not supported, or the graph lacks a feature of the model.
    """

    architecture: Architecture

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = read_parts(path)
        check_supported(self._reader.fields, str(path))
        self._tensors = self._named_tensors()
        self.architecture = self._architecture()

    @property
    def fields(self) -> dict[str, Any]:
        """The file's metadata."""
        return self._reader.fields

    @property
    def ready_made_rope(self) -> Rope | None:
        """The rotary positions, if the file holds them as factors; None if its metadata describe them."""
        return self.architecture.rope if any(tensor.name in FACTORS for tensor in self._reader.tensors) else None

    def names(self) -> tuple[str, ...]:
        """Return the Hugging Face names of all tensors."""
        return tuple(split_names(self._tensors))

    def read(self, name: str) -> NDArray[np.float32]:
        """See `WeightSource.read`."""
        tensor, rows = self._stored(name)
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise UnsupportedModelError(
                f"The tensor '{name}' is quantized as {tensor.tensor_type.name}, which can't be read: {self.path}."
            ) from None
        values = np.asarray(values, np.float32).reshape(tuple(int(size) for size in reversed(tensor.shape)))
        return self._restore_rows(name, values if rows is None else values[rows])

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """See `WeightSource.blocks`.

        Raises:
            UnsupportedModelError: the tensor's quantization can't be converted exactly.
        """
        tensor, rows = self._stored(name)
        if tensor.tensor_type in _DENSE:
            return None
        if tensor.tensor_type not in EXACT:
            raise UnsupportedModelError(
                f"The tensor '{name}' is quantized as {tensor.tensor_type.name}, which can't be carried over exactly: "
                f"{self.path}. Use `quantize` int8."
            )
        data = tensor.data if rows is None else tensor.data[rows]
        matrix = exact_blocks(self._restore_rows(name, data), tensor.tensor_type)
        if not (np.isfinite(matrix.scales).all() and (matrix.minima is None or np.isfinite(matrix.minima).all())):
            raise SourceError(f"The tensor '{name}' has a scale that is no number: {self.path}. Download it again.")
        return matrix.with_wide_codes() if tensor.name in self._wide_tensors else matrix

    @functools.cached_property
    def _wide_tensors(self) -> frozenset[str]:
        return wide_tensors({one.name: (one.tensor_type, one.n_elements) for one in self._tensors.values()})

    def quantization(self) -> str:
        """Return the kinds of blocks in the file, most frequent first, as in "Q4_1, Q8_0"."""
        counts: dict[str, int] = {}
        for tensor in self._tensors.values():
            if tensor.tensor_type not in _DENSE:
                counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + 1
        return ", ".join(sorted(counts, key=lambda name: -counts[name])) or "not quantized"

    def provenance(self) -> Provenance:
        """See `WeightSource.provenance`."""
        return Provenance(
            kind="gguf",
            name=self._reader.files[0].name,
            sha256=self._reader.sha256(),
            model_id=_QUANTIZATION_SUFFIX.sub("", name_without_part(self.path)),
            revision="",
            license=spdx(str(self._field("general.license", "unknown"))),
            parameters=sum(int(tensor.n_elements) for tensor in self._tensors.values()),
        )

    def tokenizer(self) -> TokenizerAssets:
        """See `WeightSource.tokenizer`."""
        return self._tokenizer

    @functools.cached_property
    def _tokenizer(self) -> TokenizerAssets:
        fields = self._reader.fields
        prefix = "tokenizer."
        given = {name.removeprefix(prefix): fields[name] for name in fields if name.startswith(prefix)}
        return gguf_tokenizer(given, str(self.path))

    def special_token_ids(self) -> dict[str, int]:
        """Return `bos_token_id` and `eos_token_id` if the file has them."""
        found = {kind: self._field(f"tokenizer.ggml.{kind}", None) for kind in ("bos_token_id", "eos_token_id")}
        return {kind: int(value) for kind, value in found.items() if value is not None}

    def rope_fields(self) -> dict[str, Any]:
        """Return the fields for rotary positions of a Hugging Face configuration.

        Raises:
            UnsupportedModelError: a Hugging Face configuration can't express the scaling.
        """
        family = self._field("general.architecture")
        if any(tensor.name in FACTORS for tensor in self._reader.tensors):
            raise UnsupportedModelError(
                f"The file holds rotary factors ready-made, which a Hugging Face configuration can't: {self.path}. "
                "Use the original model directory."
            )
        return _rope_fields(lambda name, default=...: self._field(f"{family}.rope.{name}", default))

    def size(self, name: str) -> int:
        """Return a tensor's number of elements."""
        tensor, rows = self._stored(name)
        elements = int(tensor.n_elements)
        return elements if rows is None else elements // int(tensor.shape[-1]) * (rows.stop - rows.start)

    def _field(self, name: str, default: Any = ...) -> Any:
        if name in self._reader.fields:
            return self._reader.fields[name]
        if default is ...:
            raise SourceError(f"The file lacks the field '{name}': {self.path}. Download it again.")
        return default

    def _tensor(self, name: str) -> GGUFTensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise SourceError(f"The model has no tensor '{name}': {self.path}. Download it again.")
        return tensor

    def _named_tensors(self) -> dict[str, GGUFTensor]:
        """Return the tensors by their Hugging Face names; those stored together under the names of their parts."""
        arch = str(self._field("general.architecture"))
        named = {hf_name(tensor.name, arch, str(self.path)): tensor for tensor in self._reader.tensors}
        return {name: tensor for name, tensor in named.items() if name is not None}

    def _stored(self, name: str) -> tuple[GGUFTensor, slice | None]:
        """Find a tensor, or the rows of a fused one."""
        whole = whole_of(name, self.architecture)
        if name not in self._tensors and whole is not None and whole[0] in self._tensors:
            return self._tensors[whole[0]], whole[1]
        return self._tensor(name), None

    def _restore_rows(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Undo llama.cpp's reordering of query and key rows, from pairs to halves (families of `PERMUTED` only)."""
        if self.architecture.family not in PERMUTED or not name.endswith(
            ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
        ):
            return rows
        heads = self.architecture.heads if "q_proj" in name else self.architecture.kv_heads
        return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    def _architecture(self) -> Architecture:
        factors = {
            tensor.name: np.asarray(tensor.data, np.float32)
            for tensor in self._reader.tensors
            if tensor.name in FACTORS and tensor.tensor_type == GGMLQuantizationType.F32
        }
        return read_architecture(
            self._field,
            self._reader.fields,
            frozenset(self._tensors),
            int(self._tensor(EMBEDDING).shape[1]),
            factors,
            str(self.path),
        )


def _rope_fields(value: Callable[..., Any]) -> dict[str, Any]:
    linear = value("scaling.type", "none") == "linear"
    return {
        "rope_theta": float(value("freq_base", 10000.0)),
        "rope_scaling": {"rope_type": "linear", "factor": float(value("scaling.factor"))} if linear else None,
    }

"""Reads a GGUF file: metadata, tokenizer, and weights, either as float32 or as their exact quantized blocks."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize

from edge_runtime.bundle.reader import sha256_of
from export.errors import SourceError, UnsupportedModelError
from export.model.architecture import Architecture
from export.model.gguf_blocks import EXACT, exact_blocks
from export.model.hf_source import spdx
from export.model.rope import Rope, rope_from_config
from export.model.tokenizer_assets import gguf_tokenizer
from export.model.weights import EMBEDDING, FINAL_NORM, HEAD, Provenance, TokenizerAssets

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from export.model.quantized_matrix import QuantizedMatrix

_FAMILIES = ("llama", "qwen2", "qwen3")
_TENSORS = {"token_embd.weight": EMBEDDING, "output.weight": HEAD, "output_norm.weight": FINAL_NORM}
_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)\Z")
_ROPE_FACTORS = "rope_freqs.weight"
_DENSE = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
# The end of a quantized file's name, as in "Model.Q4_1.gguf".
_QUANTIZATION_SUFFIX = re.compile(r"[.\-](I?Q\d\w*|F16|F32|BF16)\Z", re.IGNORECASE)


class GGUFSource:
    """A llama, qwen2 or qwen3 model in one GGUF file.

    Raises:
        SourceError: the file is damaged or lacks a field.
        UnsupportedModelError: the architecture is not supported, or the graph lacks a feature of the model.
    """

    architecture: Architecture

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise SourceError(f"This is not a usable GGUF file: {path} ({error}). Download it again.") from None
        self._tensors = self._named_tensors()
        self.architecture = self._architecture()

    def names(self) -> tuple[str, ...]:
        """Return the Hugging Face names of all tensors."""
        return tuple(self._tensors)

    def read(self, name: str) -> NDArray[np.float32]:
        """See `WeightSource.read`."""
        tensor = self._tensor(name)
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise UnsupportedModelError(
                f"The tensor '{name}' is quantized as {tensor.tensor_type.name}, which can't be read: {self.path}."
            ) from None
        values = np.asarray(values, np.float32).reshape(tuple(int(size) for size in reversed(tensor.shape)))
        return self._restore_rows(name, values)

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """See `WeightSource.blocks`.

        Raises:
            UnsupportedModelError: the tensor's quantization can't be converted exactly.
        """
        tensor = self._tensor(name)
        if tensor.tensor_type in _DENSE:
            return None
        if tensor.tensor_type not in EXACT:
            raise UnsupportedModelError(
                f"The tensor '{name}' is quantized as {tensor.tensor_type.name}, which can't be carried over exactly: "
                f"{self.path}. Use `quantize` int8."
            )
        return exact_blocks(self._restore_rows(name, tensor.data), tensor.tensor_type)

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
            name=self.path.name,
            sha256=sha256_of(self.path),
            model_id=_QUANTIZATION_SUFFIX.sub("", self.path.stem),
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
        given = {name.removeprefix(prefix): fields[name].contents() for name in fields if name.startswith(prefix)}
        return gguf_tokenizer(self.architecture.family, given, str(self.path))

    def special_token_ids(self) -> dict[str, int]:
        """Return `bos_token_id` and `eos_token_id` if the file has them."""
        found = {kind: self._field(f"tokenizer.ggml.{kind}", None) for kind in ("bos_token_id", "eos_token_id")}
        return {kind: int(value) for kind, value in found.items() if value is not None}

    def rope_fields(self) -> dict[str, Any]:
        """Return the fields for rotary positions of a Hugging Face configuration.

        Raises:
            UnsupportedModelError: a Hugging Face configuration can't express the scaling.
        """
        family = self.architecture.family
        if any(tensor.name == _ROPE_FACTORS for tensor in self._reader.tensors):
            raise UnsupportedModelError(
                f"The file holds rotary factors ready-made, which a Hugging Face configuration can't: {self.path}. "
                "Use the original model directory."
            )
        return _rope_fields(lambda name, default=...: self._field(f"{family}.rope.{name}", default))

    def size(self, name: str) -> int:
        """Return a tensor's number of elements."""
        return int(self._tensor(name).n_elements)

    def _field(self, name: str, default: Any = ...) -> Any:
        field = self._reader.fields.get(name)
        if field is not None:
            return field.contents()
        if default is ...:
            raise SourceError(f"The file lacks the field '{name}': {self.path}. Download it again.")
        return default

    def _tensor(self, name: str) -> ReaderTensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise SourceError(f"The model has no tensor '{name}': {self.path}. Download it again.")
        return tensor

    def _named_tensors(self) -> dict[str, ReaderTensor]:
        named = {}
        for tensor in self._reader.tensors:
            match = _LAYER_TENSOR.match(tensor.name)
            if tensor.name in _TENSORS:
                named[_TENSORS[tensor.name]] = tensor
            elif match and match[2] in _LAYER_PARTS:
                named[f"model.layers.{match[1]}.{_LAYER_PARTS[match[2]]}.{match[3]}"] = tensor
            elif tensor.name != _ROPE_FACTORS:
                raise UnsupportedModelError(
                    f"The file has a tensor that no graph of ours uses: {tensor.name}, {self.path}."
                )
        return named

    def _restore_rows(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Undo llama.cpp's reordering of query and key rows, from pairs to halves (architecture "llama" only)."""
        if self.architecture.family != "llama" or not name.endswith(
            ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
        ):
            return rows
        heads = self.architecture.heads if "q_proj" in name else self.architecture.kv_heads
        return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    def _architecture(self) -> Architecture:
        family = self._field("general.architecture")
        if family not in _FAMILIES:
            raise UnsupportedModelError(
                f"GGUF files of architecture '{family}' can't be exported, supported are {', '.join(_FAMILIES)}: "
                f"{self.path}."
            )

        def value(name: str, default: Any = ...) -> Any:
            return self._field(f"{family}.{name}", default)

        hidden, heads = int(value("embedding_length")), value("attention.head_count")
        kv_heads = value("attention.head_count_kv", heads)
        if isinstance(heads, list) or isinstance(kv_heads, list):
            raise UnsupportedModelError(f"The model's layers differ in their number of heads: {self.path}.")
        head_dim = int(value("attention.key_length", hidden // int(heads)))
        if int(value("expert_count", 0)):
            raise UnsupportedModelError(f"This model can't be exported, it is a mixture of experts: {self.path}.")
        if int(value("attention.value_length", head_dim)) != head_dim:
            raise UnsupportedModelError(f"The model's keys and values differ in width: {self.path}.")
        if int(value("rope.dimension_count", head_dim)) != head_dim:
            raise UnsupportedModelError(
                f"This model can't be exported, it rotates only a part of each head: {self.path}."
            )
        window = value("attention.sliding_window", None)
        return Architecture(
            family=family,
            layers=int(value("block_count")),
            hidden=hidden,
            heads=int(heads),
            kv_heads=int(kv_heads),
            head_dim=head_dim,
            intermediate=int(value("feed_forward_length")),
            vocab=int(self._tensor(EMBEDDING).shape[1]),
            context_length=int(value("context_length")),
            sliding_window=int(window) if window else None,
            norm_eps=float(value("attention.layer_norm_rms_epsilon")),
            norm_offset=0.0,
            rope=self._rope(family, head_dim),
            activation="silu",
            qkv_bias="model.layers.0.self_attn.q_proj.bias" in self._tensors,
            o_bias="model.layers.0.self_attn.o_proj.bias" in self._tensors,
            mlp_bias="model.layers.0.mlp.gate_proj.bias" in self._tensors,
            head_norms="model.layers.0.self_attn.q_norm.weight" in self._tensors,
            embedding_scale=1.0,
            tied_head=HEAD not in self._tensors,
        )

    def _rope(self, family: str, head_dim: int) -> Rope:
        def value(name: str, default: Any = ...) -> Any:
            return self._field(f"{family}.rope.{name}", default)

        kind = value("scaling.type", "none")
        if kind not in ("none", "linear"):
            raise UnsupportedModelError(
                f"Rotary positions of type '{kind}' are not supported in GGUF files: {self.path}. "
                "Export the model from its Hugging Face directory."
            )
        rope = rope_from_config(_rope_fields(value), head_dim, str(self.path))
        factors = next((tensor for tensor in self._reader.tensors if tensor.name == _ROPE_FACTORS), None)
        if factors is None:
            return rope
        # Llama 3's scaling has one divisor per frequency.
        divisors = np.asarray(factors.data, np.float32).tolist()
        pairs = zip(rope.inverse_frequencies, divisors, strict=True)
        return Rope(tuple(float(np.float32(frequency) / np.float32(divisor)) for frequency, divisor in pairs))


def _rope_fields(value: Callable[..., Any]) -> dict[str, Any]:
    linear = value("scaling.type", "none") == "linear"
    return {
        "rope_theta": float(value("freq_base", 10000.0)),
        "rope_scaling": {"rope_type": "linear", "factor": float(value("scaling.factor"))} if linear else None,
    }

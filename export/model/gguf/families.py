"""Reads the families' fields and tensor names of GGUF files, as llama.cpp's converter writes them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from export.errors import SourceError, UnsupportedModelError
from export.model.architecture import Architecture
from export.model.features import GEMMA_NORMS, LLAMA_NORMS, OLMO2_NORMS
from export.model.rope import Rope, plain_rope
from export.model.weights import EMBEDDING, FINAL_NORM, FINAL_NORM_BIAS, HEAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "smollm3": "smollm3",
    "granite": "granite",
    "stablelm": "stablelm",
    "minicpm": "minicpm",
}
"""Architectures of GGUF files, each with the model type of `Architecture`."""
PERMUTED = frozenset({"llama", "smollm3", "granite", "minicpm"})
"""Families whose query and key rows llama.cpp reorders from halves to pairs."""
OFFSET_NORMS = frozenset({"gemma", "gemma2", "gemma3_text"})
"""Families whose norms llama.cpp stores with the 1 that the model adds."""

_TENSORS = {
    "token_embd.weight": EMBEDDING,
    "output.weight": HEAD,
    "output_norm.weight": FINAL_NORM,
    "output_norm.bias": FINAL_NORM_BIAS,
}
_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OWN_PARTS: Mapping[str, Mapping[str, str]] = {
    "gemma2": {"ffn_norm": "pre_feedforward_layernorm"},
    "gemma3": {"ffn_norm": "pre_feedforward_layernorm"},
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)\Z")
FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Tensors with divisors of the rotary frequencies: Llama 3's, and LongRoPE's for short and for long texts."""

_KNOWN_FIELDS_TEXT = """
    attention.head_count attention.head_count_kv attention.key_length attention.layer_norm_epsilon
    attention.layer_norm_rms_epsilon attention.scale attention.sliding_window attention.sliding_window_pattern
    attention.value_length attn_logit_softcapping block_count context_length embedding_length embedding_scale
    expert_count expert_used_count feed_forward_length final_logit_softcapping logit_scale residual_scale
    rope.dimension_count rope.freq_base rope.freq_base_swa rope.scale_linear rope.scaling.attn_factor
    rope.scaling.factor rope.scaling.finetuned rope.scaling.original_context_length rope.scaling.type
    tensor_data_layout use_parallel_residual vocab_size
"""
_KNOWN_FIELDS = frozenset(_KNOWN_FIELDS_TEXT.split())
_GEMMA_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, which scale queries otherwise


class Fields(Protocol):
    """Reads a field of the file; without a default, one that is missing is a `SourceError`."""

    def __call__(self, name: str, default: Any = ...) -> Any:
        """Return the field's value, or the default."""


def check_supported(first: Mapping[str, Any], where: str) -> None:
    """Check the file's first fields.

    Args:
        first: fields by name, at least `general.architecture`.
        where: the file's path, for error messages.

    Raises:
        SourceError: the file does not name its architecture.
        UnsupportedModelError: our graph does not cover the architecture, or a field is not known.
    """
    if "general.architecture" not in first:
        raise SourceError(f"The file lacks the field 'general.architecture': {where}. Download it again.")
    arch = str(first["general.architecture"])
    if arch not in FAMILIES:
        raise UnsupportedModelError(
            f"GGUF files of architecture '{arch}' can't be exported, supported are {', '.join(FAMILIES)}: {where}."
        )
    _check_fields(arch, first, where)
    if first.get(f"{arch}.expert_count"):
        raise UnsupportedModelError(f"This model can't be exported, it is a mixture of experts: {where}.")


def _check_fields(arch: str, keys: Iterable[str], where: str) -> None:
    own = [key.removeprefix(f"{arch}.") for key in keys if key.startswith(f"{arch}.")]
    unknown = sorted(set(own) - _KNOWN_FIELDS)
    if unknown:
        raise UnsupportedModelError(
            f"The file has a field that this version does not know: '{arch}.{unknown[0]}', {where}. It could change "
            "what the model computes. Use a newer version, or another file."
        )


def hf_name(tensor: str, architecture: str, where: str) -> str | None:
    """Return the Hugging Face name of a tensor; None for rotary factors.

    Raises:
        UnsupportedModelError: the tensor belongs to a part that no graph of ours has.
    """
    if tensor in FACTORS:
        return None
    match = _LAYER_TENSOR.match(tensor)
    part = match and (_OWN_PARTS.get(architecture, {}).get(match[2]) or _LAYER_PARTS.get(match[2]))
    if tensor in _TENSORS:
        return _TENSORS[tensor]
    if match and part:
        return f"model.layers.{match[1]}.{part}.{match[3]}"
    raise UnsupportedModelError(f"The file has a tensor that no graph of ours uses: {tensor}, {where}.")


def read_architecture(
    fields: Fields,
    keys: Iterable[str],
    names: frozenset[str],
    vocab: int,
    factors: Mapping[str, NDArray[np.float32]],
    where: str,
) -> Architecture:
    """Read a file's fields into an `Architecture`.

    Args:
        fields: reads a field by its full name.
        keys: the names of all fields.
        names: the Hugging Face names of all tensors, as stored.
        vocab: rows of the embedding.
        factors: the tensors of `FACTORS` that the file has.
        where: the file's path, for error messages.

    Raises:
        UnsupportedModelError: the graph lacks a feature of the model, or a field is not known.
        SourceError: a field is missing.
    """
    arch = str(fields("general.architecture"))
    family = FAMILIES[arch]
    _check_fields(arch, keys, where)

    def value(name: str, default: Any = ...) -> Any:
        return fields(f"{arch}.{name}", default)

    def first_layer(name: str) -> bool:
        return f"model.layers.0.{name}" in names

    hidden, heads, layers = int(value("embedding_length")), value("attention.head_count"), int(value("block_count"))
    kv_heads, intermediate = value("attention.head_count_kv", heads), value("feed_forward_length")
    if any(isinstance(size, list) for size in (heads, kv_heads, intermediate)):
        raise UnsupportedModelError(f"The model's layers differ in their sizes: {where}.")
    head_dim = int(value("attention.key_length", hidden // int(heads)))
    _refuse(value, head_dim, where)
    layer_norm = family == "stablelm"
    return Architecture(
        family=family,
        layers=layers,
        hidden=hidden,
        heads=int(heads),
        kv_heads=int(kv_heads),
        head_dim=head_dim,
        intermediate=int(intermediate),
        vocab=vocab,
        context_length=int(value("context_length")),
        norm_eps=float(value("attention.layer_norm_epsilon" if layer_norm else "attention.layer_norm_rms_epsilon")),
        rope=_rope(value, factors, head_dim, where),
        activation="gelu_tanh" if family in OFFSET_NORMS else "silu",
        qkv_bias=first_layer("self_attn.q_proj.bias") or first_layer("self_attn.qkv_proj.bias"),
        o_bias=first_layer("self_attn.o_proj.bias"),
        mlp_bias=first_layer("mlp.gate_proj.bias"),
        tied_head=HEAD not in names,
        right_length=int(value("rope.scaling.original_context_length")) if FACTORS[1] in factors else None,
        **_features(value, arch, family, layers, hidden, int(heads), head_dim, where),
    )


def _features(
    value: Fields, arch: str, family: str, layers: int, hidden: int, heads: int, head_dim: int, where: str
) -> dict[str, Any]:
    found: dict[str, Any] = {"windows": _windows(value, arch, layers, where), "query_scale": head_dim**-0.5}
    if family in OFFSET_NORMS:
        found["embedding_scale"] = hidden**0.5
    if arch in _GEMMA_LARGEST:
        wide = layers == _GEMMA_LARGEST[arch]
        found |= {"norms": GEMMA_NORMS, "query_scale": (hidden / heads if wide else head_dim) ** -0.5}
        for field, name, default in (("attn", "attention_cap", 50.0), ("final", "logit_cap", 30.0)):
            cap = float(value(f"{field}_logit_softcapping", default if arch == "gemma2" else 0.0))
            found[name] = cap or None
    if family == "gemma3_text":
        local = plain_rope(float(value("rope.freq_base_swa", 10000.0)), head_dim)
        found |= {"head_norms": "head", "local_rope": local}
    if family == "qwen3":
        found["head_norms"] = "head"
    if family == "olmo2":
        found |= {"norms": OLMO2_NORMS, "head_norms": "whole"}
    if family == "smollm3":  # llama.cpp has the interval in its code, not in the file
        found["positions"] = tuple((layer + 1) % 4 != 0 for layer in range(layers))
    if family in ("granite", "minicpm"):
        found |= {
            "embedding_scale": float(value("embedding_scale")),
            "residual_scale": float(value("residual_scale")),
            "logit_scale": 1 / float(value("logit_scale")),
        }
    if family == "granite":
        found["query_scale"] = float(value("attention.scale"))
    if family == "stablelm":
        found["norm_kind"] = "layer"
    return {"norms": LLAMA_NORMS, **found}


def _windows(value: Fields, arch: str, layers: int, where: str) -> tuple[int | None, ...]:
    """Return each layer's window; llama.cpp knows which layers slide from the architecture alone."""
    window = int(value("attention.sliding_window", 4096 if arch == "gemma2" else 0) or 0)
    period = {"gemma2": 2, "gemma3": 6, "phi3": 0}.get(arch)
    pattern = value("attention.sliding_window_pattern", period)
    if not window:
        return (None,) * layers
    if period is None:
        raise UnsupportedModelError(f"GGUF files of architecture '{arch}' with sliding windows are unknown: {where}.")
    if isinstance(pattern, list):
        return tuple(window if slides else None for slides in pattern)
    return tuple(None if pattern and layer % pattern == pattern - 1 else window for layer in range(layers))


def _rope(value: Fields, factors: Mapping[str, NDArray[np.float32]], head_dim: int, where: str) -> Rope:
    kind = value("rope.scaling.type", "none")
    if kind not in ("none", "linear", "longrope"):
        raise UnsupportedModelError(
            f"Rotary positions of type '{kind}' are not supported in GGUF files: {where}. "
            "Export the model from its Hugging Face directory."
        )
    width = int(value("rope.dimension_count", head_dim))
    rope = plain_rope(float(value("rope.freq_base", 10000.0)), width)
    divisors = np.ones(width // 2, np.float32)
    if kind == "linear":
        divisors *= np.float32(value("rope.scaling.factor"))
    # Of LongRoPE's two, only those for short texts are used; `right_length` ends the context there.
    for name in FACTORS[:2]:
        if name in factors:
            if factors[name].shape != divisors.shape:
                raise SourceError(f"The file's '{name}' has {len(factors[name])} values: {where}. Download it again.")
            divisors = divisors * factors[name]
    frequencies = np.array(rope.inverse_frequencies, np.float32) / divisors
    factor = 1.0
    if FACTORS[1] in factors:
        original, whole = int(value("rope.scaling.original_context_length")), int(value("context_length"))
        longer = math.sqrt(1 + math.log(whole / original) / math.log(original)) if whole > original else 1.0
        factor = float(value("rope.scaling.attn_factor", longer))
    return Rope(tuple(float(frequency) for frequency in frequencies), factor)


def _refuse(value: Fields, head_dim: int, where: str) -> None:
    reasons = (
        (int(value("expert_count", 0)) > 0, "it is a mixture of experts"),
        (int(value("attention.value_length", head_dim)) != head_dim, "its keys and values differ in width"),
        (bool(value("use_parallel_residual", False)), "attention and MLP run in parallel"),
        (float(value("rope.scale_linear", 1.0)) != 1.0, "its rotary scaling is written in an old way"),
        (
            value("tensor_data_layout", "") not in ("", "Meta AI original pth"),
            "its tensors are laid out in an unknown way",
        ),
    )
    for applies, reason in reasons:
        if applies:
            raise UnsupportedModelError(f"This model can't be exported, {reason}: {where}.")

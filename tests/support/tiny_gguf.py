"""Writes a tiny model of any family as a GGUF file, with the names, fields and orders of llama.cpp's converter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from tests.support.tiny_models import TEMPLATE, make_tokenizer

ARCHITECTURES = {"gemma3_text": "gemma3", "mistral": "llama"}
PERMUTED = ("llama", "smollm3", "granite", "minicpm")
_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def write_family_gguf(model: Path, path: Path, kinds: Sequence[Kind] = (Kind.F32,), architecture: str = "") -> Path:
    """Convert a tiny model; its matrices alternate between the `kinds` of blocks.

    Args:
        model: its directory.
        path: the file to write.
        kinds: kinds of blocks.
        architecture: the file's architecture; empty takes that of the model's type.
    """
    config = _as_version_4_saves(json.loads((model / "config.json").read_text()))
    arch = architecture or ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    _write_sizes(writer, config, arch)
    _write_tokenizer(writer, config["vocab_size"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) == "longrope":
        for kind in ("short", "long"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(scaling[f"{kind}_factor"], np.float32))
    if scaling.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    tensors = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    if config.get("tie_word_embeddings", True):
        tensors.pop("lm_head.weight", None)
    for index, (name, tensor) in enumerate(tensors.items()):
        array = tensor.numpy()
        if arch in PERMUTED and "q_proj" in name:
            array = _permuted(array, config["num_attention_heads"])
        if arch in PERMUTED and "k_proj" in name:
            array = _permuted(array, config["num_key_value_heads"])
        if arch.startswith("gemma") and "norm" in name:
            array = array + np.float32(1)
        kind = kinds[index % len(kinds)] if array.ndim == 2 else Kind.F32
        if kind == Kind.F32:
            writer.add_tensor(_tensor_name(name, arch), array)
        else:
            writer.add_tensor(_tensor_name(name, arch), gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_version_4_saves(config: dict[str, Any]) -> dict[str, Any]:
    """Write rotary settings as transformers 4 saves them; version 5 nests them, for some families by kind of layer."""
    found = config.get("rope_parameters")
    if not found:
        return config
    whole = dict(found.get("full_attention", found))
    flat = dict(config) | {name: whole.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in whole}
    if "original_max_position_embeddings" in whole:
        flat["original_max_position_embeddings"] = whole["original_max_position_embeddings"]
    if "sliding_attention" in found:
        flat["rope_local_base_freq"] = found["sliding_attention"]["rope_theta"]
    flat["rope_scaling"] = None if whole.get("rope_type", "default") == "default" else whole
    return flat


def llama3_divisors(config: dict[str, Any]) -> NDArray[np.float32]:
    """Compute Llama 3's divisors, with the formula of Meta's release (and of llama.cpp's converter)."""
    scaling = config["rope_scaling"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    lengths = 2 * np.pi * config["rope_theta"] ** (np.arange(0, width, 2) / width)
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((original / lengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _write_sizes(writer: gguf.GGUFWriter, config: dict[str, Any], arch: str) -> None:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * config.get("partial_rotary_factor", 1.0)))
    if arch == "stablelm":
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        writer.add_parallel_residual(False)
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "longrope":
        original = config["original_max_position_embeddings"]
        ratio = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors((1 + np.log(ratio) / np.log(original)) ** 0.5)
    if arch in ("gemma2", "gemma3", "phi3") and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch == "granite":
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if arch == "minicpm":
        writer.add_embedding_scale(12.0)
        writer.add_residual_scale(0.7)
        writer.add_logit_scale(2.0)


def _write_tokenizer(writer: gguf.GGUFWriter, rows: int) -> None:
    writer.add_string("general.license", "apache-2.0")
    writer.add_string("general.name", "tiny")
    tokenizer = json.loads(make_tokenizer().backend_tokenizer.to_str())
    vocabulary = [token for token, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])]
    unused = [f"[PAD{index}]" for index in range(len(vocabulary), rows)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary + unused)
    kinds = [3 if token.startswith("<|im") else 1 for token in vocabulary]
    writer.add_token_types(kinds + [5] * len(unused))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _tensor_name(name: str, arch: str) -> str:
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.norm.bias": "output_norm.bias",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    own = _PARTS[part]
    if part == "post_attention_layernorm" and arch in ("gemma2", "gemma3", "olmo2"):
        own = "post_attention_norm"
    return f"blk.{layer}.{own}.{kind}"


def _permuted(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder query and key rows from halves to pairs."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

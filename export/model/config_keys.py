"""Lists the keys of configurations that each family's reader knows; any other key could change the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

_HARMLESS_TEXT = """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path
    add_cross_attention architectures attention_dropout attn_implementation auto_map bad_words_ids
    begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype
    early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout id2label
    initializer_range is_decoder is_encoder_decoder label2id language length_penalty max_length min_length
    model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token pad_token_id prefix problem_type pruned_heads
    shrunk remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k
    top_p torch_dtype torchscript transformers.js_config transformers_version typical_p unk_token_id
    unsloth_fixed unsloth_version use_bfloat16 use_cache use_flash_attn
"""
_HARMLESS = frozenset(_HARMLESS_TEXT.split())
_COMMON_TEXT = """
    head_dim hidden_act hidden_size intermediate_size max_position_embeddings num_attention_heads
    num_hidden_layers num_key_value_heads compression_config quantization_config rms_norm_eps rope_parameters
    rope_scaling rope_theta tie_word_embeddings vocab_size
"""
_COMMON = frozenset(_COMMON_TEXT.split())
_LAYER_KINDS = frozenset({"layer_types", "sliding_window"})
_QWEN = _LAYER_KINDS | {"use_sliding_window", "max_window_layers", "attention_bias"}
_BIASES = frozenset({"attention_bias", "mlp_bias"})
_GEMMA2_TEXT = """
    attention_bias attn_logit_softcapping final_logit_softcapping hidden_activation query_pre_attn_scalar
    use_bidirectional_attention
"""
_GEMMA2 = _LAYER_KINDS | frozenset(_GEMMA2_TEXT.split())
_OWN = {
    "llama": _BIASES | {"pretraining_tp"},
    "mistral": frozenset({"sliding_window"}),
    "ministral": _LAYER_KINDS,
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "gemma": frozenset({"hidden_activation", "attention_bias"}),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2 | {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"},
    "phi3": frozenset({"partial_rotary_factor", "original_max_position_embeddings", "sliding_window"}),
    "olmo2": frozenset({"attention_bias"}),
    "smollm3": _QWEN | _BIASES | {"no_rope_layers", "no_rope_layer_interval", "pretraining_tp"},
    "granite": _BIASES
    | {"attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "pretraining_tp"},
    "stablelm": frozenset({"layer_norm_eps", "use_qkv_bias", "partial_rotary_factor"}),
    "minicpm": frozenset({"scale_emb", "scale_depth", "dim_model_base", "attention_bias", "pretraining_tp"}),
}
# Keys of other models that change nothing with these values.
_OFF: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attn_logit_softcapping": (),
    "mlp_bias": (False,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "partial_rotary_factor": (1, 1.0),
    "pretraining_tp": (0, 1),
    "qk_layernorm": (False,),
    "use_parallel_residual": (False,),
    "use_bidirectional_attention": (False,),
    "use_sliding_window": (False,),
}
_REASONS = {
    "partial_rotary_factor": "it rotates only a part of each head",
    "attn_logit_softcapping": "it caps attention scores",
    "final_logit_softcapping": "it caps the logits",
    "num_experts": "it is a mixture of experts",
    "num_local_experts": "it is a mixture of experts",
    "pretraining_tp": "it was split for tensor-parallel pretraining",
    "qk_layernorm": "each head has a layer norm of its own",
    "use_parallel_residual": "attention and MLP run in parallel",
    "use_bidirectional_attention": "it attends in both directions",
}
# Known to the reader only as reasons to refuse.
_NEVER = frozenset({"pretraining_tp", "qk_layernorm", "use_parallel_residual", "use_bidirectional_attention"})


def check_keys(config: Mapping[str, Any], family: str, where: str) -> None:
    """Reject a configuration with a key that the family's reader does not know, or a value that no graph of ours does.

    A key without a value (null) counts as absent.

    Raises:
        UnsupportedModelError: names the key or the reason.
    """
    known = (_COMMON | _OWN[family]) - _NEVER
    for key, value in config.items():
        if key in known or key in _HARMLESS or value is None or value in _OFF.get(key, ()):
            continue
        if key in _REASONS:
            raise UnsupportedModelError(f"This model can't be exported, {_REASONS[key]}: {where}.")
        raise UnsupportedModelError(
            f"The configuration has a key that this version does not know: '{key}' ({family}), {where}. "
            "It could change what the model computes. Use a newer version, or another model."
        )

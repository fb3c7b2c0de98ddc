"""Checks prompt caches and context lengths for every decoder backend."""

from __future__ import annotations

import numpy as np

from edge_runtime.bundle.manifest import DecoderSpec
from edge_runtime.decoders.protocol import PromptCache
from edge_runtime.decoders.sequence import TokenSequence
from edge_runtime.errors import PromptCacheError, RequestError


def checked_context_length(wanted: int | None, limit: int) -> int:
    """Return the context length to serve; `wanted` is None for all positions.

    Raises:
        RequestError: `wanted` is below 1 or above `limit`.
    """
    if wanted is None:
        return limit
    if not 1 <= wanted <= limit:
        raise RequestError(f"`context_length` must be in 1 .. {limit:,} for this bundle, not {wanted:,}.")
    return wanted


def check_prompt_cache(cache: PromptCache, decoder: TokenSequence, adapter: str, spec: DecoderSpec) -> None:
    """Reject a prompt cache that this decoder can't continue from.

    Raises:
        PromptCacheError: the cache has another model, another adapter, or other shapes.
    """
    again = "Read the profile again to make a new one."
    if cache.model != decoder.fingerprint:
        raise PromptCacheError(f"The prompt cache was made by another model ({cache.model[:12]}). {again}")
    if cache.adapter != adapter:
        raise PromptCacheError(f"The prompt cache was made with another adapter. {again}")
    if len(cache.token_ids) > decoder.context_length:
        raise PromptCacheError(
            f"The prompt cache is longer than the context ({len(cache.token_ids):,} tokens). {again}"
        )
    if any(not 0 <= token < decoder.vocab_size for token in cache.token_ids):
        raise PromptCacheError(f"The prompt cache holds tokens that the model does not know. {again}")
    shape = (spec.layers, spec.kv_heads, len(cache.token_ids), spec.head_dim)
    for array in (cache.keys, cache.values):
        if array.shape != shape or array.dtype != np.float32:
            raise PromptCacheError(
                f"The prompt cache does not fit: {array.dtype} {array.shape} instead of float32 {shape}. {again}"
            )

"""What every decoder backend checks before it continues from a prompt cache or opens a context."""

from __future__ import annotations

import numpy as np

from edge_runtime.decoders.protocol import PromptCache
from edge_runtime.decoders.sequence import TokenSequence
from edge_runtime.errors import PromptCacheError, RequestError


def checked_context_length(wanted: int | None, limit: int) -> int:
    """The context length to serve.

    Raises:
        RequestError: fewer than one position, or more than the bundle has.
    """
    if wanted is None:
        return limit
    if not 1 <= wanted <= limit:
        raise RequestError(f"The context length can't be {wanted:,}: this bundle serves 1 to {limit:,} positions.")
    return wanted


def check_prompt_cache(
    cache: PromptCache, decoder: TokenSequence, adapter: str, shape: tuple[int, int, int, int]
) -> None:
    """Refuse a prompt cache that this decoder can't continue from.

    Raises:
        PromptCacheError: another model, another adapter, or other shapes.
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
    for array in (cache.keys, cache.values):
        if array.shape != shape or array.dtype != np.float32:
            raise PromptCacheError(
                f"The prompt cache does not fit: {array.dtype} {array.shape} instead of float32 {shape}. {again}"
            )

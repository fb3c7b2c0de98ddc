"""Keeps a prompt cache in a file, so that the next answer with the same profile needs no prefill for it.

The file holds private text in another form, so only its owner can read it. Reading detects accidental damage, but not
an attacker who can write the user's files.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edge_runtime.decoders.protocol import PromptCache
from edge_runtime.errors import PromptCacheError
from edge_runtime.files.whole_file import private_file

PROMPT_CACHE_FORMAT = "cogenesis-prompt-cache/1"
_AGAIN = "Delete it; it is made anew from the profile."


def write_prompt_cache(cache: PromptCache, path: Path | str) -> None:
    """Write the file atomically: a reader sees either the old or the new file, complete.

    Args:
        cache: the result of `Decoder.save`.
        path: path of the file (safetensors with `token_ids`, `keys`, `values`), created with mode 0600.

    Raises:
        PromptCacheError: the file can't be written; the old one is unchanged.
    """
    path = Path(path)
    tensors: dict[str, NDArray[np.generic]] = {
        "token_ids": np.array(cache.token_ids, np.int32),
        "keys": np.ascontiguousarray(cache.keys),
        "values": np.ascontiguousarray(cache.values),
    }
    metadata = {
        "format": PROMPT_CACHE_FORMAT,
        "model": cache.model,
        "adapter": cache.adapter,
        "sha256": _digest(tensors),
    }
    try:
        with private_file(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise PromptCacheError(f"The prompt cache can't be written: {path} ({error}).") from None


def read_prompt_cache(path: Path | str) -> PromptCache:
    """Read a file of `write_prompt_cache`; `Decoder.restore` checks that it belongs to the model and the adapter.

    Raises:
        PromptCacheError: the file is missing, damaged, or not a prompt cache.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != PROMPT_CACHE_FORMAT:
                raise PromptCacheError(
                    f"This is not a prompt cache of format '{PROMPT_CACHE_FORMAT}': {path}. {_AGAIN}"
                )
            tensors = {name: file.get_tensor(name) for name in ("token_ids", "keys", "values")}
    except FileNotFoundError:
        raise PromptCacheError(f"There is no prompt cache here: {path}. Check its name.") from None
    # numpy raises TypeError and ValueError for unsupported element types and shapes.
    except (OSError, SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise PromptCacheError(f"The prompt cache can't be read: {path} ({error}). {_AGAIN}") from None
    token_ids, keys, values = tensors["token_ids"], tensors["keys"], tensors["values"]
    whole = token_ids.dtype == np.int32 and token_ids.ndim == 1
    if not whole or _digest(tensors) != metadata.get("sha256"):
        raise PromptCacheError(f"The prompt cache is damaged: {path} (its SHA-256 differs). {_AGAIN}")
    tokens = tuple(int(token) for token in token_ids)
    return PromptCache(metadata.get("model", ""), metadata.get("adapter", ""), tokens, keys, values)


def _digest(tensors: dict[str, NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

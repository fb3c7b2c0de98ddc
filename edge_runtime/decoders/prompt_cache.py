"""Keeps a prompt cache in a file, so that the next answer about the same profile does not read it again.

The file holds private text in another form: it is readable by its owner alone. What damage does to it is noticed; it is
no defence against someone who can write the user's files.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edge_runtime.decoders.protocol import PromptCache
from edge_runtime.errors import PromptCacheError

PROMPT_CACHE_FORMAT = "cogenesis-prompt-cache/1"
_AGAIN = "Delete it; it is made anew from the profile."


def write_prompt_cache(cache: PromptCache, path: Path | str) -> None:
    """Write the file in one step: a reader sees the old one, or the new one, whole.

    Args:
        cache: what `Decoder.save` gave.
        path: of the file (safetensors with `token_ids`, `keys`, `values`), made with mode 0600.

    Raises:
        PromptCacheError: the file can't be written; the old one is unharmed.
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
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600 from the start
        os.close(descriptor)
        temporary = Path(name)
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o600)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise PromptCacheError(f"The prompt cache can't be written: {path} ({error}).") from None


def read_prompt_cache(path: Path | str) -> PromptCache:
    """Read what `write_prompt_cache` wrote; `Decoder.restore` checks that it belongs to the model and the adapter.

    Raises:
        PromptCacheError: the file is missing, damaged, or something else.
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
        raise PromptCacheError(f"There is no prompt cache here: {path}.") from None
    # numpy raises TypeError and ValueError for element types and shapes that it can't hold.
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

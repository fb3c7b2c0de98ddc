"""The tokenizer of a bundle: encodes, decodes, and computes the fingerprint that shows which models can be fused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as HFTokenizer

from edge_runtime.errors import BundleError


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Return the SHA-256 of a vocabulary; equal if token ids mean the same strings.

    The hash covers the lines `id TAB token NEWLINE` (UTF-8) in the order of the ids, including added tokens. Two models
    can be fused if and only if their fingerprints are equal. How text is split into tokens does not matter.

    Args:
        vocabulary: maps token string to id, including added tokens.

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256()
    for token, token_id in sorted(vocabulary.items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{token_id}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class Tokenizer:
    """A `tokenizer.json` with the few methods that the runtime needs."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self.backend = tokenizer
        self._ids: dict[int, NDArray[np.int64]] = {}

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises:
            BundleError: the file is not a valid `tokenizer.json`.
        """
        try:
            tokenizer = HFTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(f"The tokenizer can't be read: {path} ({error}). Export the bundle again.") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer)

    @property
    def fingerprint(self) -> str:
        """See `vocabulary_fingerprint`."""
        return vocabulary_fingerprint(self.backend.get_vocab(with_added_tokens=True))

    def ids_below(self, limit: int) -> NDArray[np.int64]:
        """Return the ids below `limit` that have a token, ascending; computed once (20 ms for 150,000 ids).

        Raises:
            BundleError: there are none.
        """
        if limit not in self._ids:
            # Three times as fast as `get_vocab`, which copies the vocabulary.
            look_up = self.backend.id_to_token
            self._ids[limit] = np.array([i for i in range(limit) if look_up(i) is not None], np.int64)
        if not self._ids[limit].size:
            raise BundleError("The tokenizer has no tokens. Export the bundle again.")
        return self._ids[limit]

    @cached_property
    def first_tokens(self) -> tuple[int, ...]:
        """The tokens that the tokenizer itself puts before a text, usually BOS or nothing."""
        whole = self.backend.encode("a", add_special_tokens=True)
        added = takewhile(lambda pair: pair[1], zip(whole.ids, whole.special_tokens_mask, strict=True))
        return tuple(token for token, _ in added)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`; special tokens in it are recognised, none are added."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`."""
        return str(self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

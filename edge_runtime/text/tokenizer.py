"""The tokenizer of a bundle: text to ids and back, and the fingerprint that tells whether two models can be fused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer

from edge_runtime.errors import BundleError


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 of a vocabulary, equal where token ids mean the same strings.

    Hashed are the lines `id TAB token NEWLINE` (UTF-8) in the order of the ids, added tokens included. Two models can
    be fused exactly when these agree; how text is split into tokens does not matter for that.

    Args:
        vocabulary: token string to id, added tokens included.

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256()
    for token, token_id in sorted(vocabulary.items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{token_id}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class Tokenizer:
    """A `tokenizer.json` with the few calls the runtime needs."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self.backend = tokenizer

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises:
            BundleError: the file is not one.
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

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens in it are recognised, none are added."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`."""
        return str(self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

"""The bytes that each token stands for, so that text can be put together across tokens that hold half a character."""

from __future__ import annotations

import re

from edge_runtime.text.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


class TokenBytes:
    """Bytes by token id; None for control tokens and for ids that the vocabulary lacks."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.backend.get_added_tokens_decoder()
        self._control = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added: dict[int, str] = {token_id: token.content for token_id, token in added.items()}
        # A tokenizer says how its pieces become text in its decoder alone.
        self._byte_level = "ByteLevel" in str(tokenizer.backend.decoder)
        self._known: dict[int, bytes | None] = {}

    def __getitem__(self, token_id: int) -> bytes | None:
        if token_id not in self._known:
            self._known[token_id] = self._look_up(token_id)
        return self._known[token_id]

    def _look_up(self, token_id: int) -> bytes | None:
        if token_id in self._control:
            return None
        if token_id in self._added:
            return self._added[token_id].encode()
        piece: str | None = self._tokenizer.backend.id_to_token(token_id)
        if piece is None:
            return None
        if byte := _BYTE.match(piece):
            return bytes([int(byte[1], 16)])
        if self._byte_level and all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        return str(piece).replace("\u2581", " ").encode("utf-8", "replace")


def _byte_alphabet() -> dict[str, int]:
    """How byte-level vocabularies write bytes: printable Latin-1 as itself, the rest from 256 on."""
    alphabet, free = {}, 256
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD):
            alphabet[chr(byte)] = byte
        else:
            alphabet[chr(free)] = byte
            free += 1
    return alphabet


_BYTE_OF = _byte_alphabet()

"""What an adapter was trained on, carried in its file: the guard keeps that from the cloud, too.

An adapter can make the device write words of the texts that it learned, whether or not they are in the prompt.
"""

from __future__ import annotations

import json
import zlib

from edge_runtime.context import PrivateContext
from edge_runtime.errors import RequestError
from edge_runtime.request import parse_context

LARGEST_TEXT = 64 << 20
"""Bytes of a user's texts; what claims to be more is refused before memory is taken for it."""


def encode_learned(context: PrivateContext) -> bytes:
    """Compress profile and texts; the same give the same bytes."""
    history = [{"title": item.title, "text": item.text} for item in context.history]
    return zlib.compress(json.dumps({"profile": context.profile, "history": history}).encode(), 9)


def decode_learned(content: bytes) -> PrivateContext:
    """What `encode_learned` was given.

    Raises:
        ValueError: the content is damaged, or unpacks to more than `LARGEST_TEXT`.
    """
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(content, LARGEST_TEXT)
        if not unpacking.eof or unpacking.unused_data:
            raise ValueError("the text that it was trained on is cut short, or too long")
        return parse_context(json.loads(text), "the adapter", "learned")
    except (zlib.error, RecursionError, RequestError) as error:
        raise ValueError(f"the text that it was trained on can't be read: {error}") from None

"""Decodes tokens to text as they arrive: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class TextStream:
    """Incremental detokenizer of one answer.

    The pieces add up to the decoded text, up to the stop string that is completed first. A character whose bytes span
    several tokens is returned with its last byte. Text that may be the start of a stop string is held back until it no
    longer can be.

    `tokenizers.decoders.DecodeStream` also joins characters, but raises on bytes that are not UTF-8. Sampling does
    produce such bytes.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop_strings: Sequence[str] = (), skip_special_tokens: bool = True
    ) -> None:
        """Start an empty text.

        Args:
            tokenizer: tokenizer of the model that generates the tokens.
            stop_strings: the text ends before the first of them; empty strings are ignored.
            skip_special_tokens: leave special tokens out of the text.
        """
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._filter = StopFilter(stop_strings)
        self._window: list[int] = []  # tokens that can still affect how the next one decodes
        self._context = 0  # number of them whose text was returned
        self._sent = 0  # number of characters of the decoded window that were passed on

    @property
    def stop_string(self) -> str | None:
        """The stop string that was completed, or None."""
        return self._filter.stop_string

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed; `stop_string` says which."""
        return self.stop_string is not None

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now final, often ""; always "" after a stop string."""
        if self.stopped:
            return ""
        return self._filter.push(self._decode(token_id))

    def flush(self) -> str:
        """End the text and return the held-back rest; bytes of an incomplete character become U+FFFD."""
        if self.stopped:
            return ""
        rest = self._text(self._window)[self._sent :]
        self._window, self._context, self._sent = [], 0, 0
        return self._filter.push(rest) + self._filter.flush()

    def _decode(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._text(self._window)
        # A trailing U+FFFD may be the first bytes of a character, so hold it back until the next token.
        whole = text.rstrip(_REPLACEMENT)
        piece = whole[self._sent :]
        self._sent = max(self._sent, len(whole))
        if piece and whole == text:
            # Some decoders strip the space before the first token, so keep the last chunk as context.
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._sent = len(self._text(self._window))
        return piece

    def _text(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


class StopFilter:
    """Passes text on up to the first stop string, and holds back text that may become one."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = tuple(stop for stop in stop_strings if stop)
        self._held = ""
        self.stop_string: str | None = None

    def push(self, piece: str) -> str:
        """Add text and return the part that can't belong to a stop string; "" after one was completed."""
        if self.stop_string is not None:
            return ""
        if not self._stop_strings or not piece:
            return piece
        text = self._held + piece
        # The stop string that is complete first wins, regardless of token boundaries; on a tie, the longer one.
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop_strings if stop in text]
        if found:
            end, negative_length, self.stop_string = min(found)
            self._held = ""
            return text[: end + negative_length]
        hold = max(_overlap(text, stop) for stop in self._stop_strings)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def flush(self) -> str:
        """Return the text that was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

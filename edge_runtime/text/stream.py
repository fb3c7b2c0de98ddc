"""Turns tokens into text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class TextStream:
    """Incremental detokenizer of one answer.

    All pieces together are the decoded text, up to the stop string that is completed first. A character whose bytes
    are spread over several tokens comes out when its last byte is there; text that may become a stop string comes out
    when it no longer can.

    `tokenizers.decoders.DecodeStream` does the first part, but raises on bytes that are not UTF-8, which a model that
    samples does produce.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop_strings: Sequence[str] = (), skip_special_tokens: bool = True
    ) -> None:
        """Start an empty text.

        Args:
            tokenizer: of the model that writes the tokens.
            stop_strings: the text ends before the first of them; empty strings are ignored.
            skip_special_tokens: leave special tokens out of the text.
        """
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._filter = StopFilter(stop_strings)
        self._window: list[int] = []  # tokens that can still change how the next one decodes
        self._context = 0  # how many of them are out as text
        self._sent = 0  # characters of the decoded window that left the detokenizer

    @property
    def stop_string(self) -> str | None:
        """The stop string that was completed."""
        return self._filter.stop_string

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed; `stop_string` says which."""
        return self.stop_string is not None

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now certain, often ""; always "" after a stop string."""
        if self.stopped:
            return ""
        return self._filter.push(self._decode(token_id))

    def flush(self) -> str:
        """End the text and return what was held back; bytes of an incomplete character become U+FFFD."""
        if self.stopped:
            return ""
        rest = self._text(self._window)[self._sent :]
        self._window, self._context, self._sent = [], 0, 0
        return self._filter.push(rest) + self._filter.flush()

    def _decode(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._text(self._window)
        # A trailing U+FFFD may be the first bytes of a character: it waits for the next token.
        whole = text.rstrip(_REPLACEMENT)
        piece = whole[self._sent :]
        self._sent = max(self._sent, len(whole))
        if piece and whole == text:
            # Some decoders strip the space before the first token, so the last chunk stays as context.
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._sent = len(self._text(self._window))
        return piece

    def _text(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


class StopFilter:
    """Lets text through up to the first stop string, holding back what may become one."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = tuple(stop for stop in stop_strings if stop)
        self._held = ""
        self.stop_string: str | None = None

    def push(self, piece: str) -> str:
        """Add text and return what can't be part of a stop string; "" after one was completed."""
        if self.stop_string is not None:
            return ""
        if not self._stop_strings or not piece:
            return piece
        text = self._held + piece
        # The stop string that is complete first wins, whatever the token boundaries; of two, the longer.
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop_strings if stop in text]
        if found:
            end, negative_length, self.stop_string = min(found)
            self._held = ""
            return text[: end + negative_length]
        hold = max(_overlap(text, stop) for stop in self._stop_strings)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def flush(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper start of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

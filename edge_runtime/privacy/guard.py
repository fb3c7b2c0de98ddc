"""Builds the guarded cloud view of one answer: it passes clean text token by token and replaces private units."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.privacy.folding import Kind, fold
from edge_runtime.privacy.scanner import Hit, Scan, Scanner
from edge_runtime.privacy.units import Public, private_units
from edge_runtime.text.token_bytes import TokenBytes
from edge_runtime.text.tokenizer import Tokenizer

STAND_INS: Mapping[str, str] = {
    "name": "someone",
    "number": "10",
    "date": "today",
    "email": "someone",
    "phone": "a number",
    "handle": "someone",
    "word": "such",
    "sequence": "such",
}
"""The stand-in for a private unit of each kind."""

# Used if the stand-in would itself be private, or would form a private unit with the text before it.
_OTHERS = ("this", "that", "\u2026")
# If the first letters of a word were already sent, the stand-in continues that word.
_LETTERS = "xqzjkvwyfhpbgdmcunlrsiaote"
_DIGITS = "0123456789"
# Each replacement removes letters, so this limit is never reached; if it were, the view would end rather than leak.
_MOST_REPLACEMENTS = 100


class Guard:
    """The cloud's view of one answer, updated token by token; a pure function of the answer's tokens.

    The guard releases text once it is certain that the text is not part of a private unit. It holds back text that is,
    or may become, part of one. When a private unit is complete, the view gets a stand-in for it. The view's text never
    contains a private unit, whatever the tokens (see `edge_runtime.privacy.scanner` for what counts as one).
    """

    def __init__(self, tokenizer: Tokenizer, instruction: PublicInstruction, context: PrivateContext) -> None:
        """Find the context's private units; takes about 50 ms for a profile and four past texts.

        Args:
            tokenizer: the tokenizer of both models.
            instruction: the public instruction, which the cloud knows.
            context: the private context, to be kept from the cloud.
        """
        self._tokenizer = tokenizer
        self._bytes = TokenBytes(tokenizer)
        self._units = private_units(context, instruction)
        self._scanner = Scanner(self._units, Public.of(instruction).letters)
        self._encoded: dict[str, tuple[int, ...]] = {}
        self._released: list[int] = []
        self._states = [_State()]

    @property
    def length(self) -> int:
        """Number of tokens pushed."""
        return len(self._states) - 1

    @property
    def released(self) -> Sequence[int]:
        """The view: tokens that may be sent. `push` only appends to it."""
        return self._released

    @property
    def asks(self) -> bool:
        """Whether the cloud may be asked for the next row, because no text is held back."""
        state = self._states[-1]
        return not (state.held or state.partial or state.closed)

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens of the answer.

        Raises:
            ValueError: the answer is shorter, or `length` is negative.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"can't rewind {self.length} tokens to {length}")
        del self._states[length + 1 :]
        del self._released[self._states[-1].released :]

    def push(self, token: int) -> None:
        """Append one token of the answer."""
        state = self._states[-1]
        raw = self._bytes[token]
        if raw is not None and not state.closed:  # control tokens are never sent
            text, rest = _decode(state.rest + raw)
            tokens, text = (*state.partial, token), state.whole + text
            if rest:
                # The view gets only whole characters, so a token waits until its last character is complete.
                state = state._replace(partial=tokens, whole=text, rest=rest)
            else:
                state = state._replace(partial=(), whole="", rest=b"")
                state = self._read(state, _Piece(tokens, text))
        self._states.append(state._replace(released=len(self._released)))

    def _read(self, state: _State, piece: _Piece) -> _State:
        """Scan one more piece of text and release the text that may be sent."""
        scan = state.scan
        for at, character in enumerate(piece.text, start=state.end):
            scan, hit = self._scanner.step(scan, character, at)
            if hit is not None:
                return self._replace(state, piece, hit)
        held = (*state.held, _Held(piece, scan))
        state = state._replace(scan=scan, held=held, end=state.end + len(piece.text))
        return self._release(state)

    def _release(self, state: _State) -> _State:
        hold, start, base, count = state.scan.hold, state.start, state.base, 0
        for piece, after in state.held:
            if start + len(piece.text) > hold:
                break
            self._released += piece.tokens
            start, base, count = start + len(piece.text), after, count + 1
        return state._replace(start=start, base=base, held=state.held[count:]) if count else state

    def _replace(self, state: _State, last: _Piece, hit: Hit) -> _State:
        """Replace the hit, which ends within the last piece, with a stand-in, and scan the held text again."""
        cut = self._cut(state, last, hit)
        if not cut.surface or last.reread > _MOST_REPLACEMENTS:
            return state._replace(closed=True)
        scan, at = state.base, state.start
        for character in "".join(piece.text for piece in cut.before):
            scan, _ = self._scanner.step(scan, character, at)
            at += 1
        kind = self._units[hit.unit].kind
        continues = hit.hold > hit.start and scan.before is not Kind.SEPARATOR
        stand_in = self._stand_in(kind, cut.surface, scan, at, continues=continues, plain=cut.in_substitute)
        before, space = self._without_space(cut.before)
        pieces = (*before, self._piece(space + stand_in, substitute=True), self._piece(cut.after))
        return self._read_again(state, pieces, last.reread + 1)

    def _cut(self, state: _State, last: _Piece, hit: Hit) -> _Cut:
        """Split the held text where the hit begins and ends."""
        before: list[_Piece] = []
        surface, after, in_substitute = "", "", False
        at = state.start
        for piece in (*(held.piece for held in state.held), last):
            start, end = max(hit.hold - at, 0), hit.end - at
            if start >= len(piece.text):
                before.append(piece)
            else:
                if start:
                    before.append(self._piece(piece.text[:start]))
                surface += piece.text[start:end]
                after += piece.text[max(end, 0) :]
                in_substitute |= piece.substitute
            at += len(piece.text)
        return _Cut(before, surface, after, in_substitute)

    def _without_space(self, before: list[_Piece]) -> tuple[list[_Piece], str]:
        """Move a space like that of " Lindqvist" to the stand-in, because it was part of the name's token."""
        if not before or before[-1].whole or not before[-1].text.endswith(" "):
            return before, ""
        rest = before[-1].text[:-1]
        return [*before[:-1], *([self._piece(rest)] if rest else [])], " "

    def _read_again(self, state: _State, pieces: Iterable[_Piece], reread: int) -> _State:
        state = state._replace(scan=state.base, end=state.start, held=())
        for piece in pieces:
            if piece.text and not piece.tokens:
                return state._replace(closed=True)
            if piece.text and not state.closed:
                state = self._read(state, piece._replace(reread=reread))
        return state

    def _stand_in(self, kind: str, surface: str, scan: Scan, at: int, *, continues: bool, plain: bool) -> str:
        """Return the first stand-in that forms no private unit; `plain` prefers one without letters."""
        options: Iterable[str]
        if continues:
            options = _DIGITS if scan.before is Kind.DIGIT else _LETTERS
        else:
            options = ("\u2026",) if plain else (STAND_INS[kind], *_OTHERS)
            if fold(surface[:1]).kind is Kind.UPPER:
                options = [option[0].upper() + option[1:] for option in options]
        for option in options:
            if self._is_clean(option if continues else option + "\n", scan, at):
                return option
        return ""

    def _is_clean(self, text: str, scan: Scan, at: int) -> bool:
        for position, character in enumerate(text, start=at):
            scan, hit = self._scanner.step(scan, character, position)
            if hit is not None:
                return False
        return True

    def _piece(self, text: str, *, substitute: bool = False) -> _Piece:
        tokens = self._encoded.get(text)
        if tokens is None:
            tokens = self._encoded[text] = self._encode(text)
        return _Piece(tokens, text, substitute=substitute, whole=False)

    def _encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens that continue a text with this one; empty if the tokenizer can't encode it exactly."""
        for anchor in ("", "\n"):  # some tokenizers add a space before the first word
            tokens = self._tokenizer.encode(anchor + text)
            for skip in range(3 if anchor else 1):
                pieces = [self._bytes[token] for token in tokens[skip:]]
                if all(pieces) and b"".join(piece or b"" for piece in pieces) == text.encode():
                    return tuple(tokens[skip:])
        return ()


class _Piece(NamedTuple):
    """A part of the view's text and its tokens.

    Attributes:
        tokens: tokens to release for it.
        text: text of the tokens.
        substitute: whether it contains a stand-in.
        whole: whether its tokens are the answer's own.
        reread: how often it was scanned again because of a replacement in or before it.
    """

    tokens: tuple[int, ...]
    text: str
    substitute: bool = False
    whole: bool = True
    reread: int = 0


class _Cut(NamedTuple):
    """The held text, split at a private unit.

    Attributes:
        before: pieces before the unit.
        surface: the part of the unit's text that was held back.
        after: the text after the unit.
        in_substitute: whether a stand-in is part of the unit.
    """

    before: list[_Piece]
    surface: str
    after: str
    in_substitute: bool


class _Held(NamedTuple):
    """A piece that is held back, and the scan state after it."""

    piece: _Piece
    after: Scan


class _State(NamedTuple):
    """The guard's state after some tokens; immutable, so the guard can return to it.

    Attributes:
        released: number of tokens in the view.
        start: position in the view's text of the first character that is held back.
        base: the scan state at `start`.
        held: the pieces from `start` on.
        end: position after the held pieces.
        scan: the scan state at `end`.
        partial: tokens that end within a character.
        whole: the whole characters in them.
        rest: the bytes after those characters.
        closed: whether releasing has stopped, because every stand-in would have formed a private unit.
    """

    released: int = 0
    start: int = 0
    base: Scan = Scan()
    held: tuple[_Held, ...] = ()
    end: int = 0
    scan: Scan = Scan()
    partial: tuple[int, ...] = ()
    whole: str = ""
    rest: bytes = b""
    closed: bool = False


def _decode(data: bytes) -> tuple[str, bytes]:
    """Return the whole characters, with U+FFFD for invalid bytes, and the trailing bytes of an incomplete character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, decoder.getstate()[0]

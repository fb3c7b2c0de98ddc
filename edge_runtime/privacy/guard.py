"""The guarded cloud view of one answer: clean text passes token for token, private units become stand-ins."""

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
"""What a private unit of each kind is replaced by."""

# Where the stand-in would itself be private, or make something private with what stands before it.
_OTHERS = ("this", "that", "\u2026")
# Where the first letters of a word have left already, the stand-in continues it and starts no new one.
_LETTERS = "xqzjkvwyfhpbgdmcunlrsiaote"
_DIGITS = "0123456789"
# Each replacement takes letters away, so this is never reached; if it were, the view would end rather than leak.
_MOST_REPLACEMENTS = 100


class Guard:
    """The cloud's view of one answer, kept token by token; a pure function of the answer's tokens.

    Text is released once it is certain that it is no part of a private unit. Text that is one, or may become one with
    the characters to come, is held back. When a private unit is complete, the view gets a stand-in for it. The view's
    text never holds a private unit, whatever the tokens (see `edge_runtime.privacy.scanner` for what counts as one).
    """

    def __init__(self, tokenizer: Tokenizer, instruction: PublicInstruction, context: PrivateContext) -> None:
        """Read the context; takes about 50 ms for a profile and four past texts.

        Args:
            tokenizer: of both models.
            instruction: what the cloud knows.
            context: what it must not get to know.
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
        """How many tokens of the answer were pushed."""
        return len(self._states) - 1

    @property
    def released(self) -> Sequence[int]:
        """The view: tokens that may leave. `push` only appends to it."""
        return self._released

    @property
    def asks(self) -> bool:
        """Whether the cloud may be asked for the next row: nothing is held back."""
        state = self._states[-1]
        return not (state.held or state.partial or state.closed)

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens of the answer.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"can't rewind {self.length} tokens to {length}")
        del self._states[length + 1 :]
        del self._released[self._states[-1].released :]

    def push(self, token: int) -> None:
        """Append one token of the answer."""
        state = self._states[-1]
        raw = self._bytes[token]
        if raw is not None and not state.closed:  # control tokens never leave
            text, rest = _decode(state.rest + raw)
            tokens, text = (*state.partial, token), state.whole + text
            if rest:
                # The view gets whole characters only, so a token waits for those that complete its last one.
                state = state._replace(partial=tokens, whole=text, rest=rest)
            else:
                state = state._replace(partial=(), whole="", rest=b"")
                state = self._read(state, _Piece(tokens, text))
        self._states.append(state._replace(released=len(self._released)))

    def _read(self, state: _State, piece: _Piece) -> _State:
        """Scan one more piece of text and release what can leave."""
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
        """Put a stand-in for the hit, which ends within the last piece, and read again what is held."""
        before: list[_Piece] = []
        surface, after, in_substitute = "", "", False
        at = state.start
        for piece in (*(held.piece for held in state.held), last):
            cut, end = max(hit.hold - at, 0), hit.end - at
            if cut >= len(piece.text):
                before.append(piece)
            else:
                if cut:
                    before.append(self._piece(piece.text[:cut]))
                surface += piece.text[cut:end]
                after += piece.text[max(end, 0) :]
                in_substitute |= piece.substitute
            at += len(piece.text)
        if not surface or last.reread > _MOST_REPLACEMENTS:
            return state._replace(closed=True)
        kind = self._units[hit.unit].kind
        scan, at = state.base, state.start
        for character in "".join(piece.text for piece in before):
            scan, _ = self._scanner.step(scan, character, at)
            at += 1
        # Of " Lindqvist" the space belongs to the stand-in's token, as it did to the name's.
        space = " " if len(before) and before[-1].text[-1:] == " " and not before[-1].whole else ""
        continues = hit.hold > hit.start and scan.before is not Kind.SEPARATOR
        stand_in = self._stand_in(kind, surface, scan, at, continues=continues, plain=in_substitute)
        if space:
            before[-1:] = [self._piece(before[-1].text[:-1])] if len(before[-1].text) > 1 else []
        state = state._replace(scan=state.base, end=state.start, held=())
        for piece in (*before, self._piece(space + stand_in, substitute=True), self._piece(after)):
            if piece.text and not piece.tokens:
                return state._replace(closed=True)
            if piece.text and not state.closed:
                state = self._read(state, piece._replace(reread=last.reread + 1))
        return state

    def _stand_in(self, kind: str, surface: str, scan: Scan, at: int, *, continues: bool, plain: bool) -> str:
        """The first stand-in that makes nothing private; `plain`: without letters, if that can be."""
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
        """Tokens that continue a text with this one; none where the tokenizer has none for exactly it."""
        for anchor in ("", "\n"):  # some tokenizers put a space before a text's first word
            tokens = self._tokenizer.encode(anchor + text)
            for skip in range(3 if anchor else 1):
                pieces = [self._bytes[token] for token in tokens[skip:]]
                if all(pieces) and b"".join(piece or b"" for piece in pieces) == text.encode():
                    return tuple(tokens[skip:])
        return ()


class _Piece(NamedTuple):
    """Some of the view's text and the tokens that write it.

    Attributes:
        tokens: what is released for it.
        text: what they say.
        substitute: it has a stand-in.
        whole: its tokens are the answer's own.
        reread: how often it was read again because something in or before it was replaced.
    """

    tokens: tuple[int, ...]
    text: str
    substitute: bool = False
    whole: bool = True
    reread: int = 0


class _Held(NamedTuple):
    """A piece that is held back, and the scan after it."""

    piece: _Piece
    after: Scan


class _State(NamedTuple):
    """All that depends on the answer so far; immutable, so that it can be returned to.

    Attributes:
        released: tokens of the view.
        start: position in the view's text of the first character that is held back.
        base: the scan there.
        held: what follows.
        end: position after it.
        scan: the scan there.
        partial: tokens that end within a character.
        whole: the whole characters in them.
        rest: the bytes after those.
        closed: nothing is released any more, since a stand-in that makes nothing private could not be found.
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
    """The whole characters, with U+FFFD for what is none, and the bytes that may still become one."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, decoder.getstate()[0]

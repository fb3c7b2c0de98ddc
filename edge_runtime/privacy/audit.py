"""Reads a ledger and reports every private unit that left the device, and how it could be recognised."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.errors import LedgerError
from edge_runtime.privacy.folding import squeeze
from edge_runtime.privacy.ledger import LedgerEntry
from edge_runtime.privacy.scanner import Hit, Scan, Scanner
from edge_runtime.privacy.units import PrivateUnit, Public, private_units

_NO_TEXT = frozenset({"tokenizer_fingerprint", "value_type", "resume", "text"})
_SHOWN = 512  # characters of the view that are kept to show how a unit left


class Match(StrEnum):
    """How what left was recognised as a private unit."""

    EXACT = "exact"
    CASE = "case"
    INFLECTION = "inflection"
    UNICODE = "unicode"
    SPELLED_OUT = "spelled out"
    NUMBER_FORM = "number form"
    JOINED = "joined"
    SEQUENCE = "sequence"


@dataclass(frozen=True, slots=True)
class Leak:
    """A private unit that left.

    Attributes:
        kind: of the unit, see `edge_runtime.privacy.units`.
        surface: as the context writes it.
        left: as it left.
        match: how it was recognised.
        lines: numbers of the ledger's lines with which it was complete, from 1.
    """

    kind: str
    surface: str
    left: str
    match: Match
    lines: tuple[int, ...]


def read_ledger(path: Path | str) -> tuple[LedgerEntry, ...]:
    """Read a ledger file.

    Raises:
        LedgerError: it can't be read, or a line is no entry; an audit that skips lines would prove nothing.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise LedgerError(f"The ledger can't be read: {path} ({error.strerror}). Check its name.") from None
    except UnicodeDecodeError:
        raise LedgerError(f"The ledger is not UTF-8 text: {path}. Give the file that --ledger wrote.") from None
    return tuple(_entry(line, number, path) for number, line in enumerate(lines, start=1))


def audit(
    entries: Iterable[LedgerEntry],
    instruction: PublicInstruction,
    context: PrivateContext,
    token_bytes: Callable[[int], bytes | None] | None = None,
) -> tuple[Leak, ...]:
    """Find every private unit of the context in what left, under any policy.

    The texts of `verify` messages are joined as the cloud joins them, so a unit that is spread over messages is found,
    and what was sent and taken back counts too. Where a message takes back part of an earlier one, the ledger alone
    does not say at which letter: without `token_bytes`, every place is tried.

    Args:
        entries: the ledger, in its order; entry i is line i + 1.
        instruction: what was public.
        context: what was not.
        token_bytes: bytes of a token, for an exact reading of the tokens.

    Returns:
        The leaks in the order in which they happened; a unit that left in two ways is there twice.
    """
    units = private_units(context, instruction)
    scanner = Scanner(units, Public.of(instruction).letters)
    happened: list[_Found] = []
    view = _View(scanner, token_bytes, happened)
    for number, entry in enumerate(entries, start=1):
        if entry.direction != "up":
            continue
        if entry.kind == "open":
            view.end()
            view = _View(scanner, token_bytes, happened, view.learned)
        if entry.kind == "verify":
            view.verify(number, *_verify(entry, number))
        for text in _texts(entry.content):
            happened += [_Found(number, hit, text[hit.start : hit.end]) for hit in scanner.find(text)]
    view.end()
    longest = {(found.line, found.hit.unit, found.hit.start): found for found in sorted(happened, key=_end)}
    lines: dict[tuple[int, str], set[int]] = {}
    matches: dict[tuple[int, str], Match] = {}
    for number, hit, left in sorted(longest.values(), key=lambda found: found.line):
        lines.setdefault((hit.unit, left), set()).add(number)
        matches.setdefault((hit.unit, left), _match(units[hit.unit], hit, left))
    return tuple(
        Leak(units[index].kind, units[index].surface, left, matches[index, left], tuple(sorted(numbers)))
        for (index, left), numbers in lines.items()
    )


class _Found(NamedTuple):
    """A hit, the line of the ledger with which it was complete, and the text that it covers."""

    line: int
    hit: Hit
    left: str


def _end(found: _Found) -> int:
    return found.hit.end


class _Segment(NamedTuple):
    """Tokens of one message in the view: their text, and the scan and the text before them."""

    tokens: tuple[int, ...]
    text: str
    scan: Scan
    end: int
    tail: str


class _View:
    """The cloud's view as the ledger tells it."""

    def __init__(
        self,
        scanner: Scanner,
        token_bytes: Callable[[int], bytes | None] | None,
        happened: list[_Found],
        learned: dict[tuple[int, ...], str] | None = None,
    ) -> None:
        self._scanner = scanner
        self._token_bytes = token_bytes
        self._happened = happened
        self._segments: list[_Segment] = []
        self._at_end: list[_Found] = []  # complete unless the next message continues their last word
        self.learned = learned if learned is not None else {}

    def verify(self, line: int, keep: int, tokens: tuple[int, ...], text: str) -> None:
        """Cut the view to `keep` tokens and append; what is complete by that has happened."""
        if self._token_bytes is not None:
            text = self._decode(tokens)
        self.learned[tokens] = text
        length = sum(len(segment.tokens) for segment in self._segments)
        before = self._at_end
        if keep >= length:
            self._at_end = []
        self.end()
        cut: _Segment | None = None
        while self._segments and length > keep:
            cut = self._segments.pop()
            length -= len(cut.tokens)
        scan, end, tail = Scan(), 0, ""
        prefixes = [""]
        if cut is not None:
            scan, end, tail = cut.scan, cut.end, cut.tail
            prefixes = self._prefixes(cut, keep - length)
        elif self._segments:
            scan, end, tail = self._after(self._segments[-1])
        earlier = {(found.hit.unit, found.hit.start): found.line for found in before if found.hit.end == end}
        for prefix in prefixes:
            self._scan(earlier, line, scan, end, tail, prefix + text)
        if cut is not None and keep > length:
            # Of several possible prefixes the longest: what follows is searched with it.
            self._segments.append(_Segment(cut.tokens[: keep - length], prefixes[-1], scan, end, tail))
            scan, end, tail = self._after(self._segments[-1])
        self._segments.append(_Segment(tokens, text, scan, end, tail))

    def end(self) -> None:
        """Nothing continues the view's last word."""
        self._happened += self._at_end
        self._at_end = []

    def _scan(self, earlier: dict[tuple[int, int], int], line: int, scan: Scan, end: int, tail: str, text: str) -> None:
        """Note what ends in `text`, which follows the `end` characters that `tail` is the last part of."""
        whole, start = tail + text, end - len(tail)
        for at, character in enumerate(f"{text}\n", start=end):
            scan, hits = self._scanner.read(scan, character, at)
            found = [
                # What was complete with the message before counts for that one.
                _Found(
                    earlier.get((hit.unit, hit.start), line) if hit.end == end else line,
                    hit,
                    whole[max(hit.start - start, 0) : hit.end - start],
                )
                for hit in hits
            ]
            if at < end + len(text):
                self._happened += found
            else:
                self._at_end += found

    def _after(self, segment: _Segment) -> tuple[Scan, int, str]:
        scan = segment.scan
        for at, character in enumerate(segment.text, start=segment.end):
            scan, _ = self._scanner.read(scan, character, at)
        return scan, segment.end + len(segment.text), (segment.tail + segment.text)[-_SHOWN:]

    def _prefixes(self, segment: _Segment, count: int) -> list[str]:
        """What the first `count` tokens of a message can have written, shortest first."""
        tokens, text = segment.tokens, segment.text
        if not count:
            return [""]
        if self._token_bytes is not None:
            return [self._decode(tokens[:count])]
        if (known := self.learned.get(tokens[:count])) is not None and text.startswith(known):
            return [known]
        if (rest := self.learned.get(tokens[count:])) is not None and text.endswith(rest):
            return [text[: len(text) - len(rest)]]
        if all((token,) in self.learned for token in tokens[:count]):
            return ["".join(self.learned[(token,)] for token in tokens[:count])]
        return [text[:length] for length in range(len(text) + 1)]

    def _decode(self, tokens: Sequence[int]) -> str:
        assert self._token_bytes is not None
        return b"".join(self._token_bytes(token) or b"" for token in tokens).decode("utf-8", "replace")


def _texts(content: Mapping[str, Any]) -> Iterator[str]:
    """Every text field but the texts of verify messages, which are read as one."""
    for name, value in content.items():
        if isinstance(value, str) and name not in _NO_TEXT:
            yield value


def _match(unit: PrivateUnit, hit: Hit, left: str) -> Match:
    letters = squeeze(left)
    bare = "".join(character for character in left.casefold() if character.isalnum())
    if left == unit.surface:
        return Match.EXACT
    if unit.kind == "sequence":
        return Match.SEQUENCE
    if hit.inside or letters != hit.form:
        return Match.JOINED
    if unit.kind in ("number", "date", "phone"):
        return Match.NUMBER_FORM
    if bare != letters and left.casefold() != unit.surface.casefold():
        return Match.UNICODE
    if sum(not c.isalnum() for c in left) > sum(not c.isalnum() for c in unit.surface):
        return Match.SPELLED_OUT
    return Match.INFLECTION if hit.form != unit.key else Match.CASE


def _entry(line: str, number: int, path: Path | str) -> LedgerEntry:
    try:
        body = json.loads(line)
        entry = LedgerEntry(body["time"], body["direction"], body["kind"], body["bytes"], body["content"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _corrupt(f"{path}, line {number}", "is no ledger entry") from None
    if entry.direction not in ("up", "down") or not isinstance(entry.kind, str) or not isinstance(entry.content, dict):
        raise _corrupt(f"{path}, line {number}", "is no ledger entry")
    if entry.direction == "up" and entry.kind == "verify":
        _verify(entry, number, str(path))
    return entry


def _verify(entry: LedgerEntry, number: int, path: str = "the ledger") -> tuple[int, tuple[int, ...], str]:
    keep, tokens, text = (entry.content.get(name) for name in ("keep", "tokens", "text"))
    if not isinstance(keep, int) or not isinstance(tokens, list | tuple) or not isinstance(text, str):
        raise _corrupt(f"{path}, line {number}", "is a verify message without keep, tokens and text")
    if not all(isinstance(token, int) for token in tokens):
        raise _corrupt(f"{path}, line {number}", "has tokens that are no numbers")
    return keep, tuple(tokens), text


def _corrupt(where: str, problem: str) -> LedgerError:
    return LedgerError(f"The ledger is damaged: {where}, {problem}. Nothing is proved by the rest; keep it and look.")

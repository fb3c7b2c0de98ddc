"""Finds the private words of a text: what it took from the private context and could not have from the instruction."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from edge_runtime.privacy import PrivateContext, PublicInstruction

_MONTH = "(?:january|february|march|april|may|june|july|august|september|october|november|december)"
# In the order in which they are tried at a place: e-mail, date, telephone number, other number, word.
_TOKEN = re.compile(
    r"(?P<email>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)"
    r"|(?P<date>\d{4}-\d{2}-\d{2}(?!\w)|\d{1,2}[./]\d{1,2}[./]\d{2,4}(?!\w)"
    rf"|\d{{1,2}}(?:st|nd|rd|th)? {_MONTH}\b|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?!\w))"
    r"|(?P<phone>\+?\(?\d(?:[ ()/-]{0,2}\d){6,}(?!\w))"
    r"|(?P<number>\d+(?:[.,:]\d+)*(?![^\W_]))"
    r"|(?P<word>[^\W_]+(?:['\u2019-][^\W_]+)*)",
    re.IGNORECASE,
)
_PART = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_LABEL = re.compile(r"\w+:")
_SENTENCE_END = re.compile(r"[.!?;:\n\"\u201c\u201d\u00ab\u00bb*#\u2022|]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MINIMUM_LETTERS = 2


def private_words(context: PrivateContext, instruction: PublicInstruction, text: str) -> tuple[str, ...]:
    """Words of `text` that give away something of the context.

    Counted are e-mail addresses, telephone numbers, dates, other numbers of two digits or more, words outside a list
    of common English ones, and common words where they are names (capitalised inside a sentence in the context and in
    the text, as "Grace" can be). Not counted is what the instruction says itself, in any regular form of the word.
    It finds words, not meanings: a private fact in common words stays unseen.

    Args:
        context: what only the device may know.
        instruction: what the cloud knows anyway.
        text: what left, or would leave.

    Returns:
        The words as they are written where they first appear in `text`, in that order, each once.
    """
    known = _read(context, instruction)
    found: dict[str, str] = {}
    for token in _tokens(text):
        if token.exact and token.key in known.exact:
            found.setdefault(token.key, token.surface)
            continue
        for part in _parts(token):
            if known.is_private(part):
                found.setdefault(part.key, part.surface)
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class _Token:
    """A word or thing of a text.

    Attributes:
        surface: as it is written.
        key: what makes two of them the same.
        name: it is capitalised and stands inside a sentence.
        exact: it is an e-mail address, a date or a telephone number.
    """

    surface: str
    key: str
    name: bool
    exact: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    """What context and instruction say; the words in all their regular forms."""

    exact: frozenset[str]
    words: frozenset[str]
    names: frozenset[str]
    public: frozenset[str]

    def is_private(self, token: _Token) -> bool:
        forms = _forms(token.key)
        if forms & self.public or not forms & self.words:
            return False
        if token.key[0].isdecimal():
            # One digit alone is mostly the number of a list's item.
            return sum(character.isdecimal() for character in token.key) > 1
        if len(token.key) < _MINIMUM_LETTERS or token.key in _listed("function_words"):
            return False
        return not forms & _listed("common_words") or (token.name and token.key in self.names)


def _read(context: PrivateContext, instruction: PublicInstruction) -> _Known:
    prose = [token for item in context.history for token in _tokens(item.text)]
    for line in context.profile.splitlines():
        label = _LABEL.match(line)  # "Name:" is the form's word, not the user's, and what follows may be a name
        prose += _tokens(line[label.end() :], inside=True) if label else _tokens(line)
    # Titles are capitalised throughout, which makes no names of their words.
    titles = [token for item in context.history for token in _tokens(item.title)]
    asked = list(_tokens(instruction.text))
    return _Known(
        exact=frozenset(token.key for token in prose + titles if token.exact) - {token.key for token in asked},
        words=_all_forms(prose + titles),
        names=frozenset(part.key for token in prose for part in _parts(token) if part.name),
        public=_all_forms(asked),
    )


def _tokens(text: str, inside: bool = False) -> Iterator[_Token]:
    """Words and things of a text in order; `inside` says whether it starts in the middle of a sentence."""
    end = 0
    for match in _TOKEN.finditer(text):
        inside = inside and not _SENTENCE_END.search(text, end, match.start())
        surface, kind, end = match.group(), match.lastgroup or "", match.end()
        if kind in ("email", "date", "phone"):
            yield _Token(surface, _exact_key(surface, kind), inside, exact=True)
        else:
            yield _Token(surface, _normal(surface), inside and surface[0].isupper())
        inside = True


def _exact_key(surface: str, kind: str) -> str:
    if kind == "phone":
        return "".join(character for character in surface if character.isdecimal())
    if kind == "date" and " " in surface:
        first, second = surface.casefold().split(" ")
        day, month = (first, second) if first[0].isdecimal() else (second, first)
        return f"{day.rstrip('stndrh')} {month}"
    return surface.casefold()


def _parts(token: _Token) -> list[_Token]:
    """The words of a compound, each without the possessive; a plain word is its own only part."""
    parts = []
    for match in _PART.finditer(token.surface):
        surface = re.sub(r"['\u2019]s\Z", "", match.group(), flags=re.IGNORECASE)
        # Only the first word of a compound can stand at the start of a sentence.
        name = surface[0].isupper() and (token.name or match.start() > 0)
        parts.append(_Token(surface, _normal(surface), name))
    return parts


def _normal(word: str) -> str:
    word = unicodedata.normalize("NFKC", word).replace("\u2019", "'").casefold()
    return _THOUSANDS.sub("", word)  # 14,500 and 14500 are one number


def _all_forms(tokens: Iterable[_Token]) -> frozenset[str]:
    return frozenset(form for token in tokens for part in _parts(token) for form in _forms(part.key))


def _forms(key: str) -> set[str]:
    """The word, and what it may be a regular form of: "carries" and "carry", "stopped" and "stop"."""
    forms = {key}
    if key.isalpha() and key.isascii():
        for ending, replacements in _ENDINGS:
            stem = key.removesuffix(ending)
            if stem != key and len(stem) >= 3:
                forms.update(stem + replacement for replacement in replacements)
                if ending in _DOUBLING and len(stem) >= 4 and stem[-1] == stem[-2]:
                    forms.add(stem[:-1])
    return forms


_ENDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("s", ("",)),
    ("es", ("",)),
    ("ies", ("y",)),
    ("ed", ("", "e")),
    ("ied", ("y",)),
    ("ing", ("", "e")),
    ("er", ("", "e")),
    ("ers", ("", "e")),
    ("ier", ("y",)),
    ("est", ("", "e")),
    ("iest", ("y",)),
    ("ly", ("", "le")),
    ("ily", ("y",)),
    ("ness", ("",)),
    ("iness", ("y",)),
    ("ful", ("",)),
    ("less", ("",)),
)
_DOUBLING = ("ed", "ing", "er", "est")


@cache
def _listed(name: str) -> frozenset[str]:
    text = files("edge_runtime").joinpath(f"data/{name}.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))

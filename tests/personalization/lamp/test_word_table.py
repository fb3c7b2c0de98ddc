"""Words numbered out of bytes are the words that Python splits."""

from __future__ import annotations

import sys

from hypothesis import example, given
from hypothesis import strategies as st

from personalization.lamp.word_table import WordTable

# Of all sizes around 8 and 16 bytes, with beginnings in common, and with bytes that are 0.
PARTS = st.sampled_from(["a", "b", "ab", "abcdefg", "abcdefgh", "\x00", "é", "漢", "\U0001f41d"])
WORDS = st.lists(PARTS, min_size=1, max_size=5).map("".join)
SPACES = st.text(" \n\t\x1c\x85\xa0\u2003\u3000", min_size=1, max_size=2)
TEXTS = st.lists(st.lists(st.tuples(WORDS, SPACES).map("".join), max_size=30).map("".join) | st.text(), max_size=6)


@given(TEXTS, st.text() | st.lists(WORDS, max_size=8).map(" ".join))
@example(["abcdefghabcdefgh abcdefghabcdefghb abcdefghabcdefgha", "abcdefghabcdefgha"], "abcdefghabcdefghc")
@example(["a\x00 a \x00a"], "\x00a a\x00 a \x00")
@example(["\ud800 \udfff a"], "\ud800")
def test_two_words_have_one_number_if_and_only_if_they_are_the_same(texts, query):
    words = [word for text in texts for word in text.split()]
    table = WordTable(texts)
    number_of: dict[str, int] = {}
    for word, number in zip(words, table.numbers.tolist(), strict=True):
        assert number_of.setdefault(word, number) == number
    assert sorted(number_of.values()) == list(range(len(table)))
    assert table.lengths.tolist() == [len(text.split()) for text in texts]
    assert table.find(query).tolist() == [number_of[word] for word in query.split() if word in number_of]


def test_many_words_share_slots_and_stay_apart():
    words = [f"{number:x}" for number in range(50_000)]
    assert len(WordTable([" ".join(words), " ".join(reversed(words))])) == len(words)


def test_every_white_space_of_python_parts_words_and_nothing_else_does():
    text = " ".join(f"a{chr(code)}b" for code in range(sys.maxunicode + 1))
    words = text.split()
    table = WordTable([text])
    assert table.lengths.tolist() == [len(words)]
    assert len(table) == len(set(words))

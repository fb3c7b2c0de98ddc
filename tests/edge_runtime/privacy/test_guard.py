"""The guarded view never contains a private unit, keeps clean text unchanged, and depends only on the tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.privacy.guard import STAND_INS, Guard
from edge_runtime.privacy.scanner import Scanner
from edge_runtime.privacy.units import Public, private_units
from tests.support.examples import examples

CONTEXT = PrivateContext(
    "Name: Ada Lindqvist\nAge: 37\nLocation: Skerrow\nPrivacy_info: Earns 14,500 a month; lost her job at the old "
    "factory last year; ill since 31 October; writes to ada.lindqvist@example.org and rings +49 (171) 555-0123; has a "
    "dog called Bo; born 1978-02-11; plays the accordion; mother of Zoë Müller",
    (HistoryItem("A letter", "We met Rose at the weekend. The neighbours of Rose complained about our bees again."),),
)
INSTRUCTION = PublicInstruction("Write a letter about keeping apiaries in Norrland.")
SCANNER = Scanner(private_units(CONTEXT, INSTRUCTION), Public.of(INSTRUCTION).letters)

relaxed = settings(
    max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

LEAKS = [
    "Ada Lindqvist",
    "ADA LINDQVIST",
    "lindqvist's",
    "Lindqvists",
    "L i n d q v i s t",
    "l-i-n-d-q-v-i-s-t",
    "L.i.n.d.q.v.i.s.t.",
    "Lind\u00adqvist",
    "Li\u200bnd\u200dqvist",
    "Li\u0301ndqvi\u0308st",
    "\uff2c\uff49\uff4e\uff44\uff51\uff56\uff49\uff53\uff54",
    "L\u0456ndqv\u0456st",
    "Lind\u2010qvist",
    "AdaLindqvist",
    "@adalindqvist",
    "ada_lindqvist",
    "mrlindqvistson",
    "Zoe Mueller",
    "Skerrow,",
    "14500",
    "14,500",
    "14.500",
    "14 500",
    "37",
    "thirty-seven",
    "Thirty seven",
    "3 7",
    "31 October",
    "October 31st",
    "11 February 1978",
    "11.02.1978",
    "0171/5550123",
    "555 0123",
    "five five five zero one two three",
    "ada.lindqvist@example.org",
    "ada dot lindqvist at example dot org",
    "accordions",
    "Bo",
    "Rose",
    "lost her job at the old factory last year",
    "The neighbours of Rose complained about our bees again",
    "complained about our bees",
]


def view_of(tokenizer, tokens, end=True):
    """Return the view's text after everything releasable was released."""
    guard = Guard(tokenizer, INSTRUCTION, CONTEXT)
    for token in tokens:
        guard.push(token)
    for token in tokenizer.encode("\n\n.") if end else ():
        guard.push(token)
    return tokenizer.decode(guard.released)


def letters_only(text):
    return "".join(character for character in text.casefold() if character.isalnum())


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_tokenizer")


@pytest.mark.parametrize("leak", LEAKS)
def test_a_private_unit_never_leaves_however_it_is_written(tokenizer, leak):
    text = f"It is known that {leak} was there, they say."
    assert list(SCANNER.find(text)), "the example is no private unit"
    view = view_of(tokenizer, tokenizer.encode(text))
    assert not list(SCANNER.find(view)), view
    assert letters_only(leak) not in letters_only(view)
    assert view.strip().startswith("It is known that")
    assert "there, they say." in view


@pytest.mark.parametrize("leak", LEAKS)
def test_a_private_unit_never_leaves_however_it_is_split_into_tokens(byte_level_tokenizer, leak):
    """Single bytes, and every split into two separately encoded parts."""
    text = f" so {leak} it is"
    alphabet = {byte_level_tokenizer.decode([token]): token for token in range(300)}
    single = [token for character in text for token in _tokens_of(byte_level_tokenizer, character, alphabet)]
    assert not list(SCANNER.find(view_of(byte_level_tokenizer, single)))
    for cut in range(1, len(text)):
        tokens = [*byte_level_tokenizer.encode(text[:cut]), *byte_level_tokenizer.encode(text[cut:])]
        view = view_of(byte_level_tokenizer, tokens)
        assert not list(SCANNER.find(view)), view


def _tokens_of(tokenizer, character, alphabet):
    return [alphabet[character]] if character in alphabet else tokenizer.encode(character)


@pytest.mark.parametrize(
    "text",
    [
        "Dear neighbours, thank you for the lovely evening; the children still talk about it.",
        "Adapt the canada goose; a rose is a rose, and 12 of 345 clocks strike 6:40.",
        "Grüße aus Köln, 你好 世界 🙂 👩‍👩‍👧 Привет",
        "Norrland and apiaries in Norrland's apiary",
        "I hope this message finds you well. Thank you very much for your time.",
    ],
)
def test_clean_text_passes_token_for_token(tokenizer, text):
    tokens = tokenizer.encode(text)
    guard = Guard(tokenizer, INSTRUCTION, CONTEXT)
    for token in (*tokens, *tokenizer.encode(" .")):
        guard.push(token)
    assert list(guard.released)[: len(tokens)] == tokens


def test_the_text_around_a_stand_in_keeps_its_tokens(byte_level_tokenizer):
    before, after = (
        byte_level_tokenizer.encode(text) for text in ("Dear neighbours,", " talk about the lovely evening")
    )
    guard = Guard(byte_level_tokenizer, INSTRUCTION, CONTEXT)
    for token in (*before, *byte_level_tokenizer.encode(" Lindqvist"), *after):
        guard.push(token)
    stand_in = byte_level_tokenizer.encode(" Someone")
    assert STAND_INS["name"] == "someone"
    assert list(guard.released) == [*before, *stand_in, *after][: len(guard.released)]
    assert len(guard.released) >= len(before) + len(stand_in) + len(after) - 1


def test_the_cloud_is_not_asked_while_a_private_word_is_written(byte_level_tokenizer):
    guard = Guard(byte_level_tokenizer, INSTRUCTION, CONTEXT)
    assert guard.asks
    for token in byte_level_tokenizer.encode("Dear"):
        guard.push(token)
    for token in byte_level_tokenizer.encode(" Lindqvist"):
        guard.push(token)
        assert not guard.asks or not byte_level_tokenizer.decode([token]).strip()
        assert "L" not in byte_level_tokenizer.decode(guard.released)
    for token in byte_level_tokenizer.encode(", thank"):
        guard.push(token)
    assert byte_level_tokenizer.decode(guard.released).startswith("Dear Someone,")


def test_half_a_character_waits_for_its_other_half(byte_level_tokenizer):
    tokens = byte_level_tokenizer.encode("🦉")
    assert len(tokens) > 1
    guard = Guard(byte_level_tokenizer, INSTRUCTION, CONTEXT)
    for token in tokens[:-1]:
        guard.push(token)
        assert not guard.asks
        assert not guard.released
    guard.push(tokens[-1])
    assert list(guard.released) == tokens


def test_control_tokens_never_leave(byte_level_tokenizer):
    end = byte_level_tokenizer.backend.token_to_id("<|end|>")
    words = byte_level_tokenizer.encode("the lovely evening")
    guard = Guard(byte_level_tokenizer, INSTRUCTION, CONTEXT)
    for token in (end, *words, end, *words, end, *byte_level_tokenizer.encode(" .")):
        guard.push(token)
    assert end not in guard.released
    assert list(guard.released)[: 2 * len(words)] == [*words, *words]


def test_a_stand_in_is_never_private_itself(byte_level_tokenizer):
    context = PrivateContext("Name: Someone Lindqvist\nPrivacy_info: is 37")
    instruction = PublicInstruction("Write.")
    guard = Guard(byte_level_tokenizer, instruction, context)
    for token in byte_level_tokenizer.encode("It was Someone, 37, and Lindqvist. And more"):
        guard.push(token)
    view = byte_level_tokenizer.decode(guard.released)
    assert not list(Scanner(private_units(context, instruction)).find(view))
    assert view.startswith("It was This, 10, and This. ")


def test_it_rewinds_only_to_what_was_there(byte_level_tokenizer):
    guard = Guard(byte_level_tokenizer, INSTRUCTION, CONTEXT)
    with pytest.raises(ValueError, match="rewind"):
        guard.rewind(1)


fragments = st.one_of(
    st.sampled_from(LEAKS),
    st.sampled_from(
        [" ", "", "-", "\u200b", "\n", ".", "L", "Lind", "qvist", "Ada", "1", "4", "Rose", "bees again", "our"]
    ),
    st.text(max_size=4),
)


@relaxed
@given(parts=st.lists(fragments, max_size=8), data=st.data())
def test_no_text_leaks_split_anywhere(byte_level_tokenizer, parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)) | {0, len(text)})
    tokens = [t for a, b in pairwise(cuts) for t in byte_level_tokenizer.encode(text[a:b])]
    view = view_of(byte_level_tokenizer, tokens)
    assert not list(SCANNER.find(view)), (text, view)


@relaxed
@given(data=st.data())
def test_random_tokens_leak_nothing_only_append_and_rewind_exactly(tokenizer, data):
    size = tokenizer.backend.get_vocab_size()
    leaky = [tokenizer.encode(leak) for leak in ("Ada Lindqvist ", "14,500", "Zoë")]
    chunk = st.one_of(st.integers(0, size - 1).map(lambda token: [token]), st.sampled_from(leaky))
    tokens = [token for part in data.draw(st.lists(chunk, max_size=24)) for token in part]
    guard = Guard(tokenizer, INSTRUCTION, CONTEXT)
    views, asked = [()], [guard.asks]
    for token in tokens:
        guard.push(token)
        assert tuple(guard.released)[: len(views[-1])] == views[-1]
        views.append(tuple(guard.released))
        asked.append(guard.asks)
        text = tokenizer.decode(guard.released)
        assert not list(SCANNER.find(text)), text
    length = data.draw(st.integers(0, len(tokens)))
    guard.rewind(length)
    assert guard.length == length
    for count in range(length, len(tokens) + 1):
        assert (tuple(guard.released), guard.asks) == (views[count], asked[count])
        if count < len(tokens):
            guard.push(tokens[count])

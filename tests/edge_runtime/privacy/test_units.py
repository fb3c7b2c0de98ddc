"""Private units: which exist, in which forms they are recognised, and what is public."""

from __future__ import annotations

import inspect
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.privacy import patterns
from edge_runtime.privacy import units as rules_of_units
from edge_runtime.privacy.folding import squeeze
from edge_runtime.privacy.scanner import Scanner
from edge_runtime.privacy.units import Public, private_units
from edge_runtime.privacy.word_forms import inflections, listed, number_words
from tests.support.examples import examples

CONTEXT = PrivateContext(
    "Name: Grace Okonkwo-Lind\nLocation: New Skerrow, 9 Cooper's Wynd\nPrivacy_info: earns 14,500 a month; ill since "
    "31 October; writes to grace.lind@example.org and rings +49 (171) 555-0123; born 1978-02-11; plays the accordion; "
    "is @gracie on https://hives.example.net/g; twenty-two colonies; called Zoë by "
    "Müller",
    (HistoryItem("A Letter About Hives", "We met Rose at the weekend. Our hives did well at 4:40 in River Park."),),
)
INSTRUCTION = PublicInstruction("Write a letter about keeping apiaries.")
COMMON = sorted(listed("common_words"))

relaxed = settings(max_examples=examples(100), deadline=None)


def found(text, context=CONTEXT, instruction=INSTRUCTION, kinds=None):
    """Return the units in a text: (kind, as written); of overlapping forms of one unit the longest."""
    units = private_units(context, instruction)
    longest = {}
    for hit in Scanner(units, Public.of(instruction).letters).find(text):
        longest[hit.unit, hit.start] = hit
    hits = [(units[hit.unit].kind, text[hit.start : hit.end]) for hit in longest.values()]
    return [hit for hit in hits if kinds is None or hit[0] in kinds]


@pytest.mark.parametrize(
    ("text", "kind", "left"),
    [
        ("She is Okonkwo.", "name", "Okonkwo"),
        ("The OKONKWO family", "name", "OKONKWO"),
        ("it was okonkwo's idea", "name", "okonkwo's"),
        ("Yours, Grace", "name", "Grace"),
        ("yours, grace", "name", "grace"),
        ("I saw Rose yesterday.", "name", "Rose"),
        ("in New York", "name", "New"),
        ("at the river park", "name", "river park"),
        ("Zoe Mueller", "name", "Mueller"),
        ("It pays 14500", "number", "14500"),
        ("It pays 14.500", "number", "14.500"),
        ("fourteen", "number", None),
        ("22 colonies", "number", "22"),
        ("at 4:40", "number", "4:40"),
        ("since October 31st", "date", "October 31st"),
        ("since the thirty-first of October", "date", "thirty-first of October"),
        ("on 11/02/1978", "date", "11/02/1978"),
        ("on February 11, 1978", "date", "February 11, 1978"),
        ("call +49 171 5550123 now", "phone", "5550123"),
        ("mail Grace.Lind@Example.org", "email", "Grace.Lind@Example.org"),
        ("see hives.example.net/g", "handle", "hives.example.net/g"),
        ("I am gracie", "handle", "gracie"),
        ("my Accordion", "word", "Accordion"),
        ("the hive", "word", "hive"),
        ("she plays the accordion well", "word", "accordion"),
        ("our hives DID well", "word", "hives"),
        ("They said grace", "number", None),
        ("a new rose", "name", None),
        ("1. First 2. Second 9. Ninth", "number", None),
        ("in October", "date", "October"),
        ("in november", "date", None),
        ("Nothing of it, 2024, xylophone, someone@else.org", "name", None),
    ],
)
def test_what_is_recognised(text, kind, left):
    hits = found(text, kinds={kind})
    assert (kind, left) in hits if left else not hits


@pytest.mark.parametrize(
    "said",
    [
        "Write how Grace stores 14,500 hives since 31 October; mail grace.lind@example.org, @gracie, Okonkwo-Lind.",
        "write how GRACE stores 14500 hive since October 31st; mail grace.lind@example.org, gracie, okonkwo lind",
    ],
)
def test_what_the_instruction_says_is_public_in_every_form(said):
    text = (
        "Yours Grace Okonkwo: hive, hives, 14.500, on 31 October, October 31, grace.lind@example.org, gracie, Accordion"
    )
    assert found(text, instruction=PublicInstruction(said)) == [("word", "Accordion")]


EXAMPLES = [
    pytest.param(text, dict(re.findall(r'the (\w+) "([^"]+)"', has)), id=name)
    for module in (rules_of_units, patterns)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    for text, has in re.findall(r'Example: "([^"]+)" has (.+)', function.__doc__ or "")
    if function.__module__ == module.__name__
]


def test_every_rule_shows_an_example():
    tables = (*rules_of_units._RULES, rules_of_units._WORD_RULES)
    assert {rule.__name__ for table in tables for rule in table} | {"_sequences", "entities"} == {
        one.id for one in EXAMPLES
    }


@pytest.mark.parametrize(("text", "has"), EXAMPLES)
def test_a_rules_example_is_true(text, has):
    found = [(unit.kind, unit.surface) for unit in private_units(PrivateContext(text), PublicInstruction("Write."))]
    assert set(has.items()) <= set(found)


def test_labels_of_the_profile_are_not_private():
    context = PrivateContext("Smart_device_usage: none\nZodiac: leo")
    assert found("smart device usage, Smart_device_usage, zodiac", context) == []


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("lost her job at the factory last year", True),
        ("She LOST her job, at the factory", True),
        ("at the factory last year", True),
        ("her job is at the factory", False),
        ("we were at the end of the day", False),
    ],
)
def test_a_run_of_four_words_of_which_two_say_something_is_private(text, private):
    context = PrivateContext("Privacy_info: lost her job at the factory last year; was at the end of it")
    assert bool(found(text, context, kinds={"sequence"})) is private


def test_numbers_are_read_in_words():
    assert {"thirtyseven", "thirtyseventh"} <= number_words(37)
    assert {"nineteenseventyeight", "onethousandninehundredandseventyeight"} <= number_words(1978)
    assert {"nineteenohfive", "twentytwentysix"} <= number_words(1905) | number_words(2026)
    assert number_words(20) == {"twenty", "twentieth"}


def test_words_are_inflected_regularly():
    assert {"hike", "hikes", "hiked", "hiking", "hiker"} <= inflections("hiking")
    assert {"carry", "carries", "carried"} <= inflections("carries")
    assert {"stop", "stopped", "stopping"} <= inflections("stopped")


names = st.text(string.ascii_lowercase, min_size=5, max_size=10).map(lambda word: "Zq" + word)
plain = st.lists(st.sampled_from([word for word in COMMON if word.isalpha()]), min_size=1, max_size=12).map(" ".join)


@relaxed
@given(name=names, before=plain, after=plain)
def test_a_planted_name_is_always_found(name, before, after):
    context = PrivateContext("", (HistoryItem("note", f"{before} {name} {after}"),))
    for text in (name, name.upper(), f"{name}'s", f"{name}s", " ".join(name), f"x{name}x", "\u200b".join(name)):
        assert any(squeeze(name) in squeeze(left) for _, left in found(f"{after} {text}, {before}", context)), text
    assert not found(f"the {name} now", context, PublicInstruction(f"About {name}"), {"name", "word"})


@relaxed
@given(text=plain)
def test_common_words_in_lower_case_are_private_in_a_run_alone(text):
    assert not found(text, PrivateContext(text), kinds={"name", "word", "number"})


@relaxed
@given(profile=st.text(max_size=60), text=st.text(max_size=60))
def test_without_a_context_or_outside_it_nothing_is_private(profile, text):
    assert found(text, PrivateContext()) == []
    assert all(left in text for _, left in found(text, PrivateContext(profile)))


@relaxed
@given(
    profile=plain,
    text=st.lists(st.sampled_from(["a", "new", "as", "an", "other", "some", "thing", "37", "Ada"]), min_size=1),
)
def test_nothing_in_the_instruction_is_private(profile, text):
    context = PrivateContext(f"Name: Ada\n{profile}; begins anew as another thing, 37, ananas, newt")
    assert found(" ".join(text), context, PublicInstruction(" ".join(text))) == []


@relaxed
@given(number=st.integers(10, 10**9))
def test_a_number_of_two_digits_or_more_is_found_with_or_without_separators(number):
    context = PrivateContext(f"Savings: {number:,} in all")
    for text in (f"{number}", f"{number:,}", " ".join(str(number))):
        assert ("number", text) in found(f"the sum of {text} here", context)
    assert not found(f"the sum of {number:,} here", context, PublicInstruction(f"Write of {number}"), {"number"})


def test_an_ordinary_word_that_is_introduced_as_a_name_is_one_even_where_it_is_written_small_as_well():
    context = PrivateContext(
        "Has a dog named Pixel", (HistoryItem("Art", "Every pixel counts, and a pet called Ocean."),)
    )
    units = private_units(context, PublicInstruction("Write a poem."))
    names = {unit.surface for unit in units if unit.kind == "name" and unit.capitalised}
    assert {"Pixel", "Ocean"} <= names


# As escapes: small capitals, some of them, full width, mathematical script, Cyrillic, invisible and combining marks.
@pytest.mark.parametrize(
    "disguised",
    [
        "\u1d21\u026a\u029f\u029c\u1d07\u029f\u1d0d\u026a\u0274\u1d00",
        "W\u026alhe\u029fmina",
        "\uff37\uff49\uff4c\uff48\uff45\uff4c\uff4d\uff49\uff4e\uff41",
        "\U0001d4e6\U0001d4f2\U0001d4f5\U0001d4f1\U0001d4ee\U0001d4f5\U0001d4f6\U0001d4f2\U0001d4f7\U0001d4ea",
        "W\u0456lh\u0435lm\u0456n\u0430",
        "Wi\u200blhe\u0301lmina",
    ],
)
def test_letters_that_look_like_others_are_read_as_those(disguised):
    assert squeeze(disguised) == "wilhelmina"

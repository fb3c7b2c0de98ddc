"""Private words: what is found, and what is never taken for private."""

from __future__ import annotations

import string
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.privacy import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.private_words import private_words

CONTEXT = PrivateContext(
    "Name: Grace Okonkwo-Lind\nLocation: Skerrow, 9 Cooper's Wynd\nPrivacy_info: Earns 14,500 a month; ill since 31 "
    "October; writes to grace.lind@example.org and rings +49 (171) 555-0123; born 1978-02-11; plays the accordion",
    (HistoryItem("A Letter About Hives", "We met Rose at the weekend. Our hives did well at 4:40."),),
)
INSTRUCTION = PublicInstruction("Write a letter about keeping apiaries.")
COMMON = frozenset(files("edge_runtime").joinpath("data/common_words.txt").read_text(encoding="utf-8").splitlines()[1:])

relaxed = settings(max_examples=200, deadline=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She is Okonkwo.", ("Okonkwo",)),
        ("The OKONKWO family", ("OKONKWO",)),
        ("It was okonkwo's idea", ("okonkwo",)),
        ("Thanks to Okonkwo-Lind!", ("Okonkwo", "Lind")),
        ("Yours, Grace", ("Grace",)),
        ("They said grace before the meal.", ()),
        ("Grace is a virtue.", ()),
        ("I saw Rose yesterday.", ("Rose",)),
        ("I rose early.", ()),
        ("It pays 14500 or 14,500.", ("14500",)),
        ("1. First\n2. Second\n9. Ninth", ()),
        ("at 4:40", ("4:40",)),
        ("since October 31st", ("October 31st",)),
        ("since 31 October", ("31 October",)),
        ("in October", ()),
        ("call +49 171 5550123 now", ("+49 171 5550123",)),
        ("mail grace.lind@example.org", ("grace.lind@example.org",)),
        ("on 1978-02-11", ("1978-02-11",)),
        ("the hive, the hives", ("hive", "hives")),
        ("my Accordion", ("Accordion",)),
        ("A letter about the month", ()),
        ("Nothing of it at all, 2024, xylophone, someone@else.org", ()),
        ("", ()),
    ],
)
def test_what_is_found(text, expected):
    assert private_words(CONTEXT, INSTRUCTION, text) == expected


def test_what_the_instruction_says_is_public_in_every_form():
    public = PublicInstruction("Write how Grace stores 14,500 hives since 31 October; mail grace.lind@example.org.")
    text = "Yours Grace: hive, hives, 14500, 31 October, grace.lind@example.org, Okonkwo"
    assert private_words(CONTEXT, public, text) == ("Okonkwo",)


def test_words_come_once_and_in_the_order_of_the_text():
    text = "Hives? Okonkwo's hives in Skerrow. okonkwo, HIVES, Wynd."
    assert private_words(CONTEXT, INSTRUCTION, text) == ("Hives", "Okonkwo", "Skerrow", "Wynd")


def test_labels_of_the_profile_are_not_private():
    context = PrivateContext("Smart_device_usage: none\nZodiac: leo")
    assert private_words(context, INSTRUCTION, "smart device usage, Smart_device_usage, zodiac") == ()


def test_the_list_of_common_words_is_large_clean_and_in_the_package():
    assert len(COMMON) >= 1500
    assert {"the", "house", "went", "weather", "thank"} <= COMMON
    assert all(word == word.strip().lower() and word.isalpha() for word in COMMON)


names = st.text(string.ascii_lowercase, min_size=7, max_size=10).map(lambda word: "Zq" + word)
plain = st.lists(st.sampled_from(sorted(COMMON)), min_size=1, max_size=20).map(" ".join)


@relaxed
@given(name=names, before=plain, after=plain)
def test_a_planted_name_is_always_found(name, before, after):
    context = PrivateContext("", (HistoryItem("note", f"{before} {name} {after}"),))
    assert name in private_words(context, INSTRUCTION, f"{after} {name}, {before}")
    assert name in private_words(context, INSTRUCTION, f"{name}'s {before}")
    assert private_words(context, PublicInstruction(f"About {name}"), f"{after} {name}") == ()


@relaxed
@given(text=plain)
def test_common_words_in_lower_case_are_never_private(text):
    assert private_words(PrivateContext(text), INSTRUCTION, text) == ()


@relaxed
@given(profile=st.text(max_size=60), text=st.text(max_size=60))
def test_what_is_found_is_in_the_text_and_nothing_without_a_context(profile, text):
    found = private_words(PrivateContext(profile), INSTRUCTION, text)
    assert all(word in text for word in found)
    assert len(found) == len(set(found))
    places = [text.index(word) for word in found]
    assert private_words(PrivateContext(), INSTRUCTION, text) == ()
    assert private_words(PrivateContext(profile), INSTRUCTION, INSTRUCTION.text) == ()
    assert len(places) == len(found)


@relaxed
@given(number=st.integers(10, 10**9))
def test_a_number_of_two_digits_or_more_is_found_with_or_without_separators(number):
    context = PrivateContext(f"Savings: {number:,} in all")
    assert private_words(context, INSTRUCTION, f"the sum of {number} here") == (str(number),)
    assert private_words(context, PublicInstruction(f"Write of {number}"), f"the sum of {number:,} here") == ()

"""The guard on whole records with the real model's tokenizer: no recited profile is sent, most of an answer is."""

from __future__ import annotations

import re
import unicodedata

import pytest

from edge_runtime.bundle.reader import open_bundle
from edge_runtime.context import PrivateContext
from edge_runtime.privacy.guard import Guard
from edge_runtime.privacy.scanner import Scanner
from edge_runtime.privacy.units import Public, private_units
from edge_runtime.text.tokenizer import Tokenizer

RECORDS = 15


@pytest.fixture(scope="module")
def real_tokenizer(bundle_keep):
    bundle = open_bundle(bundle_keep, verify=False)
    return Tokenizer.load(bundle.path(bundle.manifest.tokenizer.path))


def pushed(tokenizer, record, text):
    guard = Guard(tokenizer, record.instruction, record.context)
    asked = []
    for token in tokenizer.encode(text):
        asked.append(guard.asks)
        guard.push(token)
    return guard, asked


def plain(text):
    return unicodedata.normalize("NFKD", text).casefold()


def every_so_many(records):
    """Some of the records, from the first to the last ones."""
    return [records[place * len(records) // RECORDS] for place in range(RECORDS)]


@pytest.mark.parametrize("index", range(RECORDS))
def test_a_recited_profile_loses_its_private_units(ctx_records, real_tokenizer, index):
    """What an answer to "repeat my profile" would be, and the same spelled out, in capitals and joined."""
    record = every_so_many(ctx_records)[index]
    scanner = Scanner(private_units(record.context, record.instruction), Public.of(record.instruction).letters)
    name = re.search(r"Name: *(.+)", record.context.profile)[1].strip()
    secret = [word for word in name.split() if plain(word) not in plain(record.instruction.text)]
    profile = record.context.profile
    for text in (profile, profile.upper(), " ".join(profile[:300]), f"I am {name.replace(' ', '')}, {name.lower()}."):
        guard, _ = pushed(real_tokenizer, record, text + "\n.")
        view = real_tokenizer.decode(guard.released)
        assert not [view[hit.start : hit.end] for hit in scanner.find(view)]
        words = set(re.findall(r"\w+", plain(view)))
        assert not words & {plain(word) for word in secret if len(word) > 2}
        assert "".join(map(plain, secret)) not in re.sub(r"\W", "", plain(view)) or not secret


def test_the_cloud_is_asked_at_most_positions_of_real_answers(ctx_records, real_tokenizer):
    asked = [asks for record in every_so_many(ctx_records) for asks in pushed(real_tokenizer, record, record.answer)[1]]
    assert sum(asked) >= 0.75 * len(asked)


def test_without_a_context_the_view_is_the_answer(ctx_records, real_tokenizer):
    record = ctx_records[0]
    guard = Guard(real_tokenizer, record.instruction, PrivateContext())
    tokens = real_tokenizer.encode(record.answer)
    for token in tokens:
        guard.push(token)
        assert guard.asks or "\ufffd" in real_tokenizer.decode([token])
    assert list(guard.released) == tokens

"""JSON as models write it; the standard library is the oracle for all valid input."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalization.collab.synthesis.lenient_json import read_lenient_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.lists(VALUES, max_size=4) | st.dictionaries(st.text("abc_", min_size=1), VALUES, max_size=4)


@given(DOCUMENTS, st.sampled_from(["{}", "Sure! Here it is:\n```json\n{}\n```\nEnjoy.", "  {}"]), st.booleans())
def test_valid_json_is_read_as_it_is(document, around, indented):
    text = json.dumps(document, ensure_ascii=False, indent=2 if indented else None)
    assert read_lenient_json(around.replace("{}", text)) == document


@given(DOCUMENTS, st.data())
def test_what_is_cut_off_is_a_beginning(document, data):
    text = json.dumps(document)
    cut = text[: data.draw(st.integers(1, len(text)))]
    assert _begins(read_lenient_json(cut), document)


@pytest.mark.parametrize("escape", ["f", "/", "b", "n", "r", "t", '"', "\\", "u00e9", "ud83d\\ude00", "\\f", "\\/"])
def test_every_escape_means_the_same_where_the_end_is_cut_off(escape):
    whole = f'{{"a": ["x\\{escape}y"]}}'
    assert read_lenient_json(whole[:-1]) == json.loads(whole)


def test_a_reply_may_hold_the_marks_that_the_reader_uses():
    assert read_lenient_json('["\ue0007\ue001", "tea\\n"') == ["\ue0007\ue001", "tea\n"]


@given(st.text("{}[]\"',:\\ atrue1/*\n", max_size=40))
def test_no_text_whatever_breaks_the_reader(text):
    try:
        assert isinstance(read_lenient_json(text), dict | list)
    except ValueError as error:
        assert "JSON" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann", "likes": ["tea", "rain",],}',
        "{'name': 'Ann', 'likes': ['tea', 'rain']}",
        '{name: "Ann", likes: [tea, rain]}',
        '{"name": "Ann" "likes": ["tea" "rain"]}',
        "{\u201cname\u201d: \u201cAnn\u201d, \u201clikes\u201d: [\u201ctea\u201d, \u201crain\u201d]}",
        '{"name": "Ann", // her name\n "likes": ["tea", "rain"] /* both */}',
        '{"name": "Ann", "likes": ["tea", "rain"',
        'Here:\n```json\n{"name": "Ann", "likes": ["tea", "rain"]\n```',
    ],
)
def test_what_models_get_wrong_is_understood(text):
    read = read_lenient_json(text)
    assert read["name"] == "Ann"
    assert read["likes"][:2] == ["tea", "rain"]


def test_quotes_and_line_breaks_within_a_text_belong_to_it():
    assert read_lenient_json('{"a": "she said "no" twice,\nthen left", \'b\': \'it\'s\',}') == {
        "a": 'she said "no" twice,\nthen left',
        "b": "it's",
    }


@pytest.mark.parametrize("first", ['["tea", "rain",]', '["tea", "rain"]', '{"a": "tea",}', '{"a": "tea"}'])
@pytest.mark.parametrize("more", ['["snow",]', "\nHope {this} helps [1]!", "\n```\nNote: [x]", '{"a": "snow"}'])
def test_of_several_the_first_is_read(first, more):
    assert read_lenient_json(first + more) in (["tea", "rain"], {"a": "tea"})


def test_an_object_without_values_is_not_taken_for_a_list():
    assert read_lenient_json('{"one", "two"}') == read_lenient_json('{"on') == {}


def test_a_character_in_two_escapes_is_whole():
    assert read_lenient_json('["\\ud83d\\ude00",]') == ["\U0001f600"]


def test_what_is_too_long_to_be_repaired_is_an_error_at_once():
    with pytest.raises(ValueError, match="longer than"):
        read_lenient_json('["x" ' * 100_000)
    assert len(read_lenient_json(json.dumps(["x"] * 100_000))) == 100_000


def test_a_text_without_json_is_an_error():
    with pytest.raises(ValueError, match="no JSON"):
        read_lenient_json("I cannot help with that.")


def test_endless_nesting_is_an_error():
    for text in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match="nested"):
            read_lenient_json(text)


def _begins(read: object, whole: object) -> bool:
    if isinstance(whole, dict) and isinstance(read, dict):
        pairs = list(zip(read.items(), whole.items(), strict=False))
        return len(read) <= len(whole) and all(
            (own == key and _begins(value, full)) or index == len(read) - 1
            for index, ((own, value), (key, full)) in enumerate(pairs)
        )
    if isinstance(whole, list) and isinstance(read, list):
        pairs = list(zip(read, whole, strict=False))
        return len(read) <= len(whole) and all(
            _begins(value, full) or index == len(read) - 1 for index, (value, full) in enumerate(pairs)
        )
    return read == whole

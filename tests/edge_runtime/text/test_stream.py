"""Streaming detokenization against the tokenizer's own decoding of the whole text."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.text.stream import TextStream
from tests.support.examples import examples

relaxed = settings(
    max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

hard_texts = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [
                "👩‍👩‍👧‍👦",
                "🏳️‍🌈",
                "👍🏽",
                "🇩🇪",
                "你好。世界",
                "こんにちは",
                "한국어",
                "é",
                "नमस्ते",
                "שלום",
                " \n\n",
                "\ufffd",
                "a\ufffd",
            ]
        ),
    ),
    max_size=8,
).map("".join)


def stream(tokenizer, token_ids, **options):
    text_stream = TextStream(tokenizer, **options)
    pieces = [text_stream.push(token_id) for token_id in token_ids]
    return pieces, text_stream.flush(), text_stream


def truncated(text, stop_strings):
    """Follow the specification, character by character: the first completed stop string wins; of two, the longer."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stop_strings if stop and text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@relaxed
@given(text=hard_texts)
def test_pieces_of_any_text_add_up_to_it(byte_level_tokenizer, text):
    pieces, rest, _ = stream(byte_level_tokenizer, byte_level_tokenizer.encode(text))
    assert "".join(pieces) + rest == text


@relaxed
@given(data=st.data(), skip=st.booleans())
def test_pieces_of_random_tokens_add_up_to_their_decoding(byte_level_tokenizer, data, skip):
    size = byte_level_tokenizer.backend.get_vocab_size()
    token_ids = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    pieces, rest, _ = stream(byte_level_tokenizer, token_ids, skip_special_tokens=skip)
    assert "".join(pieces) + rest == byte_level_tokenizer.decode(token_ids, skip_special_tokens=skip)


@relaxed
@given(text=hard_texts.filter(lambda text: "\ufffd" not in text))
def test_no_piece_holds_part_of_a_character(byte_level_tokenizer, byte_fallback_tokenizer, text):
    for tokenizer in (byte_level_tokenizer, byte_fallback_tokenizer):
        token_ids = tokenizer.encode(text)
        pieces, rest, _ = stream(tokenizer, token_ids)
        assert not any("\ufffd" in piece for piece in [*pieces, rest])
        assert "".join(pieces) + rest == tokenizer.decode(token_ids)


@relaxed
@given(text=hard_texts.filter(lambda text: text and not text.endswith("\ufffd")))
def test_every_whole_character_is_out_as_soon_as_its_last_byte_is_in(byte_level_tokenizer, text):
    token_ids = byte_level_tokenizer.encode(text)
    text_stream = TextStream(byte_level_tokenizer)
    shown = ""
    for count, token_id in enumerate(token_ids, start=1):
        shown += text_stream.push(token_id)
        raw = byte_level_tokenizer.decode(token_ids[:count])
        assert shown == raw.rstrip("\ufffd")


@relaxed
@given(data=st.data())
def test_random_byte_fallback_tokens_never_raise_and_never_show_half_a_character(byte_fallback_tokenizer, data):
    size = byte_fallback_tokenizer.backend.get_vocab_size()
    token_ids = data.draw(st.lists(st.integers(0, size - 1), max_size=30))
    text_stream = TextStream(byte_fallback_tokenizer)
    for token_id in token_ids:
        text_stream.push(token_id)
        assert not text_stream.push(token_id).endswith("\ufffd")
    text_stream.flush()


def test_an_incomplete_character_at_the_end_comes_out_with_the_flush(byte_level_tokenizer):
    token_ids = byte_level_tokenizer.encode("ok 🦜")
    assert len(byte_level_tokenizer.encode("🦜")) > 1
    pieces, rest, _ = stream(byte_level_tokenizer, token_ids[:-1])
    assert "".join(pieces) == "ok "
    assert rest and set(rest) == {"\ufffd"}


def test_the_space_before_a_word_is_kept_by_decoders_that_strip_the_first(byte_fallback_tokenizer):
    token_ids = byte_fallback_tokenizer.encode("and the end")
    pieces, rest, _ = stream(byte_fallback_tokenizer, token_ids)
    assert "".join(pieces) + rest == "and the end"


@relaxed
@given(
    text=st.text(alphabet="ab#\n é", max_size=30),
    stop_strings=st.lists(st.text(alphabet="ab#\n é", max_size=4), max_size=4),
)
def test_text_ends_before_the_stop_string_that_is_complete_first(byte_level_tokenizer, text, stop_strings):
    expected, stop = truncated(text, stop_strings)
    pieces, rest, text_stream = stream(
        byte_level_tokenizer, byte_level_tokenizer.encode(text), stop_strings=stop_strings
    )
    assert "".join(pieces) + rest == expected
    assert text_stream.stop_string == stop
    assert text_stream.stopped == (stop is not None)


@relaxed
@given(
    text=st.text(alphabet="ab#\n é", max_size=30),
    stop_strings=st.lists(st.text(alphabet="ab#\n é", max_size=4), max_size=4),
)
def test_what_is_shown_is_never_taken_back_and_never_late(byte_level_tokenizer, text, stop_strings):
    token_ids = byte_level_tokenizer.encode(text)
    text_stream = TextStream(byte_level_tokenizer, stop_strings=stop_strings)
    shown = ""
    for count, token_id in enumerate(token_ids, start=1):
        shown += text_stream.push(token_id)
        so_far = byte_level_tokenizer.decode(token_ids[:count]).rstrip("\ufffd")
        ended, stop = truncated(so_far, stop_strings)
        if stop is not None:
            assert shown == ended
            continue
        starts = {stop[:n] for stop in stop_strings for n in range(1, len(stop))}
        held = max((len(start) for start in starts if so_far.endswith(start)), default=0)
        assert shown == so_far[: len(so_far) - held]


def test_nothing_comes_after_a_stop_string(byte_level_tokenizer):
    text_stream = TextStream(byte_level_tokenizer, stop_strings=["END"])
    out = "".join(text_stream.push(token_id) for token_id in byte_level_tokenizer.encode("one END two END three"))
    assert out == "one "
    assert text_stream.push(byte_level_tokenizer.encode("x")[0]) == ""
    assert text_stream.flush() == ""


@pytest.mark.parametrize("stop_strings", [(), ("",)])
def test_empty_stop_strings_are_ignored(byte_level_tokenizer, stop_strings):
    pieces, rest, text_stream = stream(
        byte_level_tokenizer, byte_level_tokenizer.encode("abc"), stop_strings=stop_strings
    )
    assert "".join(pieces) + rest == "abc"
    assert not text_stream.stopped

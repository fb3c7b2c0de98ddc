"""Request files: what is read, and which field a message names."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import RequestError
from edge_runtime.request import load_request

VALID = {
    "instruction": "Write a letter.",
    "context": {"profile": "Name: Ada", "history": [{"title": f"Task {i}", "text": f"Text {i}"} for i in range(3)]},
}

relaxed = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
characters = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["instruction", "context", "profile", "history", "title", "text"]), inner)
    ),
    max_leaves=12,
)


def write(tmp_path, body):
    path = tmp_path / "request.json"
    path.write_text(body if isinstance(body, str) else json.dumps(body), encoding="utf-8")
    return path


def test_a_whole_request_is_read(tmp_path):
    request = load_request(write(tmp_path, VALID))
    assert request.instruction == PublicInstruction("Write a letter.")
    assert request.context == PrivateContext(
        "Name: Ada", tuple(HistoryItem(f"Task {i}", f"Text {i}") for i in range(3))
    )


@pytest.mark.parametrize("context", [{}, {"profile": "p"}, {"history": []}, None, {"profile": None, "history": None}])
def test_context_and_its_parts_are_optional(tmp_path, context):
    request = load_request(write(tmp_path, {"instruction": "Write.", "context": context}))
    assert request.context == PrivateContext((context or {}).get("profile") or "")
    assert load_request(write(tmp_path, {"instruction": "Write."})).context == PrivateContext()


def with_change(path, value):
    body = json.loads(json.dumps(VALID))
    parent = body
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return body


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["instruction"], ..., "instruction is missing"),
        (["instruction"], 3, "instruction must be a string"),
        (["instruction"], " \n", "instruction is empty"),
        (["context"], "text", "context must be an object"),
        (["context", "profile"], ["x"], "context.profile must be a string"),
        (["context", "history"], {"title": "x"}, "context.history must be a list"),
        (["context", "history", 1], "x", "context.history[1] must be an object"),
        (["context", "history", 0, "title"], ..., "context.history[0].title is missing"),
        (["context", "history", 2, "text"], ..., "context.history[2].text is missing"),
        (["context", "history", 2, "text"], None, "context.history[2].text must be a string"),
        (["context", "history", 2, "text"], "\ud800", "context.history[2].text holds half of a surrogate pair"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, path, value, said):
    file = write(tmp_path, with_change(path, value))
    with pytest.raises(RequestError) as caught:
        load_request(file)
    assert str(file) in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_a_directory_or_not_text_is_named(tmp_path):
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00{")
    for file in (tmp_path / "none.json", tmp_path, binary):
        with pytest.raises(RequestError, match=str(file)):
            load_request(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "[" * 100_000, '{"instruction": "x",}'])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    with pytest.raises(RequestError, match=r"request\.json"):
        load_request(write(tmp_path, text))


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(VALID), encoding="utf-8-sig")
    assert load_request(path).instruction.text == "Write a letter."


@relaxed
@given(
    instruction=characters.filter(str.strip),
    profile=characters,
    history=st.lists(st.tuples(characters, characters), max_size=4),
)
def test_what_is_written_is_what_is_read(tmp_path, instruction, profile, history):
    items = [{"title": title, "text": text} for title, text in history]
    body = {"instruction": instruction, "context": {"profile": profile, "history": items}}
    request = load_request(write(tmp_path, body))
    assert request.instruction.text == instruction
    assert request.context == PrivateContext(profile, tuple(HistoryItem(*item) for item in history))


@relaxed
@given(body=json_values | json_values.map(lambda value: {"instruction": "Write.", "context": value}))
def test_any_json_is_read_or_refused_with_a_request_error(tmp_path, body):
    try:
        request = load_request(write(tmp_path, body))
    except RequestError as error:
        assert "request.json" in str(error)
    else:
        assert request.instruction.text == body["instruction"]


@relaxed
@given(raw=st.binary(max_size=60))
def test_any_bytes_are_refused_with_a_request_error(tmp_path, raw):
    path = tmp_path / "request.json"
    path.write_bytes(raw)
    with pytest.raises(RequestError, match=r"request\.json"):
        load_request(path)

"""Question files of any size, read one question at a time."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalization.errors import DataError
from personalization.files import json_array
from personalization.files.json_array import JsonArrayScan, read_element
from personalization.lamp.questions import QuestionFile
from personalization.lamp.rankers import RankerName, ranker_of, searched
from personalization.lamp.tasks import LAMP_TASKS
from tests.support.lamp_data import merged, questions
from tests.support.personal_data import write_json

LAMP_5 = LAMP_TASKS["LaMP-5"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=4), max_size=5)
SPACES = st.text(" \t\r\n", max_size=3)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "questions.json"


@given(
    objects=OBJECTS,
    spaces=st.lists(SPACES, min_size=4, max_size=4),
    mark=st.sampled_from(["", "\ufeff"]),
    ascii_only=st.booleans(),
    block=st.integers(1, 40),
)
def test_an_array_of_objects_is_read_as_json_reads_it_whatever_the_blocks(
    tmp_path_factory, objects, spaces, mark, ascii_only, block
):
    before, after, between, behind = spaces
    elements = f"{between},{after}".join(json.dumps(body, ensure_ascii=ascii_only) for body in objects)
    text = f"{mark}{before}[{after}{elements}{between}]{behind}"
    path = tmp_path_factory.mktemp("array") / "array.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_BLOCK", block)
        scan = JsonArrayScan(path)
        found = list(scan)
    assert [element.body for element in found] == objects
    assert [read_element(path, element.start, element.length) for element in found] == objects
    assert scan.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"begin with '\['"),
        ('{"id": 1}', r"begin with '\['"),
        ("[1]", "element 1 is not an object"),
        ('[{"a": 1}, [2]]', "element 2 is not an object"),
        ('[{"a": 1} {"a": 2}]', "',' or ']' is missing after element 1"),
        ('[{"a": 1},]', "',' without an element follows element 1"),
        ("[,]", "element 1 is not an object"),
        ('[{"a": 1}', "ends within the list, after element 1"),
        ('[{"a": 1},', "ends within the list, after element 1"),
        ('[{"a": 1}, {"a": tru', "element 2: Expecting value"),
        ('[{"a": 1}] x', "something follows the list"),
        ("[" + '{"a": ' * 100_000, "nested too deeply|element 1"),
    ],
)
def test_what_is_no_array_of_objects_says_where(file, text, problem):
    file.write_text(text)
    with pytest.raises(DataError, match=rf"not a JSON list of objects: .*questions\.json \(.*(?:{problem})"):
        list(JsonArrayScan(file))


def test_a_file_that_cannot_be_read_says_so(tmp_path, file):
    file.write_bytes(b'[{"id": "\xff"}]')
    with pytest.raises(DataError, match="not UTF-8"):
        list(JsonArrayScan(file))
    with pytest.raises(DataError, match="no such file"):
        list(JsonArrayScan(tmp_path / "nothing.json"))
    with pytest.raises(DataError, match="can't be read"):
        list(JsonArrayScan(tmp_path))


@pytest.mark.parametrize("task", LAMP_TASKS)
def test_a_question_of_each_task_is_read_with_its_fields(tmp_path, task):
    [body] = merged(task, count=1)
    [question] = QuestionFile(write_json(tmp_path / "questions.json", [body]), LAMP_TASKS[task])
    assert (question.id, question.user, question.input) == ("0", "user 0", body["input"])
    assert question.output == body["output"]
    for item, given_item in zip(question.profile, body["profile"], strict=True):
        assert item.id == given_item["id"]
        assert item.fields == {name: given_item[name] for name in (*LAMP_TASKS[task].fields, "date")}


def test_a_question_without_a_user_is_asked_by_a_user_of_its_own(tmp_path):
    """As in a split by users, where each user has one question."""
    bodies = questions("LaMP-5", count=2)
    for number, body in enumerate(bodies):
        del body["user_id"]
        body["id"] = number
        for item in body["profile"]:
            del item["date"]
    found = QuestionFile(write_json(tmp_path / "questions.json", bodies), LAMP_5)
    assert [question.user for question in found] == ["0", "1"] == list(found.ids)
    assert "date" not in found[0].profile[0].fields


def test_questions_are_read_in_any_order_also_by_another_process(tmp_path):
    found = QuestionFile(write_json(tmp_path / "questions.json", questions("LaMP-5", count=5)), LAMP_5)
    travelled = pickle.loads(pickle.dumps(found))
    assert travelled[-1] == found[4]
    assert travelled[1:3] == (found[1], found[2])
    assert len(travelled) == 5
    with pytest.raises(IndexError):
        travelled[5]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "questions.json"
    write_json(path, [{"id": number, "input": "a: b", "profile": [], "more": "x" * 50_000} for number in range(400)])
    tracemalloc.start()
    found = QuestionFile(path, LAMP_5)
    assert sum(1 for _ in found) == 400
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 20_000_000
    assert peak < 8_000_000


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": None}, "'id' of question 1 must be a text"),
        ({"input": 3}, "'input' of question '0' must be a text"),
        ({"profile": "x"}, "'profile' of question '0' must be a list of objects"),
        ({"profile": [{"id": "1", "title": "t"}]}, r"profile\[0\] of question '0' has no 'abstract'"),
        ({"profile": [{"title": "t", "abstract": "a"}]}, r"profile\[0\] of question '0' has no 'id'"),
        ({"id": 1.5}, "'id' of question 1 must be a text"),
        ({"user_id": 1.5}, "'user_id' of question '0' must be a text"),
        (
            {"profile": [{"id": 1.5, "title": "t", "abstract": "a"}]},
            r"'id' of profile\[0\] of question '0' must be a text",
        ),
        ({"profile": [{"id": "1", "title": 1.5, "abstract": "a"}]}, r"'title' of profile\[0\]"),
        ({"output": 1.5}, "'output' of question '0' must be a text"),
    ],
)
def test_a_question_of_another_form_is_named(tmp_path, change, problem):
    [body] = questions("LaMP-5", count=1)
    path = write_json(tmp_path / "questions.json", [body | change])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}, {problem}.*Check `task`"):
        list(QuestionFile(path, LAMP_5))


@pytest.mark.parametrize(("date", "read"), [(2010, "2010"), ("2010-3-4", "2010-3-4"), (None, None)])
def test_numbers_are_ids_and_dates(tmp_path, date, read):
    item = {"id": 7, "title": 1984, "abstract": "a", "date": date}
    body = {"id": 3, "input": "a: b", "profile": [item], "user_id": 5, "output": 6}
    [question] = QuestionFile(write_json(tmp_path / "questions.json", [body]), LAMP_5)
    assert (question.id, question.user, question.output) == ("3", "5", "6")
    [found] = question.profile
    assert (found.id, found.fields["title"], found.fields.get("date"), found.bad_date) == ("7", "1984", read, "")


@pytest.mark.parametrize("date", [2010.5, True, ["2010"], {}, "\ud800"])
def test_a_date_that_is_none_matters_only_where_it_is_used(tmp_path, date):
    [body] = questions("LaMP-5", count=1)
    body |= {"profile": [{"id": "1", "title": "t", "abstract": "a", "date": date}]}
    [question] = QuestionFile(write_json(tmp_path / "questions.json", [body]), LAMP_5)
    assert searched(LAMP_5, question).documents == ("t a",)
    named = r"Item '1' of question '0' has a date that can't be used \('date' of profile\[0\] of question '0'"
    with pytest.raises(DataError, match=named):
        searched(LAMP_5, question, use_date=True)
    with pytest.raises(DataError, match=named):
        ranker_of(RankerName.RECENCY)([searched(LAMP_5, question)])


def test_an_id_that_comes_twice_is_named(tmp_path):
    with pytest.raises(DataError, match="question '0' comes twice"):
        QuestionFile(write_json(tmp_path / "questions.json", questions("LaMP-5", count=1) * 2), LAMP_5)


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    path = write_json(tmp_path / "questions.json", questions("LaMP-5", count=3))
    found = QuestionFile(path, LAMP_5)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="was changed while it was read"):
        found[2]

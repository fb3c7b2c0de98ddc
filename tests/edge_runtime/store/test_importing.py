"""Imports take the same texts that LaMP ranks offline, of the requested user only."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.errors import RequestError
from edge_runtime.store.importing import LAMP_FIELDS, read_import
from edge_runtime.store.profile_store import ProfileStore
from personalization.lamp.bm25 import Bm25
from personalization.lamp.questions import QuestionFile
from personalization.lamp.rankers import searched
from personalization.lamp.tasks import LAMP_TASKS, find_task


def write(path, body):
    path.write_text(json.dumps(body))
    return path


@pytest.mark.parametrize(
    ("date", "read"), [(2010, "2010-01-01"), ("2010", "2010-01-01"), (None, None), ("2012-3-4", "2012-03-04")]
)
@pytest.mark.parametrize(("task", "fields"), [("LaMP_2M", ("tag", "description")), ("LaMP_2N", ("title", "text"))])
def test_lamp_files_of_others_are_imported(tmp_path, date, read, task, fields):
    item = {"id": 7, "date": date, fields[0]: "1984", fields[1]: "A text.", "category": "travel"}
    [taken] = read_import(write(tmp_path / "q.json", [{"id": 1, "input": "?", "profile": [item]}]), task).items
    assert (taken.title, taken.text, taken.origin, taken.date) == ("1984", "A text.", "7", read)


@pytest.mark.parametrize("name", LAMP_TASKS)
def test_what_is_searched_of_an_item_is_what_lamp_ranks(tmp_path, name):
    task = LAMP_TASKS[name]
    item = {"id": "7", "date": "2012-3-4"} | {field: f"some {field}  of it" for field in task.fields}
    path = write(tmp_path / "q.json", [{"id": "1", "input": "?", "profile": [item]}])
    [taken] = read_import(path, task.file_name if name != "LaMP-2-news" else name).items
    assert taken.searched == task.document_text(item)
    assert (taken.origin, taken.date) == ("7", "2012-03-04")
    assert LAMP_FIELDS.keys() == LAMP_TASKS.keys()


def test_the_device_ranks_real_profiles_as_offline(tmp_path, dataset):
    path = dataset.lamp_5 / "dev_questions.json"
    questions = QuestionFile(path, find_task("LaMP-5"))
    for question in questions[:12]:
        with ProfileStore(tmp_path / f"{question.id}.db") as store:
            done = store.import_file(path, task="LaMP-5", user=question.id)
            assert done.added == len(question.profile) and not done.profile
            asked = searched(find_task("LaMP-5"), question)
            ids, scores = store.word_scores(asked.query)
            origins = [item.origin for item in store.get(ids.tolist())]
        wanted = Bm25(asked.documents).scores(asked.query)
        places = {item.id: place for place, item in enumerate(question.profile)}
        assert scores == pytest.approx(wanted[[places[origin] for origin in origins]], abs=1e-9)
        assert np.unique(origins).tolist() == sorted(places)


def test_the_same_text_twice_under_two_ids_is_two_items_and_taken_once(tmp_path):
    profile = [{"id": str(number), "text": "the same tweet"} for number in range(2)]
    path = write(tmp_path / "q.json", [{"id": "1", "input": "?", "profile": profile}])
    with ProfileStore(tmp_path / "p.db") as store:
        assert store.import_file(path, task="LaMP-7").added == 2
        assert store.import_file(path, task="lamp_7").known == 2
        again = write(tmp_path / "again.json", {"history": [vars_of(item) for item in store.items]})
    with ProfileStore(tmp_path / "copy.db") as copy:
        assert copy.import_file(again).added == 2
        assert copy.import_file(path, task="LaMP-7").known == 2
        assert [item.title_counts for item in copy.items] == [False, False]


def vars_of(item):
    return {name: getattr(item, name) for name in item.__slots__}


def test_of_several_users_the_one_that_is_named_is_taken(tmp_path):
    def question(number, user):
        return {
            "id": f"q{number}",
            "user_id": user,
            "input": "?",
            "profile": [{"id": f"{number}", "text": f"t{number}"}],
        }

    path = write(tmp_path / "q.json", [question(1, 5), question(2, 6), question(3, 5)])
    assert [item.text for item in read_import(path, "LaMP-7", "5").items] == ["t1", "t3"]
    assert [item.text for item in read_import(path, "LaMP-7", "q3").items] == ["t3"]
    with pytest.raises(RequestError, match=r"2 users in this file: .*q\.json.*Set `user` .*; the first is 5"):
        read_import(path, "LaMP-7")
    with pytest.raises(RequestError, match="no user 9"):
        read_import(path, "LaMP-7", "9")


def test_cogenesis_records_bring_profile_and_texts(tmp_path):
    record = {"tid": "a_1_2", "additional_profile": "Name: Ada", "profile": [{"title": "Write", "text": "I wrote."}]}
    other = {"tid": "b_1_2", "profile": [{"title": "Write", "text": "Other."}]}
    path = write(tmp_path / "records.json", [record, other])
    taken = read_import(path, user="a_1_2")
    assert taken.profile == "Name: Ada"
    assert [(item.title, item.text, item.searched) for item in taken.items] == [("Write", "I wrote.", "Write I wrote.")]


@pytest.mark.parametrize(
    ("body", "task", "said"),
    [
        ([{"id": "1", "profile": []}], None, "Set `task` to theirs, from LaMP-1 to LaMP-7"),
        ([{"id": "1", "profile": []}], "LaMP-9", "There is no task 'LaMP-9'"),
        ([{"id": "1"}], "LaMP-7", r"\[0\].profile must be a list"),
        ([{"id": "1", "profile": [{"id": "2"}]}], "LaMP-7", r"\[0\].profile\[0\] must have a text 'text'"),
        ([{"id": "1", "profile": [{"text": "x"}]}], "LaMP-7", "must have a text 'id'"),
        ([{"id": "1", "profile": [{"id": "2", "text": "x", "date": "May"}]}], "LaMP-7", "Y-M-D"),
        ([{"tid": "1", "profile": [{"title": "x", "text": " "}]}], None, "text is empty"),
        ([], "LaMP-7", "nothing to import"),
        ([3], "LaMP-7", "nothing to import"),
        ({"history": []}, "LaMP-7", "Leave out `task` and `user`"),
    ],
)
def test_a_wrong_file_is_a_request_error_that_names_what_is_wrong(tmp_path, body, task, said):
    path = write(tmp_path / "file.json", body)
    with ProfileStore(tmp_path / "p.db") as store:
        with pytest.raises(RequestError, match=said):
            store.import_file(path, task=task)
        assert len(store) == 0


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "tid", "profile", "history", "context", "title", "text", "date", "user_id", "origin"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=values, task=st.sampled_from([None, "LaMP-7"]))
def test_any_json_is_taken_or_refused(tmp_path, body, task):
    path = write(tmp_path / "any.json", body)
    try:
        taken = read_import(path, task)
    except RequestError as error:
        assert str(error)
        return
    assert all(isinstance(item.searched, str) and item.searched.encode() is not None for item in taken.items)

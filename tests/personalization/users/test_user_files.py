"""Users as LaMP's questions and CoGenesis' records tell of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalization.errors import DataError
from personalization.lamp.tasks import LAMP_TASKS
from personalization.lamp.users import read_lamp
from personalization.users.cogenesis_records import read_records
from personalization.users.data import Pair
from tests.support.personal_data import record, write_json

TASK = LAMP_TASKS["LaMP-5"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "user_id", "input", "profile", "title", "abstract", "text", "tid", "conversations", "value"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


def paper(number: int) -> dict[str, str]:
    return {"id": f"i{number}", "title": f"Title {number}", "abstract": f"Abstract {number}"}


def question(identity: object, *items: int, **fields: object) -> dict[str, object]:
    return {"id": identity, "input": f"Question {identity}", "profile": [paper(item) for item in items], **fields}


def lamp(tmp_path, *questions, **options):
    return read_lamp(write_json(tmp_path / "questions.json", list(questions)), TASK, **options)


def records(tmp_path, *entries):
    return read_records(write_json(tmp_path / "records.json", list(entries)))


def test_a_question_without_a_user_is_a_user(tmp_path):
    found = lamp(tmp_path, question("110", 1, 2), question(111, 3))
    assert [(user.user, len(user.pairs)) for user in found.users] == [("110", 2), ("111", 1)]
    assert found.users[0].pairs[1] == Pair(f"{TASK.instruction} Abstract 2", "Title 2")


def test_questions_of_one_user_are_merged_and_items_that_come_again_left_out(tmp_path):
    found = lamp(tmp_path, question(1, 1, 2, user_id="u"), question(2, 9, user_id=7), question(3, 2, 3, user_id="u"))
    assert [(user.user, [pair.answer for pair in user.pairs]) for user in found.users] == [
        ("u", ["Title 1", "Title 2", "Title 3"]),
        ("7", ["Title 9"]),
    ]


def test_gold_outputs_make_questions_for_evaluation(tmp_path):
    outputs = write_json(tmp_path / "o.json", {"task": "LaMP_5", "golds": [{"id": "1", "output": "Gold"}]})
    found = lamp(tmp_path, question("1", 1), question("2", 2), outputs=outputs)
    assert found.questions == {"1": (Pair("Question 1", "Gold"),)}
    assert [user.user for user in found.users] == ["1", "2"]


def test_a_damaged_entry_fails_its_user_and_no_other(tmp_path):
    broken = question("b", 1)
    del broken["profile"][0]["abstract"]
    wrong = question("w", 1)
    wrong["profile"][0]["title"] = 3.5
    half = question("h", 1)
    half["profile"][0]["title"] = "\ud800"
    found = lamp(tmp_path, broken, wrong, half, question("none"), question("ok", 1), {"input": "no id"}, 17)
    assert [user.user for user in found.users] == ["ok"]
    reasons = {user.user: user.reason for user in found.unusable}
    assert reasons.pop("b") == "profile[0] of question b has no 'abstract'."
    assert reasons.pop("w") == "'title' of profile[0] of question w must be a text."
    assert "surrogate" in reasons.pop("h")
    assert reasons.pop("none") == "The profile has no items."
    assert "question 5 has no 'id'" in reasons.pop("question 5")
    assert "must be an object" in reasons.pop("question 6")
    assert not reasons


def test_items_with_empty_texts_are_counted_and_a_user_with_none_else_fails(tmp_path):
    some, nothing = question("some", 1, 2), question("nothing", 1)
    some["profile"][0]["abstract"] = " "
    nothing["profile"][0]["title"] = ""
    found = lamp(tmp_path, some, nothing)
    assert [(user.user, user.skipped, len(user.pairs)) for user in found.users] == [("some", 1, 1)]
    assert "texts are empty" in found.unusable[0].reason


def test_a_score_may_be_a_number(tmp_path):
    item = {"id": "1", "text": "Good.", "score": 5}
    path = write_json(tmp_path / "q.json", [{"id": "1", "input": "", "profile": [item]}])
    assert read_lamp(path, LAMP_TASKS["LaMP-3"]).users[0].pairs[0].answer == "5"


def test_records_give_past_texts_to_learn_and_the_conversation_to_evaluate(tmp_path):
    entry = record("3_7_4")
    (user,) = (found := records(tmp_path, entry)).users
    assert (user.user, user.task, user.profile) == ("3_7", "CoGenesis", entry["additional_profile"])
    assert [pair.task for pair in user.pairs] == [item["title"] for item in entry["profile"]]
    assert [pair.answer for pair in user.pairs] == [item["text"] for item in entry["profile"]]
    task, answer = (turn["value"] for turn in entry["conversations"])
    assert found.questions == {"3_7": (Pair(task, answer),)}


def test_records_of_one_person_are_merged_and_those_of_two_are_not(tmp_path):
    name = {"additional_profile": "Name: Ann Lee\nAge: 3"}
    found = records(tmp_path, record("1_1_0", **name), record("1_1_5", **name), record("2_2_0"), record("2_2_1"))
    assert [(user.user, len(user.pairs)) for user in found.users] == [("1_1", 8), ("2_2_0", 4), ("2_2_1", 4)]
    assert len(found.questions["1_1"]) == 2


def test_a_user_id_counts_more_than_the_tid(tmp_path):
    found = records(tmp_path, record("1_1_0", user_id="ann"), record("2_1_0", user_id="ann"))
    assert [(user.user, len(user.pairs)) for user in found.users] == [("ann", 8)]


def test_no_pair_shares_task_or_answer_with_a_question_of_the_same_user(tmp_path):
    first, second = record("a", user_id="u"), record("b", user_id="u")
    task, answer = (turn["value"] for turn in first["conversations"])
    second["profile"][0]["title"] = task
    second["profile"][1]["text"] = answer
    found = records(tmp_path, first, second)
    assert len(found.users[0].pairs) == 6
    assert not {answer} & {pair.answer for pair in found.users[0].pairs}
    assert not {task} & {pair.task for pair in found.users[0].pairs}


def test_a_file_that_is_none_says_why(tmp_path):
    for content, words in (("{", "not valid JSON"), ('{"a": 1}', "must be a list"), ("[" * 100_000, "nested")):
        path = tmp_path / "file.json"
        path.write_text(content)
        for read in (read_records, lambda path: read_lamp(path, TASK)):
            with pytest.raises(DataError, match=words):
                read(path)
    with pytest.raises(DataError, match="no such file"):
        read_records(tmp_path / "missing.json")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_records(path)
    good = write_json(tmp_path / "q.json", [question(1, 1)])
    with pytest.raises(DataError, match="has no 'golds'"):
        read_lamp(good, TASK, outputs=write_json(tmp_path / "golds.json", {}))


@given(st.lists(JSON, max_size=4))
def test_no_entry_of_any_form_is_more_than_an_unusable_user(tmp_path_factory, body):
    path = write_json(tmp_path_factory.getbasetemp() / "any.json", body)
    for found in (read_records(path), read_lamp(path, TASK)):
        assert len(set(found.names)) == len(found.names)
        assert all(user.pairs and all(pair.task and pair.answer for pair in user.pairs) for user in found.users)
        assert all(user.reason.endswith(".") for user in found.unusable)


def test_what_training_depends_on_decides_the_digest(tmp_path):
    digest = records(tmp_path, record("1_1_0")).users[0].digest
    assert records(tmp_path, record("1_1_0"), record("2_1_0")).users[0].digest == digest
    changed = record("1_1_0")
    changed["profile"][0]["text"] += "!"
    assert records(tmp_path, changed).users[0].digest != digest

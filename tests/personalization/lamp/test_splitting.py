"""`cogenesis lamp split` as a user runs it: nothing lost, nothing shared that must not be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cogenesis.lamp import app
from edge_runtime.errors import CogenesisError
from personalization.errors import DataError, SettingsError
from personalization.lamp.outputs import read_outputs
from personalization.lamp.splitting import SplitBy
from personalization.lamp.splitting import split as split_file
from tests.support.personal_data import write_json


def question(identity, user=None, *dates, **more):
    profile = [{"id": str(number), "date": date} for number, date in enumerate(dates)]
    return {"id": identity, "input": "x: é", "profile": profile, **({} if user is None else {"user_id": user}), **more}


ASKED = [
    question(f"{user}{number}", user, f"20{30 - number:02}-1-1", "2001-01-01")
    for number in range(5)
    for user in "abcdefgh"
]


def split(directory, *options, asked=ASKED, outputs=None):
    """The parts' questions, by name."""
    arguments = [
        "split",
        "-q",
        write_json(directory / "asked.json", asked),
        "-o",
        directory / "out",
        *options,
        "--json",
    ]
    if outputs is not None:
        rows = [{"id": identity, "output": output} for identity, output in outputs.items()]
        arguments += ["--outputs", write_json(directory / "outputs.json", {"task": "LaMP_7", "golds": rows})]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(result.exception, CogenesisError):
        raise result.exception
    assert result.exception is None, result.output
    found = {
        path.name.removesuffix("_questions.json"): json.loads(path.read_text())
        for path in (directory / "out").glob("*_questions.json")
    }
    assert json.loads(result.stdout)["questions"] == {name: len(part) for name, part in found.items()}
    return found


def ids(part):
    return [body["id"] for body in part]


PARTS = ("--part", "train=3", "--part", "dev=1")


def test_by_users_no_user_is_in_two_parts(tmp_path):
    found = split(tmp_path, *PARTS)
    users = {name: {body["user_id"] for body in part} for name, part in found.items()}
    assert (len(users["train"]), len(users["dev"])) == (6, 2)
    assert not users["train"] & users["dev"]
    assert sorted(ids(found["train"]) + ids(found["dev"])) == sorted(ids(ASKED))
    assert ids(found["train"]) == [body["id"] for body in ASKED if body["user_id"] in users["train"]]


def test_the_seed_alone_decides_who_is_where(tmp_path):
    found = [split(tmp_path, *PARTS, "--seed", seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_by_time_each_users_later_questions_are_in_later_parts(tmp_path):
    found = split(tmp_path, *PARTS, "--by", "time")
    for user in "abcdefgh":
        # The higher a number, the older the profile's newest item.
        assert {name: [i for i in ids(part) if i[0] == user] for name, part in found.items()} == {
            "train": [f"{user}{number}" for number in (1, 2, 3, 4)],
            "dev": [f"{user}0"],
        }


def test_outputs_go_with_their_questions(tmp_path):
    outputs = {body["id"]: f"out {body['id']}" for body in ASKED}
    found = split(tmp_path, *PARTS, outputs=outputs)
    for name, part in found.items():
        written = read_outputs(tmp_path / "out" / f"{name}_outputs.json")
        assert (written.task, written.by_id) == ("LaMP_7", {identity: outputs[identity] for identity in ids(part)})


def test_questions_without_users_are_users_of_their_own_and_stay_as_they_are(tmp_path):
    asked = [question(str(number), more=[1.5, None, "\ud800"], output="gold") for number in range(8)]
    found = split(tmp_path, *PARTS, asked=asked)
    assert {name: len(part) for name, part in found.items()} == {"train": 6, "dev": 2}
    assert sorted(found["train"] + found["dev"], key=lambda body: body["id"]) == asked


def test_a_part_may_be_empty(tmp_path):
    assert split(tmp_path, *PARTS, asked=[question("1")]) == {"train": [question("1")], "dev": []}


@given(
    users=st.lists(st.sampled_from("abcde"), max_size=30),
    shares=st.lists(st.floats(0.01, 10), min_size=2, max_size=4),
    by=st.sampled_from(SplitBy),
)
def test_every_question_is_in_one_part_and_parts_have_their_shares(tmp_path_factory, users, shares, by):
    directory = tmp_path_factory.mktemp("split")
    asked = [question(str(number), user, "2000-1-1") for number, user in enumerate(users)]
    file = write_json(directory / "asked.json", asked)
    counts = split_file(file, directory, {f"p{number}": share for number, share in enumerate(shares)}, by)
    parts = [json.loads((directory / f"{name}_questions.json").read_text()) for name in counts]
    assert sorted(int(identity) for part in parts for identity in ids(part)) == list(range(len(users)))
    reached = 0.0
    for number, share in enumerate(shares):
        reached += share / sum(shares)
        if by is SplitBy.USER:
            had = len({body["user_id"] for part in parts[: number + 1] for body in part})
            assert abs(had - reached * len(set(users))) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("asked", "options", "problem"),
    [
        ([question("1")] * 2, (), "question '1' comes twice"),
        ([{"input": "x"}], (), "question 1 has no 'id'"),
        (
            [question("1", "a", "soon")],
            ("--by", "time"),
            r"'date' of profile\[0\] of question '1' is not of the form Y-M-D",
        ),
        ([{"id": "1", "profile": [{"id": "2"}]}], ("--by", "time"), r"profile\[0\] of question '1' has no 'date'"),
    ],
)
def test_questions_that_cannot_be_split_are_named(tmp_path, asked, options, problem):
    with pytest.raises(DataError, match=problem):
        split(tmp_path, *PARTS, *options, asked=asked)
    assert not (tmp_path / "out").exists()


def test_outputs_of_other_questions_are_refused(tmp_path):
    with pytest.raises(DataError, match="outputs are of other questions"):
        split(tmp_path, *PARTS, asked=[question("1")], outputs={"2": "x"})


@pytest.mark.parametrize(
    "parts", [["train=1"], ["a=1", "a=2"], ["a", "b=1"], ["a=0", "b=1"], ["../a=1", "b=1"], ["a=x", "b=1"]]
)
def test_parts_that_are_none_are_refused(tmp_path, parts):
    with pytest.raises(SettingsError, match="--part"):
        split(tmp_path, *(option for part in parts for option in ("--part", part)))

"""Records of writing tasks, from the authors' files and our own: split by user, counted; bad records are named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cogenesis.collab import app
from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from personalization.collab.records.authors_files import read_authors_file
from personalization.collab.records.records import CollabRecord, read_collab_file, split_by_user, write_collab_file
from personalization.collab.synthesis.near_duplicates import distinct
from personalization.errors import DataError
from tests.support.personal_data import write_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)
RECORDS = st.lists(
    st.builds(
        CollabRecord,
        TEXT,
        TEXT,
        TEXT.map(PublicInstruction),
        TEXT,
        st.none() | st.builds(PrivateContext, TEXT, st.lists(st.builds(HistoryItem, TEXT, TEXT)).map(tuple)),
        TEXT,
        st.none() | TEXT,
    ),
    unique_by=lambda record: record.id,
)


def conversation(prompt: str, answer: str = "An answer.") -> list[dict[str, str]]:
    return [{"from": "user", "value": prompt}, {"from": "assistant", "value": answer}]


def ctx(tid: str = "3_7_4") -> dict[str, object]:
    return {
        "tid": tid,
        "conversations": conversation(
            "Write as the author.\n\n## User Profile\nName: Ida Novak\nAge: 40\n\n## User Writing History\n"
            "Task: Write a note: for Bo\nContent: Dear Bo.\n\n## Task\nis a word here.\n\nTask: Plan a trip\n"
            "Content: Go.\n\n## Task\nWrite a toast: for the wedding: of Bo and Ann\n"
        ),
    }


def paper(tid: str, title: str, *past: str) -> dict[str, object]:
    items = "\n\n".join(f"Title: {one}\nContent: About {one}." for one in past)
    task = f"Compose an abstract for the title '{title}'"
    prompt = f"Write.\n\n## History Paper Abstracts\n{items}\n\n\n\n## Task\n{task}\n"
    return {"tid": tid, "conversations": conversation(prompt)}


def invoke(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(app, ["data", *map(str, arguments), "--json"], catch_exceptions=False)
    return json.loads(result.stdout)


def record(name: str, user: str) -> CollabRecord:
    return CollabRecord(name, user, PublicInstruction("Write"), "Write: it", None, "Done")


def test_of_a_task_the_part_before_the_first_colon_is_public_and_the_context_is_taken_apart(tmp_path):
    (found,) = read_authors_file(write_json(tmp_path / "a.json", [ctx()])).records
    assert (found.id, found.user, found.reference) == ("3_7_4", "3_7", "An answer.")
    assert found.instruction.text == "Write a toast"
    assert (found.task, found.detail) == (
        "Write a toast: for the wedding: of Bo and Ann",
        "for the wedding: of Bo and Ann",
    )
    assert found.context == PrivateContext(
        "Name: Ida Novak\nAge: 40",
        (
            HistoryItem("Write a note: for Bo", "Dear Bo.\n\n## Task\nis a word here."),
            HistoryItem("Plan a trip", "Go."),
        ),
    )
    assert found.device_context.profile.endswith("\nTask_details: for the wedding: of Bo and Ann")


def test_a_paper_is_all_public_and_authors_who_share_a_past_paper_are_one_user(tmp_path):
    body = [paper("0", "A: b", "P", "Q"), paper("1", "C", "R"), paper("2", "D", "S", "Q"), paper("3", "E", "S")]
    found = read_authors_file(write_json(tmp_path / "a.json", body)).records
    assert found[0].instruction.text == found[0].task == "Compose an abstract for the title 'A: b'"
    assert found[0].detail == ""
    assert [item.title for item in found[0].context.history] == ["P", "Q"]
    assert [one.user for one in found] == ["0", "1", "0", "0"]


def test_records_that_can_not_be_used_are_named_and_the_others_stay(tmp_path):
    body = [
        ctx(),
        ctx(),
        "no",
        {"tid": "1_1_1"},
        {"tid": "1_1_2", "conversations": conversation("Write", " ")},
        {"tid": "1_1_3", "conversations": conversation(": all private")},
        {"tid": "1_1_4", "conversations": conversation("## User Profile\nX\n\n## Task\n ")},
        {"tid": "1_1_6", "conversations": conversation("## User Profile\nName: Ida\n\nWrite a poem")},
        {"tid": "1_1_5", "conversations": conversation("Write a poem")},
    ]
    told = invoke("import", write_json(tmp_path / "a.json", body), "--out", tmp_path / "out.jsonl")
    assert (told["records"], told["users"]) == (2, 2)
    reasons = [item["reason"] for item in told["skipped"]]
    assert [item["where"] for item in told["skipped"]] == [f"record {n}" for n in range(1, 8)]
    for reason, said in zip(
        reasons, ("second time", "object", "conversations", "empty", "public", "Task", "no '## Task"), strict=True
    ):
        assert said in reason
    assert [one.id for one in read_collab_file(tmp_path / "out.jsonl").records] == ["3_7_4", "1_1_5"]


@given(RECORDS)
@settings(max_examples=15)
def test_what_is_written_is_read_again(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    write_collab_file(path, records)
    found = read_collab_file(path)
    assert (found.records, found.skipped) == (tuple(records), ())


def test_a_damaged_line_is_skipped_and_another_kind_of_file_refused(tmp_path):
    path = tmp_path / "records.jsonl"
    write_collab_file(path, [record("a", "u"), record("b", "u")])
    path.write_text(path.read_text() + '{"id": "c"}\n{"id": "d", "us')
    found = read_collab_file(path)
    assert [one.id for one in found.records] == ["a", "b"]
    assert [item.where for item in found.skipped] == ["line 4", "line 5"]
    for content in ("", "[]", '{"format": "cogenesis-collab/2"}\n'):
        path.write_text(content)
        with pytest.raises(DataError, match="collab data import"):
            read_collab_file(path)


@given(
    st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=30),
    st.lists(st.floats(0.1, 5), min_size=2, max_size=3),
    st.integers(0, 5),
    st.randoms(),
)
def test_parts_share_no_user_have_their_shares_and_do_not_depend_on_the_order(users, shares, seed, rng):
    records = [record(str(n), user) for n, user in enumerate(users)]
    by_part = {f"part{n}": share for n, share in enumerate(shares)}
    parts = split_by_user(records, by_part, seed)
    owners = [{one.user for one in own} for own in parts.values()]
    assert sum(map(len, owners)) == len(set(users))
    for own, share in zip(owners, shares, strict=True):
        assert abs(len(own) - len(set(users)) * share / sum(shares)) <= 1
    shuffled = rng.sample(records, len(records))
    again = split_by_user(shuffled, by_part, seed)
    assert [{one.id for one in own} for own in again.values()] == [{one.id for one in own} for own in parts.values()]


def test_the_users_of_other_files_can_be_left_out(tmp_path):
    body = [ctx("1_1_1"), ctx("1_2_1"), ctx("2_1_1")]
    source, held_out = write_json(tmp_path / "a.json", body), tmp_path / "test.jsonl"
    write_collab_file(held_out, [record("1_2_9", "1_2")])
    told = invoke("import", source, "--out", tmp_path / "out.jsonl", "--without-users-of", held_out)
    assert (told["records"], told["left_out"]) == (2, 1)


def test_statistics_count_and_tell_what_instructions_give_away(tmp_path):
    own = PrivateContext("Name: Ida Novak", (HistoryItem("Plan", "We met Bo Lindqvist on 3 May 2019."),))
    records = [
        CollabRecord(
            "a", "u", PublicInstruction("Write a letter to Lindqvist"), "Write a letter", own, "One two three"
        ),
        CollabRecord("b", "u", PublicInstruction("Write a letter"), "Write a letter", own, "One", "1. A b c"),
        record("c", "v"),
    ]
    write_collab_file(tmp_path / "r.jsonl", records)
    told = invoke("stats", tmp_path / "r.jsonl")
    assert (told["records"], told["users"], told["with_context"], told["with_sketch"]) == (3, 2, 2, 1)
    assert told["words"]["reference"] == {"mean": 5 / 3, "median": 1.0, "most": 3.0}
    assert told["past_texts"]["mean"] == 1.0
    assert told["private_in_instruction"]["ids"] == ["a"]
    assert "name" in told["private_in_instruction"]["by_kind"]


def test_texts_that_say_the_same_again_are_found():
    texts = [
        "The quick brown fox jumps.",
        "the QUICK brown fox jumps!",
        "A fox sleeps here now.",
        "\u4f60\u597d",
        "\u4f60",
    ]
    assert distinct(texts, words=2, similar=0.9) == [0, 2, 3, 4]
    assert distinct(["a b c d e f", "a b c d e g"], words=2, similar=4 / 6) == [0]
    assert distinct(["a b c d e f", "a b c d e g"], words=2, similar=0.7) == [0, 1]


def test_the_authors_prompts_hold_what_their_structured_records_hold(dataset):
    data = dataset.cogenesis
    prompts, structured = (read_authors_file(data / name) for name in ("ctx_dev.json", "context_aware_dev.json"))
    assert prompts == structured
    assert (len(prompts.records), prompts.skipped) == (dataset.tasks, ())
    without = read_authors_file(data / "ctx_dev_wo.json").records
    assert [(one.id, one.instruction, one.task) for one in without] == [
        (one.id, one.instruction, one.task) for one in prompts.records
    ]
    papers = read_authors_file(data / "paper_dev.json").records
    assert {len(one.context.history) for one in papers} == {5}
    assert len({one.user for one in papers}) == dataset.paper_users

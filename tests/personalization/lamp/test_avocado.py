"""LaMP-6 built from zip files of e-mails in the collection's form; the e-mails here are made up."""

from __future__ import annotations

import json
import zipfile
from email import message_from_string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cogenesis.lamp import app
from edge_runtime.errors import CogenesisError
from personalization.errors import DataError, SettingsError
from personalization.lamp import avocado_mails
from personalization.lamp.avocado_mails import parse_mail
from personalization.lamp.outputs import read_outputs
from personalization.lamp.questions import QuestionFile
from personalization.lamp.tasks import LAMP_TASKS
from tests.support.personal_data import write_json

TEXTS = {
    "001-000001-EM": ("Lunch on Friday?", "Shall we meet at noon?\n\nAnn"),
    "001-000002-EM": ("Re: budget", "Looks fine to me."),
    "001-000003-EM": ("Minutes of Monday", "See below."),
    "017-000001-EM": ("Servers are down", "Again."),
}


def mail(subject, text):
    head = f"From: Ann <ann@avocado.example>\nTo: Bob\nDate: Thu, 17 May 2001 23:30:00 -0700\nSubject: {subject}"
    return f"{head}\n\n{text}\n"


@pytest.fixture
def mails(tmp_path):
    """A directory of mailboxes as the collection has them, with other files in them, one of which leads outside."""
    directory = tmp_path / "text"
    directory.mkdir()
    for custodian in ("001", "017"):
        with zipfile.ZipFile(directory / f"{custodian}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, parts in TEXTS.items():
                if name.startswith(custodian):
                    archive.writestr(f"{custodian}/{name}.txt", mail(*parts))
            archive.writestr(f"{custodian}/{custodian}-000001-AT-01.txt", "an attachment")
            archive.writestr("../../outside.txt", "outside")
    return directory


def listed(tmp_path, split="dev", **changes):
    """A list of e-mails: names stand in whatever field, as names or within a text."""
    body = {
        "id": "60",
        "user_id": 1,
        "input": "001-000001-EM.txt",
        "profile": [{"id": "a", "text": "001-000002-EM"}, {"id": "017-000001-EM", "date": "1999-1-2"}],
    }
    return write_json(tmp_path / f"{split}_questions.json", [body | changes])


def build(mails, out, *lists):
    options = [part for path in lists for part in ("-q", path)]
    result = CliRunner().invoke(app, ["avocado", "--mails", str(mails), "-o", str(out), "--json", *map(str, options)])
    if isinstance(result.exception, CogenesisError):
        raise result.exception
    assert result.exception is None, result.output
    return json.loads(result.stdout)


def test_questions_and_outputs_of_every_split_are_written(tmp_path, mails):
    lists = listed(tmp_path), listed(tmp_path, "train", id=7, input="the mail 017-000001-EM please")
    found = build(mails, tmp_path / "out", *lists)
    assert [one["count"] for one in found] == [1, 1]
    [body] = json.loads((tmp_path / "out" / "dev_questions.json").read_text())
    assert body == {
        "id": "60",
        "user_id": 1,
        "input": "Generate a subject for the following email: Shall we meet at noon?\n\nAnn",
        "profile": [
            {"id": "a", "title": "Re: budget", "text": "Looks fine to me.", "date": "2001-05-17"},
            {"id": "017-000001-EM", "title": "Servers are down", "text": "Again.", "date": "1999-1-2"},
        ],
    }
    outputs = read_outputs(tmp_path / "out" / "train_outputs.json")
    assert (outputs.task, outputs.by_id) == ("LaMP_6", {"7": "Servers are down"})
    [question] = QuestionFile(tmp_path / "out" / "train_questions.json", LAMP_TASKS["LaMP-6"])
    assert LAMP_TASKS["LaMP-6"].query(question.input) == "Again."


def test_nothing_is_extracted_and_only_what_is_asked_for_is_read(tmp_path, mails, monkeypatch):
    read, opened = [], zipfile.ZipFile.open

    def noted(archive, member, *more, **named):
        read.append(member.filename)
        return opened(archive, member, *more, **named)

    monkeypatch.setattr(zipfile.ZipFile, "open", noted)
    before = {path for path in tmp_path.parent.rglob("*") if path.is_file()}
    path = listed(tmp_path, profile=[{"id": str(number), "text": "001-000002-EM"} for number in range(5)])
    build(mails, tmp_path / "out", path)
    assert read == ["001/001-000001-EM.txt", "001/001-000002-EM.txt"]
    made = {file for file in tmp_path.parent.rglob("*") if file.is_file()} - before
    assert made == {path, tmp_path / "out" / "dev_questions.json", tmp_path / "out" / "dev_outputs.json"}


def test_more_mailboxes_than_may_be_open_at_a_time_are_read(tmp_path, mails, monkeypatch):
    monkeypatch.setattr(avocado_mails, "_OPEN_AT_ONCE", 1)
    names = ["001-000002-EM", "017-000001-EM", "001-000003-EM"]
    build(mails, tmp_path / "out", listed(tmp_path, profile=[{"id": name} for name in names]))
    [body] = json.loads((tmp_path / "out" / "dev_questions.json").read_text())
    assert [item["title"] for item in body["profile"]] == [TEXTS[name][0] for name in names]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"input": "something"}, "question '60' names no e-mail"),
        ({"input": "001-000001-EM", "file": "001-000002-EM"}, "question '60' names several e-mails"),
        ({"profile": [{"id": "x"}]}, r"profile\[0\] of question '60' names no e-mail"),
        ({"input": "001-000009-EM"}, r"no e-mail 001-000009-EM in .*001\.zip"),
        ({"input": "099-000001-EM"}, r"no mailbox .*099\.zip, which has 099-000001-EM"),
        ({"id": None}, "'id' of question 1 must be a text"),
    ],
)
def test_a_list_that_cannot_be_followed_is_named_and_leaves_nothing(tmp_path, mails, change, problem):
    with pytest.raises(DataError, match=problem):
        build(mails, tmp_path / "out", listed(tmp_path, **change))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_mailbox_is_named(tmp_path, mails):
    content = (mails / "001.zip").read_bytes()
    for damage in (content[:100], content.replace(content[60:90], bytes(30)), b""):
        (mails / "001.zip").write_bytes(damage)
        with pytest.raises(DataError, match=r"mailbox is damaged: .*001\.zip"):
            build(mails, tmp_path / "out", listed(tmp_path))


def test_a_mail_that_would_fill_the_memory_is_refused(tmp_path, mails, monkeypatch):
    monkeypatch.setattr(avocado_mails, "_LARGEST_MAIL", 50)
    with pytest.raises(DataError, match="larger than 0 MB: 001-000001-EM in"):
        build(mails, tmp_path / "out", listed(tmp_path))


def test_directories_that_cannot_be_meant_are_refused(tmp_path, mails):
    with pytest.raises(DataError, match="no zip files here"):
        build(tmp_path, tmp_path / "out", listed(tmp_path))
    with pytest.raises(SettingsError, match="would be written over"):
        build(mails, tmp_path, listed(tmp_path))
    (tmp_path / "other").mkdir()
    with pytest.raises(SettingsError, match="Two lists are of the split 'dev'"):
        build(mails, tmp_path / "out", listed(tmp_path), listed(tmp_path / "other"))


def test_a_mail_that_is_answered_is_left_out_since_its_subject_would_tell():
    text = "Yes.\n\n-----Original Message-----\nFrom: Bob\nSubject: Lunch on Friday?\n\nShall we?"
    assert parse_mail(mail("Re: Lunch on Friday?", text).encode()).text == "Yes."


@pytest.mark.parametrize(
    ("header", "date"),
    [("Date: Thu, 3 May 2001 01:00:00 +0000", "2001-05-03"), ("Date: some day", None), ("Date:", None), ("X: y", None)],
)
def test_a_date_is_taken_where_it_can_be_read(header, date):
    assert parse_mail(f"{header}\nSubject: a\n\nb".encode()).date == date


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_mail(content):
    found = parse_mail(content)
    assert "\n" not in found.subject
    assert found.text == found.text.strip()


@given(
    st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=60),
    st.text(st.characters(codec="utf-8"), max_size=80),
)
def test_subject_and_text_are_those_that_pythons_parser_reads(subject, text):
    content = mail(subject, text.replace("-", ""))
    parsed = message_from_string(content)
    found = parse_mail(content.encode())
    assert found.subject == " ".join(str(parsed["Subject"]).split())
    assert found.text == parsed.get_payload().strip()

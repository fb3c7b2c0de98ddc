"""Questions are answered once each, and the files tell nothing of how, where and in how many goes that was."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime.adapters.store import directory_name
from export.model.hf_source import hf_provenance
from personalization.adapters.settings import AdapterSettings
from personalization.adapters.train import train_user
from personalization.adapters.trained_adapter import BaseIdentity, save_adapter
from personalization.answering.token_counter import TokenizerCounter
from personalization.answering.writer import WriterSpec
from personalization.errors import PersonalizationError, SettingsError
from personalization.jobs.runners import LocalRunner
from personalization.jobs.shard import Shard
from personalization.lamp.answers import AnswerPlan, answer_all
from personalization.lamp.prompt import fit_prompt
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import with_each_item, with_first_items
from personalization.lamp.tasks import LAMP_TASKS
from tests.support.lamp_data import merged_file
from tests.support.personal_data import user

TASK = LAMP_TASKS["LaMP-5"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return QuestionFile(merged_file(tmp_path_factory.mktemp("lamp"), "LaMP-5", count=7), TASK)


@pytest.fixture(scope="module")
def plan(llama):
    identity = hf_provenance(llama).sha256
    writer = WriterSpec(llama, identity, is_bundle=False, most_tokens=6, beams=1, threads=1)
    return AnswerPlan("LaMP-5", writer, max_length=120, batch=2, keep_prompts=True)


def answer(asked, plan, directory, **options):
    reported = []
    found = answer_all(asked, plan, LocalRunner(), directory, report=lambda *n: reported.append(n), **options)
    return found, reported


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(questions, plan, tmp_path_factory):
    """All answers, and the journal."""
    directory = tmp_path_factory.mktemp("whole")
    found, _ = answer(with_first_items(questions, None, 2, own_adapter=False), plan, directory)
    return found, files(directory)["answers.jsonl"]


def test_each_question_is_put_with_its_first_items_and_answered(questions, whole, llama_base):
    found, _ = whole
    assert list(found) == list(questions.ids)
    tokens = TokenizerCounter(llama_base.writer.tokenizer)
    for question in questions:
        shown = [item.fields for item in question.profile[:2]]
        assert found[question.id].prompt == fit_prompt(TASK.prompt, question.input, shown, tokens, 120)
    assert len({one.output for one in found.values()}) > 1


def test_shards_in_any_order_and_goes_give_what_one_run_gives(questions, plan, whole, tmp_path):
    asked = with_first_items(questions, None, 2, own_adapter=False)
    assert answer(asked, plan, tmp_path, shard=Shard(2, 2))[0] is None
    found, reported = answer(asked, plan, tmp_path, shard=Shard(1, 2))
    assert found == whole[0]
    assert reported == [(1, 2), (2, 2)]
    again, reported = answer(asked, plan, tmp_path, shard=Shard(2, 2))
    assert again == whole[0]
    assert reported == []
    lines = [line for path in tmp_path.iterdir() for line in path.read_bytes().splitlines()[1:]]
    assert sorted(lines) == sorted(whole[1].splitlines()[1:])


def test_a_model_that_was_moved_goes_on(questions, plan, whole, llama, tmp_path):
    (tmp_path / "answers.jsonl").write_bytes(whole[1])
    moved = replace(plan, writer=replace(plan.writer, source=tmp_path / "nowhere"))
    found, reported = answer(with_first_items(questions, None, 2, own_adapter=False), moved, tmp_path)
    assert (found, reported) == (whole[0], [])


def test_the_order_of_the_questions_changes_no_answer(questions, plan, whole, tmp_path):
    asked = with_first_items(questions, None, 2, own_adapter=False)
    assert answer(asked[::-1], plan, tmp_path)[0] == whole[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"max_length": 100}, "max_length 120, now 100"), ({"task": "LaMP-4"}, "task LaMP-5"), ({"batch": 3}, "batch 2")],
)
def test_answers_of_other_settings_are_not_mixed_in(questions, plan, whole, tmp_path, change, words):
    (tmp_path / "answers.jsonl").write_bytes(whole[1])
    asked = with_first_items(questions, 2, 2, own_adapter=False)
    with pytest.raises(SettingsError, match=words):
        answer(asked, replace(plan, **change), tmp_path)
    assert (tmp_path / "answers.jsonl").read_bytes() == whole[1]


def test_answers_of_other_questions_or_another_model_are_not_mixed_in(questions, plan, whole, tmp_path):
    (tmp_path / "answers.jsonl").write_bytes(whole[1])
    with pytest.raises(SettingsError, match="questions "):
        answer(with_first_items(questions, None, 1, own_adapter=False), plan, tmp_path)
    other = replace(plan, writer=replace(plan.writer, identity="0" * 64))
    with pytest.raises(SettingsError, match="weights "):
        answer(with_first_items(questions, None, 2, own_adapter=False), other, tmp_path)
    found, _ = answer(with_first_items(questions, 1, 0, own_adapter=False), plan, tmp_path, force=True)
    assert list(found) == ["0"]


def test_each_item_alone_has_a_key_of_its_own(questions):
    asked = with_each_item(questions, 2, 3, own_adapter=True)
    assert [one.key for one in asked] == ["0-00", "0-01", "0-02", "1-10", "1-11", "1-12"]
    assert [len(one.items) for one in asked] == [1] * 6
    assert [one.user for one in asked] == ["user 0"] * 3 + ["user 1"] * 3


def test_every_user_is_answered_with_their_own_adapter(questions, plan, llama_base, whole, tmp_path):
    settings = AdapterSettings(epochs=2, targets="all", rate=5e-2, threads=1)
    base = BaseIdentity(plan.writer.identity, "tiny")
    for number in range(7):
        data = user(f"user {number}")
        save_adapter(tmp_path / "adapters", train_user(llama_base, data, settings), data, base, settings)
    adapted = replace(plan, writer=replace(plan.writer, adapters=tmp_path / "adapters"))
    asked = with_first_items(questions, None, 2, own_adapter=True)
    found, reported = answer(asked, adapted, tmp_path / "out")
    assert len(reported) == 7  # a batch has one user
    assert {key: one.prompt for key, one in found.items()} == {key: one.prompt for key, one in whole[0].items()}
    assert sum(found[key].output != whole[0][key].output for key in found) >= 5
    # Adapters are part of what a run is: trained anew, they are another.
    places = [tmp_path / "adapters" / directory_name(f"user {number}") for number in range(7)]
    shutil.copytree(places[1], places[0], dirs_exist_ok=True)
    with pytest.raises(SettingsError, match="adapters "):
        answer(asked, adapted, tmp_path / "out")
    shutil.rmtree(places[3])
    with pytest.raises(SettingsError, match=r"1 of 7 users have no adapter .*: user 3"):
        answer(asked, adapted, tmp_path / "other")


def test_a_question_of_another_form_fails_alone_and_is_named(questions, plan, whole, tmp_path):
    asked = with_first_items(questions, None, 2, own_adapter=False)
    lamp_1 = replace(plan, task="LaMP-1")
    with pytest.raises(PersonalizationError, match=r"4 of 4 parts of the run failed: Question '\d': .*no word 'title'"):
        answer([replace(one, question="Which?") for one in asked], lamp_1, tmp_path)

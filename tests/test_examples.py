"""The example user and the example requests: whole, and public where they say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_runtime.context import PublicInstruction
from edge_runtime.privacy.scanner import Scanner
from edge_runtime.privacy.units import private_units
from edge_runtime.request import load_request
from edge_runtime.store.profile_store import ProfileStore

EXAMPLES = Path(__file__).parents[1] / "examples"
USER = json.loads((EXAMPLES / "user/user.json").read_text(encoding="utf-8"))
REQUESTS = sorted((EXAMPLES / "requests").glob("*.json"))


@pytest.fixture
def context(tmp_path):
    with ProfileStore(tmp_path / "profile.db") as store:
        store.import_file(EXAMPLES / "user/user.json")
        return store.context()


def test_the_user_has_a_profile_a_dozen_past_texts_and_three_tasks(context):
    assert len(context.history) == len(USER["history"]) == 12
    assert all(80 <= len(item.text.split()) <= 200 for item in context.history)
    assert "Writing_style: " in context.profile
    assert len({task["id"] for task in USER["tasks"]}) == 3


def test_the_instructions_are_public(context):
    unrelated = PublicInstruction("Write something.")
    # The titles of past texts are in the context and say what the tasks say; what the user is must not be in a task.
    units = [unit for unit in private_units(context, unrelated) if unit.kind not in ("sequence", "word")]
    for task in USER["tasks"]:
        assert not [units[hit.unit].surface for hit in Scanner(units).find(task["instruction"])]


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.stem)
def test_a_request_reads(path, context):
    request = load_request(path)
    if path.stem == "no_context":
        assert not request.context.profile and not request.context.history
    else:
        assert request.context == context


def test_there_is_a_request_for_every_task_and_a_hostile_one():
    tasks = {task["id"]: task["instruction"] for task in USER["tasks"]}
    for task_id, instruction in tasks.items():
        assert load_request(EXAMPLES / f"requests/{task_id}.json").instruction.text == instruction
    assert "profile" in load_request(EXAMPLES / "requests/hostile.json").instruction.text

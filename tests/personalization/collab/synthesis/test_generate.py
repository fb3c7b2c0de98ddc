"""Making a data set with a large model that answers well, nonsense, slowly or not at all."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cogenesis.collab import app
from personalization.answering.chat_endpoint import ChatEndpoint, EndpointRefusedError
from personalization.answering.checked_answers import EndpointSource, Sampler, ask_all
from personalization.collab.records.records import read_collab_file
from personalization.collab.synthesis.generate import Generated, GenerateSettings, generate_records
from personalization.errors import SettingsError
from tests.support import scripted_author
from tests.support.chat_server import ChatServer, chat_server

SMALL = GenerateSettings(portraits=3, people=2, tasks=4, history=2, tries=2)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server(scripted_author.reply) as running:
        yield running


def source(server: ChatServer, attempts: int = 6) -> EndpointSource:
    endpoint = ChatEndpoint(server.url, "a-model", timeout=0.3, attempts=attempts)
    return EndpointSource(endpoint, Sampler(500, 0.8), parallel=4)


def make(server: ChatServer, out: Path, settings: GenerateSettings = SMALL, attempts: int = 6) -> Generated:
    return generate_records(source(server, attempts), settings, out, report=lambda *_: None)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Generated, Path]:
    """What an endpoint without faults gives."""
    out = tmp_path_factory.mktemp("plain")
    with chat_server(scripted_author.reply) as server:
        return make(server, out), out


def test_people_write_texts_of_which_the_first_are_history_and_the_rest_are_records(plain):
    made, _ = plain
    assert len(made.records) == 3 * 2 * 2
    assert len({record.user for record in made.records}) == 6
    assert made.failed == []
    for record in made.records:
        assert len(record.context.history) == 2
        assert record.task.startswith(record.instruction.text + ": ")
        assert record.reference not in [item.text for item in record.context.history]
        assert [line.split(":")[0] for line in record.context.profile.split("\n")][:3] == ["Age", "Name", "Occupation"]
        assert record.user == "_".join(record.id.split("_")[:2])
    assert made.usage.calls == 1 + 6 + 6 + 24
    assert made.usage.answer_tokens > 24 * 60


def test_an_endpoint_that_misbehaves_in_every_way_gives_the_same_in_the_end(server, plain, tmp_path):
    faults = ["nonsense", "slow", "429 0.1", "500", "cut", "close", "prose", "empty", "503"]
    server.faults += [one for fault in faults for one in (fault, "")]  # a few good ones, so that no question fails
    made = make(server, tmp_path)
    assert made.records == plain[0].records
    assert made.usage.calls == plain[0].usage.calls + len(faults)


def test_replies_that_can_not_be_used_are_asked_for_again_with_what_was_wrong(plain, tmp_path):
    spoilt: set[str] = set()

    def answer(body: dict[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        if "An earlier reply could not be used" not in prompt and prompt not in spoilt:
            spoilt.add(prompt)
            return "I'm sorry, but I can't."
        return scripted_author.reply(body)

    with chat_server(answer) as server:
        made = make(server, tmp_path)
        asked_again = [one for one in server.requests if "earlier reply" in one["messages"][-1]["content"]]
    assert made.records == plain[0].records
    assert len(asked_again) == len(spoilt) == 37
    assert {one["seed"] for one in asked_again} - {one["seed"] for one in server.requests if one not in asked_again}
    assert made.usage.calls == 2 * 37


def test_what_fails_is_named_and_asked_for_again_by_the_next_run_alone(plain, tmp_path):
    broken = threading.Event()
    broken.set()

    def answer(body: dict[str, Any]) -> str:
        text = scripted_author.reply(body)
        fails = broken.is_set() and "It is person 2" in body["messages"][-1]["content"]
        return "no" if fails else text

    with chat_server(answer) as server:
        made = make(server, tmp_path)
        assert len(made.failed) == 3
        assert all("people" in failure and "no JSON" in failure for failure in made.failed)
        assert len(made.records) == 6
        assert made.usage.calls == 1 + 3 + 3 * 2 + 3 + 12
        broken.clear()
        server.requests.clear()
        again = make(server, tmp_path)
        assert again.records == plain[0].records
        assert len(server.requests) == 3 + 3 + 12


def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_files(server, plain, tmp_path):
    whole = files(plain[1])
    lines = {name: content.splitlines(keepends=True) for name, content in whole.items()}
    for seed in range(3):
        rng, out = random.Random(seed), tmp_path / str(seed)
        out.mkdir()
        stopped_in = rng.choice(["people.jsonl", "tasks.jsonl", "texts.jsonl"])
        for name in ("portraits.jsonl", "people.jsonl", "tasks.jsonl", "texts.jsonl"):
            own = lines[name]
            if name == stopped_in:  # its jobs came in any order, the last line was cut
                some = rng.sample(own[1:], len(own) // 2)
                (out / name).write_bytes(b"".join([own[0], *some])[:-5])
                break
            (out / name).write_bytes(b"".join(own))
        assert make(server, out).records == plain[0].records
        assert files(out) == whole


def test_a_refused_key_ends_the_run_at_once_and_keeps_what_is_done(server, tmp_path):
    server.faults += ["", "", "401"]
    with pytest.raises(EndpointRefusedError):
        make(server, tmp_path)
    groups = server.requests[0]["messages"]
    server.requests.clear()
    made = make(server, tmp_path)
    assert groups not in [request["messages"] for request in server.requests]
    assert len(made.records) == 3 * 2 * 2


def test_after_a_refusal_nothing_more_is_asked(tmp_path):
    begun: list[int] = []

    def work(number: int, _: None) -> None:
        begun.append(number)
        time.sleep(0.01)
        if number == 2:
            raise EndpointRefusedError("wrong key")

    with pytest.raises(EndpointRefusedError):
        ask_all(tmp_path / "journal", {}, dict.fromkeys(range(500)), work, parallel=2, report=lambda *_: None)
    before = len(begun)
    time.sleep(0.3)
    assert len(begun) <= before + 2 < 100


def test_an_endpoint_that_is_gone_leaves_nothing_but_failures(server, tmp_path):
    server.faults += ["close"] * 9
    made = make(server, tmp_path, attempts=1)
    assert made.records == []
    assert len(made.failed) == 1


def test_people_and_texts_that_come_again_are_left_out(tmp_path):
    def answer(body: dict[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        if prompt.startswith("Invent"):  # the second of each group is the first again
            body = {
                "messages": [{"role": "user", "content": prompt.replace("person 2", "person 1").split("letter")[0]}]
            }
        return scripted_author.reply(body)

    with chat_server(answer) as server:
        made = make(server, tmp_path)
    assert made.steps["people"] == {"asked": 6, "done": 6, "failed": 0, "repeated": 3}
    assert len({record.user for record in made.records}) == 3


def test_more_history_than_texts_is_refused():
    with pytest.raises(SettingsError, match="--tasks"):
        GenerateSettings(tasks=4, history=4)


def test_the_command_writes_records_and_tells_what_they_cost(server, tmp_path):
    arguments = ["data", "generate", "--endpoint", server.url, "--name", "a-model", "--out", str(tmp_path), "--json"]
    result = CliRunner().invoke(
        app, [*arguments, "--portraits", "2", "--people", "1", "--tasks", "3", "--history", "1"]
    )
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert (body["records"], body["users"], body["failed"]) == (4, 2, [])
    assert body["steps"]["texts"]["done"] == 6
    assert body["usage"]["calls"] == len(server.requests) == 1 + 2 + 2 + 6
    assert len(read_collab_file(tmp_path / "records.jsonl").records) == 4
    server.requests.clear()
    other = CliRunner().invoke(app, [*arguments, "--portraits", "3"])
    assert isinstance(other.exception, SettingsError)
    assert server.requests == []

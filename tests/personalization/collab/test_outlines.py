"""Outlines for a data set: their form, who sees what, and what becomes of those that fail."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cloud_bridge.client import connect
from cloud_bridge.outline import is_point
from cloud_bridge.server.engines.onnx_engine import load_onnx_engine
from cloud_bridge.server.serve import ServerOptions, serving
from cogenesis.collab import app
from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import CloudError
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger
from export.onnx.export import export_onnx
from personalization.collab.outlines import read_outline
from personalization.collab.records.records import CollabRecord, read_collab_file, write_collab_file
from personalization.errors import SettingsError
from tests.support.chat_server import chat_server

POINTS = (
    *("Warm words of welcome", "Reasons for the fair", "Last year in numbers", "Thanks to many helpers"),
    *("Food from local farms", "Music in the evening", "Games for small children", "How to get there"),
    *("What guests should bring", "Prices and opening hours"),
)


def outline(points: tuple[str, ...] = POINTS) -> str:
    return "\n".join(f"{number}. {point}" for number, point in enumerate(points, start=1))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    context = PrivateContext("Name: Isolde Quennell", (HistoryItem("Write a note", "Pixel the cat is ill."),))
    made = [
        CollabRecord(f"1_1_{n}", "1_1", PublicInstruction(f"Write a speech {n}"), f"Write a speech {n}: on Pixel",
                     context, "Dear all")
        for n in range(3)
    ]  # fmt: skip
    write_collab_file(tmp_path / "in.jsonl", made)
    return tmp_path / "in.jsonl"


def run(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(app, ["sketch", *map(str, arguments), "--json"])
    if result.exception:
        raise result.exception
    return json.loads(result.stdout)


def test_an_outline_in_form_stays_as_it_is():
    assert read_outline(outline()) == outline()


def test_a_clouds_outline_that_repeats_itself_is_taken_as_the_device_gets_it():
    """As SmolLM2 wrote it over the bridge: the cloud promises points, not that all of them differ."""
    said = (
        *("A new 12-hour workweek", "New employee benefits", "A new employee's bonus", "Increased hours for employees"),
        *("Improved employee benefits package", "Better employee benefits package", "More holidays for employees"),
        "Additional vacation days available",
    )
    assert read_outline(outline(said), repeating=True) == outline(said)
    with pytest.raises(ValueError, match="7 usable"):
        read_outline(outline(said))


@pytest.mark.parametrize("mark", ["- ", "* ", "{}) ", "({}) ", "**{}.** ", "{}: "])
def test_marks_and_words_around_the_points_are_put_right(mark):
    lines = [mark.format(number).replace("**", "") + f"**{point}**" for number, point in enumerate(POINTS, start=1)]
    assert read_outline("Sure, here you are:\n\n" + "\n".join(lines) + "\n\nGood luck!") == outline()


def test_long_points_are_cut_repeated_ones_left_out_and_the_rest_counted():
    longer = (POINTS[0] + ", and then some more of it for everybody", POINTS[0].upper(), *POINTS[1:])
    assert read_outline(outline(longer)) == outline()
    many = tuple(f"{letter * 5} {letter * 6} {letter * 7}" for letter in "abcdefghijklmnopqrst")
    assert len(read_outline(outline(many)).splitlines()) == 15
    with pytest.raises(ValueError, match="7 usable"):
        read_outline(outline(POINTS[:7]))


@given(st.text("1.) -*abc,\n\u4e00", max_size=400))
def test_whatever_a_model_writes_an_outline_has_its_form(text):
    try:
        lines = read_outline(text).splitlines()
    except ValueError:
        return
    assert 8 <= len(lines) <= 15
    assert all(line.startswith(f"{n}. ") and is_point(line.split(". ", 1)[1]) for n, line in enumerate(lines, start=1))


def test_an_endpoint_sees_the_public_instructions_alone_and_the_ledger_tells(records, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    with chat_server(lambda body: outline()) as server:
        server.faults.append("500")
        told = run(records, "--endpoint", server.url, "--name", "m", "-o", tmp_path / "out.jsonl", "--ledger", ledger)
        sent = json.dumps([request["messages"] for request in server.requests])
    assert (told["sketches"], told["failed"], told["usage"]["calls"]) == (3, [], 4)
    assert "Write a speech 2" in sent
    assert not any(private in sent for private in ("Isolde", "Pixel", "Dear all"))
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [entry["kind"] for entry in entries if entry["direction"] == "up"] == ["sketch"] * 4
    before, after = (read_collab_file(path).records for path in (records, tmp_path / "out.jsonl"))
    assert [record.sketch for record in after] == [outline()] * 3
    assert [(record.id, record.context, record.reference) for record in after] == [
        (record.id, record.context, record.reference) for record in before
    ]


@pytest.fixture(scope="module")
def small_cloud(llama, tmp_path_factory):
    bundle = tmp_path_factory.mktemp("cloud") / "bundle"
    export_onnx(llama, bundle, "fp32")
    with serving(load_onnx_engine(str(bundle), threads=1), ServerOptions(max_sessions=4)) as running:
        yield running.address


def test_a_cloud_outlines_what_is_public_and_each_record_gets_what_its_device_would_get(records, tmp_path, small_cloud):
    ledger, out = tmp_path / "ledger.jsonl", tmp_path / "out.jsonl"
    told = run(records, "--cloud", small_cloud, "-o", out, "--ledger", ledger)
    assert (told["sketches"], told["failed"], told["usage"]["calls"]) == (3, [], 3)
    with connect(small_cloud) as cloud:
        gate = Gate(Policy.SKETCH, Ledger())
        for record in read_collab_file(out).records:
            answer = "".join(cloud.sketch(gate.sketch(record.instruction)))
            assert record.sketch == read_outline(answer, repeating=True)
    left = [line for line in ledger.read_text().splitlines() if json.loads(line)["direction"] == "up"]
    assert [json.loads(line)["kind"] for line in left] == ["info", "sketch", "sketch", "sketch"]
    assert "Write a speech 2" in "".join(left)
    assert not any(private in line for line in left for private in ("Isolde", "Pixel", "Dear all"))


def test_a_cloud_that_is_not_there_is_named_and_nothing_is_written(records, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(CloudError, match=re.escape(address)):
        run(records, "--cloud", address, "-o", tmp_path / "out.jsonl", "--timeout", 1)
    assert not (tmp_path / "out.jsonl").exists()


def test_what_has_no_form_is_named_and_the_next_run_asks_for_that_alone(records, tmp_path):
    good: list[str] = []

    def answer(body):
        asked = body["messages"][-1]["content"]
        return outline() if good or "speech 1" not in asked else "1. No"

    with chat_server(answer) as server:
        arguments = (records, "--endpoint", server.url, "--name", "m", "-o", tmp_path / "out.jsonl", "--tries", 2)
        told = run(*arguments)
        assert [failure["id"] for failure in told["failed"]] == ["1_1_1"]
        assert "0 usable" in told["failed"][0]["reason"]
        assert (told["sketches"], told["usage"]["calls"]) == (2, 4)
        good.append("now")
        server.requests.clear()
        assert run(*arguments)["sketches"] == 3
        assert len(server.requests) == 1


def test_one_must_be_named_to_ask(records, tmp_path):
    with pytest.raises(SettingsError, match="Name one"):
        run(records, "-o", tmp_path / "out.jsonl")
    with pytest.raises(SettingsError, match="Name one"):
        run(records, "-o", tmp_path / "out.jsonl", "--cloud", "127.0.0.1:1", "--model", "x")

"""`cogenesis lamp score` as a user runs it: files, zip files, comparisons, and all kinds of mismatches."""

from __future__ import annotations

import json
import zipfile

import pytest
from typer.testing import CliRunner

from cogenesis.lamp import app
from edge_runtime.errors import CogenesisError
from personalization.errors import DataError, SettingsError
from personalization.lamp import scoring as lamp_scoring
from personalization.lamp.metrics import mean_scores, sample_scores
from personalization.lamp.tasks import LAMP_TASKS
from tests.support.lamp_data import golds
from tests.support.personal_data import write_json

COUNT = 12


def run(*arguments):
    result = CliRunner().invoke(app, ["score", *map(str, arguments)])
    if isinstance(result.exception, CogenesisError):
        raise result.exception
    assert result.exception is None, result.output
    return result.stdout


def scores(*arguments):
    return json.loads(run(*arguments, "--json"))


def predictions(task, right=6):
    """Return the gold outputs, with only the first few kept correct."""
    body = golds(task, COUNT)
    rows = [row if number < right else row | {"output": "none"} for number, row in enumerate(body["golds"])]
    return {**body, "golds": rows}


@pytest.fixture
def files(tmp_path):
    """Golds and predictions of LaMP-5."""
    return (
        write_json(tmp_path / "golds.json", golds("LaMP-5", COUNT)),
        write_json(tmp_path / "preds.json", predictions("LaMP-5")),
    )


def zipped(path, bodies):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in bodies.items():
            archive.writestr(name, body if isinstance(body, bytes) else json.dumps(body))
    return path


@pytest.mark.parametrize("task", LAMP_TASKS)
def test_each_task_is_scored_by_its_metrics(tmp_path, task):
    expected, found = golds(task, COUNT), predictions(task)
    files = write_json(tmp_path / "golds.json", expected), write_json(tmp_path / "preds.json", found)
    answer = scores("--golds", files[0], "--preds", files[1], "--task", task)
    pairs = [(one["output"], other["output"]) for one, other in zip(expected["golds"], found["golds"], strict=True)]
    assert answer == {task: {"questions": COUNT, "scores": mean_scores(LAMP_TASKS[task], pairs)}}
    table = run("--golds", files[0], "--preds", files[1], "--task", task)
    assert all(name in table for name in answer[task]["scores"])


@pytest.mark.parametrize("task", ["LaMP-2", "LaMP-2-news", "LaMP-6"])
def test_the_file_says_of_which_task_it_is(tmp_path, task):
    """Both variants of the second task are called LaMP_2; their labels tell them apart."""
    file = write_json(tmp_path / "golds.json", golds(task, COUNT))
    assert list(scores("--golds", file, "--preds", file)) == [task]


@pytest.mark.parametrize(
    ("alias", "task"), [("LaMP_2M", "LaMP-2"), ("LaMP_2N", "LaMP-2-news"), ("lamp-2n", "LaMP-2-news")]
)
def test_the_variants_of_the_second_task_are_known_by_their_other_names(tmp_path, alias, task):
    expected, found = golds(task, COUNT) | {"task": alias}, predictions(task)
    files = write_json(tmp_path / "golds.json", expected), write_json(tmp_path / "preds.json", found)
    pairs = [(one["output"], other["output"]) for one, other in zip(expected["golds"], found["golds"], strict=True)]
    right = {task: {"questions": COUNT, "scores": mean_scores(LAMP_TASKS[task], pairs)}}
    for options in ((), ("--task", task), ("--task", alias)):
        assert scores("--golds", files[0], "--preds", files[1], *options) == right
    other = "LaMP-2" if task == "LaMP-2-news" else "LaMP-2-news"
    with pytest.raises(SettingsError, match=f"are of {alias}, not of {other}"):
        run("--golds", files[0], "--preds", files[1], "--task", other)


def test_predictions_that_name_another_task_are_refused(tmp_path):
    gold = write_json(tmp_path / "golds.json", golds("LaMP-2", COUNT) | {"task": "LaMP_2M"})
    news = write_json(tmp_path / "preds.json", golds("LaMP-2", COUNT) | {"task": "LaMP_2N"})
    with pytest.raises(DataError, match=r"are of LaMP_2N, the gold outputs of LaMP_2M: .*preds\.json"):
        run("--golds", gold, "--preds", news)
    zips = [zipped(tmp_path / f"{path.stem}.zip", {"a.json": path.read_bytes()}) for path in (gold, news)]
    with pytest.raises(DataError, match="are of LaMP_2N, the gold outputs of LaMP_2M"):
        run("--golds-zip", zips[0], "--preds-zip", zips[1])


def test_both_variants_of_the_second_task_fit_into_one_zip_file(tmp_path):
    bodies = {
        "m.json": golds("LaMP-2", COUNT) | {"task": "LaMP_2M"},
        "n.json": golds("LaMP-2-news", COUNT) | {"task": "LaMP_2N"},
    }
    both = zipped(tmp_path / "both.zip", bodies)
    assert sorted(scores("--golds-zip", both, "--preds-zip", both)) == ["LaMP-2", "LaMP-2-news"]
    same = zipped(tmp_path / "same.zip", {"m.json": bodies["m.json"], "x.json": golds("LaMP-2", COUNT)})
    with pytest.raises(DataError, match="Two files are of LaMP_2"):
        run("--golds-zip", same, "--preds-zip", same)


def test_the_order_of_the_predictions_does_not_matter(tmp_path, files):
    body = predictions("LaMP-5")
    turned = write_json(tmp_path / "turned.json", {"golds": body["golds"][::-1]})
    assert scores("--golds", files[0], "--preds", turned) == scores("--golds", files[0], "--preds", files[1])


def test_scores_of_all_and_of_each_answer_are_written(tmp_path, files):
    out, samples = tmp_path / "new" / "scores.json", tmp_path / "samples.json"
    answer = scores("--golds", files[0], "--preds", files[1], "--out", out, "--samples", samples)
    assert json.loads(out.read_text()) == answer
    each = json.loads(samples.read_text())["LaMP-5"]
    expected, found = (json.loads(file.read_text())["golds"] for file in files)
    assert each == {
        one["id"]: sample_scores(LAMP_TASKS["LaMP-5"], one["output"], other["output"])
        for one, other in zip(expected, found, strict=True)
    }


def test_two_systems_are_compared_by_every_metric(tmp_path, files):
    worse = write_json(tmp_path / "worse.json", predictions("LaMP-5", right=0))
    found = scores("--golds", files[0], "--preds", files[1], "--against", worse)["LaMP-5"]
    assert list(found["against"]) == ["rouge-1", "rouge-l"]
    compared = found["against"]["rouge-1"]
    assert (compared["score"], compared["baseline"], compared["difference"]) == (0.5, 0, 0.5)
    # All six differing answers are better: 2 of 2^6 exchanges give as large a difference.
    assert compared["p"] == pytest.approx(2 / 64, abs=0.006)
    assert 0 < compared["low"] < 0.5 < compared["high"] < 1
    assert "0.5000" in run("--golds", files[0], "--preds", files[1], "--against", worse)


def test_all_tasks_are_scored_from_zip_files_wherever_the_files_are_in_them(tmp_path):
    tasks = [name for name in LAMP_TASKS if name != "LaMP-2"]
    gold = zipped(tmp_path / "golds.zip", {f"golds/{task}/dev_outputs.json": golds(task, COUNT) for task in tasks})
    found = {f"{task}.json": predictions(task) for task in tasks}
    junk = {"__MACOSX/._LaMP-1.json": b"\x00", "readme.txt": b"no outputs"}
    answer = scores("--golds-zip", gold, "--preds-zip", zipped(tmp_path / "preds.zip", found | junk))
    assert sorted(answer) == sorted(tasks)
    [alone] = scores(
        "--golds", write_json(tmp_path / "g.json", golds("LaMP-3", COUNT)),
        "--preds", write_json(tmp_path / "p.json", predictions("LaMP-3")),
    ).values()  # fmt: skip
    assert answer["LaMP-3"] == alone
    both = scores("--golds-zip", gold, "--preds-zip", gold, "--against", tmp_path / "preds.zip")
    assert both["LaMP-7"]["against"]["rouge-l"]["difference"] > 0


def outputs(*rows, task="LaMP_5"):
    return {"task": task, "golds": [{"id": identity, "output": output} for identity, output in rows]}


@pytest.mark.parametrize(
    ("expected", "found", "problem"),
    [
        (outputs(("1", "a"), ("2", "b")), outputs(("1", "a")), r"preds\.json \(1 are missing, such as '2'\)"),
        (outputs(("1", "a")), outputs(("1", "a"), ("2", "b")), r"preds\.json \(1 are not asked, such as '2'\)"),
        (outputs(("1", "a")), outputs(("2", "b")), r"1 are missing, such as '1'; 1 are not asked, such as '2'"),
        (outputs(("1", "a")), outputs(("1", "a"), ("1", "b")), r"preds\.json, question '1' comes twice"),
        (outputs(("1", "a")), outputs(("1", None)), r"preds\.json, 'output' of golds\[0\] must be a text"),
        (outputs(("1", "a")), {"preds": []}, r"preds\.json, it has no 'golds'"),
        (outputs(("1", "a")), [], r"preds\.json, it must be an object with 'golds'"),
        (outputs(), outputs(), "no gold outputs to score against"),
        (
            outputs(("1", "[3]"), task="LaMP_1"),
            outputs(("1", "[1]"), task="LaMP_1"),
            r"gold '\[3\]' is not an answer of LaMP-1",
        ),
    ],
)
def test_predictions_that_do_not_fit_are_named(tmp_path, expected, found, problem):
    files = write_json(tmp_path / "golds.json", expected), write_json(tmp_path / "preds.json", found)
    with pytest.raises(DataError, match=problem):
        run("--golds", files[0], "--preds", files[1])


def test_a_task_that_is_not_the_files_or_is_unknown_is_refused(tmp_path, files):
    with pytest.raises(SettingsError, match="are of LaMP_5, not of LaMP-4"):
        run("--golds", files[0], "--preds", files[1], "--task", "LaMP-4")
    nameless = write_json(tmp_path / "nameless.json", {"golds": golds("LaMP-5")["golds"]})
    with pytest.raises(SettingsError, match=r"name no task of LaMP: --golds\. Set --task"):
        run("--golds", nameless, "--preds", nameless)
    assert scores("--golds", nameless, "--preds", nameless, "--task", "lamp_5")["LaMP-5"]["scores"]["rouge-1"] == 1


@pytest.mark.parametrize(
    "options", [(), ("--golds",), ("--golds", "--preds-zip"), ("--golds", "--preds", "--golds-zip")]
)
def test_half_of_what_is_needed_is_not_enough(files, options):
    with pytest.raises(SettingsError, match="Give either --golds and --preds, or --golds-zip and --preds-zip"):
        run(*(part for option in options for part in (option, files[0])))


@pytest.mark.parametrize(
    ("bodies", "problem"),
    [
        ({"a.json": golds("LaMP-5")}, "without predictions: LaMP_7"),
        (
            {"a.json": golds("LaMP-5"), "b.json": golds("LaMP-7"), "c.json": golds("LaMP-4")},
            "without gold outputs: LaMP_4",
        ),
        ({"a.json": golds("LaMP-5"), "b.json": golds("LaMP-5")}, "Two files are of LaMP_5: .* the second is b.json"),
        ({"a.json": {"golds": []}}, "names no task: a.json in"),
        ({"a.json": b"{"}, "not valid JSON: a.json in"),
        ({"a.json": b"[]"}, "not an outputs file of LaMP: a.json in"),
        ({"a.txt": b""}, "no outputs file"),
    ],
)
def test_zip_files_of_other_tasks_are_named(tmp_path, bodies, problem):
    gold = zipped(tmp_path / "golds.zip", {"a.json": golds("LaMP-5"), "b.json": golds("LaMP-7")})
    with pytest.raises(DataError, match=problem):
        run("--golds-zip", gold, "--preds-zip", zipped(tmp_path / "preds.zip", bodies))


def test_a_damaged_zip_file_is_named(tmp_path):
    gold = zipped(tmp_path / "golds.zip", {"a.json": golds("LaMP-5")})
    content = gold.read_bytes()
    broken = tmp_path / "broken.zip"
    for damage in (content[: len(content) // 2], content.replace(content[60:90], bytes(30)), b"", b"PK\x03\x04"):
        broken.write_bytes(damage)
        with pytest.raises(DataError, match=r"broken\.zip"):
            run("--golds-zip", gold, "--preds-zip", broken)
    with pytest.raises(DataError, match=r"no such file: .*missing\.zip"):
        run("--golds-zip", gold, "--preds-zip", tmp_path / "missing.zip")


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lamp_scoring, "_LARGEST_MEMBER", 1 << 20)
    bomb = zipped(tmp_path / "bomb.zip", {"a.json": b" " * (2 << 20)})
    assert bomb.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"larger than 1 MB: a\.json"):
        run("--golds-zip", bomb, "--preds-zip", bomb)

"""`lamp evaluate`, `ropg feedback` and `rspg feedback` as a researcher runs them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cogenesis.cli import app
from edge_runtime.errors import CogenesisError
from export.adapters.export import export_adapters
from export.onnx.export import export_onnx
from personalization.errors import DataError, SettingsError
from personalization.lamp.metrics import gain, mean_scores
from personalization.lamp.outputs import read_outputs
from personalization.lamp.questions import QuestionFile
from personalization.lamp.tasks import LAMP_TASKS
from personalization.retrievers.feedback import read_item_feedback, read_retriever_feedback
from tests.support.commands import ROOT
from tests.support.lamp_data import golds, merged, merged_file, questions
from tests.support.personal_data import write_json
from tests.support.warm_process import WarmProcess

QUICK = ("--max-new-tokens", 6, "--threads", 1, "--batch-size", 2, "--beams", 1)


def run(*arguments):
    """Run a command in this process; return its JSON, or the error message."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if isinstance(result.exception, CogenesisError):
        return None, result.exception
    assert result.exception is None, result.exception
    return json.loads(result.stdout), None


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return merged_file(tmp_path_factory.mktemp("lamp"), "LaMP-5", count=5)


@pytest.fixture(scope="module")
def evaluated(llama, file, tmp_path_factory):
    """The answers of a complete run."""
    out = tmp_path_factory.mktemp("evaluated")
    answer, error = run("lamp", "evaluate", "--task", "LaMP-5", "-q", file, "-m", llama, "-k", 2, "-o", out, *QUICK)
    assert error is None
    return out, answer


def test_predictions_are_in_lamps_form_with_their_scores(evaluated):
    out, answer = evaluated
    predictions = read_outputs(out / "predictions.json")
    expected = {gold["id"]: gold["output"] for gold in golds("LaMP-5", 5)["golds"]}
    assert (predictions.task, list(predictions.by_id)) == ("LaMP_5", list(expected))
    pairs = [(gold, predictions.by_id[identity]) for identity, gold in expected.items()]
    assert answer["scores"] == mean_scores(LAMP_TASKS["LaMP-5"], pairs)
    assert answer["predictions"] == str(out / "predictions.json")
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "predictions.json"]


def test_questions_without_gold_outputs_are_answered_too(llama, tmp_path):
    file = write_json(tmp_path / "test.json", questions("LaMP-3"))
    answer, error = run("lamp", "evaluate", "--task", "LaMP-3", "-q", file, "-m", llama, "-o", tmp_path / "o", *QUICK)
    assert error is None
    assert (answer["questions"], answer["scores"]) == (4, {})


def test_a_killed_run_goes_on_to_the_same_bytes(llama, file, evaluated, tmp_path):
    command = ["lamp", "evaluate", "--task", "LaMP-5", "-q", file, "-m", llama, "-k", 2, "-o", tmp_path, *QUICK]
    process = WarmProcess(*command)
    assert process.stderr.readline().startswith("[1/3]")
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    process.close()
    assert not (tmp_path / "predictions.json").exists()
    done = (tmp_path / "answers.jsonl").read_bytes()
    assert done.count(b"\n") >= 2
    _, error = run(*command)
    assert error is None
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in evaluated[0].iterdir()
    }


def test_the_last_shard_writes_the_predictions(llama, file, evaluated, tmp_path):
    command = ("lamp", "evaluate", "--task", "LaMP-5", "-q", file, "-m", llama, "-k", 2, "-o", tmp_path, *QUICK)
    answer, _ = run(*command, "--shard", "2/2")
    assert answer == {"out": str(tmp_path), "complete": False}
    assert not (tmp_path / "predictions.json").exists()
    answer, _ = run(*command, "--shard", "1/2")
    assert answer["complete"]
    assert (tmp_path / "predictions.json").read_bytes() == (evaluated[0] / "predictions.json").read_bytes()


def test_a_bundle_answers_as_its_model_does(llama, file, evaluated, tmp_path):
    export_onnx(llama, tmp_path / "bundle", "fp32")
    command = ("lamp", "evaluate", "--task", "LaMP-5", "-q", file, "-b", tmp_path / "bundle", "-k", 2)
    answer, error = run(*command, "-o", tmp_path / "out", *QUICK)
    assert error is None
    assert answer["scores"] == evaluated[1]["scores"]
    assert (tmp_path / "out" / "predictions.json").read_bytes() == (evaluated[0] / "predictions.json").read_bytes()


def test_users_adapters_answer_from_a_model_and_from_its_bundle_alike(llama, file, evaluated, tmp_path):
    """PEFT and RAG together: adapters of `adapter train`, prompts with profile items."""
    peft, bundle = tmp_path / "peft", tmp_path / "bundle"
    strong = ("--rate", 0.05, "--targets", "all", "--epochs", 2, "--threads", 1)
    _, error = run("adapter", "train", "--task", "LaMP-5", "--questions", file, "-m", llama, "-o", peft, *strong)
    assert error is None
    export_onnx(llama, bundle, "fp32")
    export_adapters(peft, bundle, weights="fp32")
    command = ("lamp", "evaluate", "--task", "LaMP-5", "-q", file, "-k", 2, *QUICK)
    for source in (("-m", llama, "--adapters", peft), ("-b", bundle, "--adapters", bundle / "adapters")):
        _, error = run(*command, *source, "-o", tmp_path / source[0])
        assert error is None
    from_model, from_bundle = ((tmp_path / name / "predictions.json").read_bytes() for name in ("-m", "-b"))
    assert from_model == from_bundle
    assert from_model != (evaluated[0] / "predictions.json").read_bytes()


@pytest.mark.parametrize("task", ["LaMP-2", "LaMP-3", "LaMP-5"])
def test_feedback_on_items_is_what_each_alone_is_worth(task, llama, tmp_path):
    file = merged_file(tmp_path, task, count=3)
    answer, error = run(
        *("ropg", "feedback", "--task", task, "-q", file, "-m", llama, "-o", tmp_path / "out", *QUICK),
        *("--profile-size", 2, "--limit", 2),
    )
    assert error is None
    found = read_item_feedback(tmp_path / "out" / "feedback.json")
    assert (answer["items"], list(found)) == (4, ["0-00", "0-01", "1-10", "1-11"])
    # The same as evaluating questions with only that item.
    known = LAMP_TASKS[task]
    bodies = [
        body | {"id": f"{body['id']}-{item['id']}", "profile": [item]}
        for body in merged(task, 2)
        for item in body["profile"][:2]
    ]
    once = write_json(tmp_path / "once.json", bodies)
    _, error = run("lamp", "evaluate", "--task", task, "-q", once, "-m", llama, "-o", tmp_path / "o", *QUICK)
    predicted = read_outputs(tmp_path / "o" / "predictions.json").by_id
    expected = {body["id"]: gain(known, body["output"], predicted[body["id"]]) for body in bodies}
    assert found == expected


def test_feedback_on_a_retriever_has_prompts_and_what_was_written(llama, file, evaluated, tmp_path):
    command = ("rspg", "feedback", "--task", "LaMP-5", "-q", file, "-m", llama, "-k", 2, "-o", tmp_path, *QUICK)
    answer, error = run(*command)
    assert error is None
    assert (answer["questions"], answer["feedback"]) == (5, str(tmp_path / "scores.json"))
    metric, found = read_retriever_feedback(tmp_path)
    assert metric == "rouge-1"
    predicted = read_outputs(evaluated[0] / "predictions.json").by_id
    assert {identity: entry.output for identity, entry in found.items()} == predicted
    for question in QuestionFile(file, LAMP_TASKS["LaMP-5"]):
        entry = found[question.id]
        assert entry.gain == gain(LAMP_TASKS["LaMP-5"], question.output, entry.output)
        assert question.input in entry.prompt
        assert question.profile[1].fields["title"] in entry.prompt
        assert question.profile[2].fields["title"] not in entry.prompt


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["lamp", "evaluate"], SettingsError, "either --model DIR or --bundle"),
        (["lamp", "evaluate", "-m", "x", "-b", "y"], SettingsError, "either --model DIR or --bundle"),
        (["lamp", "evaluate", "-m", "{llama}", "--backend", "onnx"], SettingsError, "--backend is for a bundle"),
        (["lamp", "evaluate", "-m", "{llama}", "--shard", "3/2"], SettingsError, "--shard must be"),
        (["lamp", "evaluate", "-m", "nowhere"], CogenesisError, "nowhere"),
        (["lamp", "evaluate", "-b", "nowhere"], CogenesisError, "no bundle here"),
        (["lamp", "evaluate", "-m", "{llama}", "--workers", "2"], CogenesisError, "Set --runner to ray"),
        (["lamp", "evaluate", "-m", "{llama}", "--task", "LaMP-9"], SettingsError, "no task 'LaMP-9'"),
        (["ropg", "feedback", "-m", "{llama}", "-q", "{plain}"], DataError, "4 questions have no gold.*lamp merge"),
        (["rspg", "feedback", "-m", "{llama}", "-q", "{plain}"], DataError, "4 questions have no gold.*lamp merge"),
        (["rspg", "feedback", "-m", "{llama}", "-q", "{none}"], DataError, "nothing to answer"),
    ],
)
def test_what_can_not_be_done_says_why_and_writes_nothing(llama, file, tmp_path, arguments, kind, words):
    plain = write_json(tmp_path / "plain.json", questions("LaMP-5"))
    none = write_json(tmp_path / "none.json", [])
    arguments = [argument.format(llama=llama, plain=plain, none=none) for argument in arguments]
    defaults = {"--task": "LaMP-5", "-q": file, "-o": tmp_path / "out"}
    for name, value in defaults.items():
        arguments += [] if name in arguments else [name, value]
    _, error = run(*arguments)
    assert isinstance(error, kind)
    assert re.search(words, str(error)), error
    assert not (tmp_path / "out").exists()


def test_every_command_has_an_example():
    for command in (("lamp", "evaluate"), ("lamp", "train"), ("ropg", "feedback"), ("rspg", "feedback")):
        shown = CliRunner().invoke(app, [*command, "--help"]).stdout
        assert f"cogenesis {' '.join(command)}" in shown


def test_the_commands_load_nothing_heavy_before_they_run():
    code = (
        "import sys, cogenesis.lamp, cogenesis.ropg, cogenesis.rspg, "
        "personalization.lamp.answers, personalization.answering.edge_writer; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "transformers", "peft", "ray"} & set(done.stdout.split())

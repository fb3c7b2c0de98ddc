"""Retrievers trained by feedback: they learn, interruptions and processes change nothing, and bad data are rejected."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cogenesis import lamp as lamp_commands
from cogenesis import ropg as ropg_commands
from edge_runtime.errors import CogenesisError, WriteError
from export.progress import silent
from personalization.errors import DataError, SettingsError, TrainingError
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import item_key
from personalization.lamp.tasks import LAMP_TASKS
from personalization.models.text_encoder import Encoder
from personalization.retrievers.examples import retriever_examples
from personalization.retrievers.feedback import read_item_feedback
from personalization.retrievers.ropg import Method, train_retriever
from personalization.training.data_parallel import Team
from personalization.training.settings import TuningSettings
from tests.support.tiny_encoders import make_encoder, topic_question, write_feedback
from tests.support.warm_process import WarmProcess

WEIGHTS = "model.safetensors"
ALL = range(100)
HELD_OUT = range(100, 160)
# Distillation: four items per question, six topics. Reinforcement, with one draw per question: two items, two topics.
TASKS = {
    "train-kd": (topic_question, ("--rate", 1e-2, "--softmax-temperature", 0.2, "--batch", 4)),
    "train-rl": (lambda number: topic_question(number, items=2, topics=2), ("--rate", 3e-3, "--batch", 8)),
}
QUICK = TuningSettings(epochs=2, batch=4, rate=1e-2, threads=1, save_every=1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("ropg") / "encoder", dropout=0.0)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with dropout; every training must draw the same masks."""
    return make_encoder(tmp_path_factory.mktemp("ropg") / "forgetful", dropout=0.2)


def run(command, *arguments):
    """Run a command in this process; return its output, or the error message."""
    result = CliRunner().invoke(ropg_commands.app, [command, *map(str, arguments), "--json"])
    if isinstance(result.exception, CogenesisError):
        return {}, result.exception
    assert result.exception is None, result.exception
    return json.loads(result.stdout), None


def options(files):
    return [part for pair in files.items() for part in pair]


def mean_gain(encoder: Path, questions: Path, feedback: Path, out: Path) -> float:
    """Return the mean gain of the items that `lamp rank` puts first with an encoder."""
    rank = ("rank", "--task", "LaMP-5", "-q", questions, "--ranker", encoder, "-o", out)
    assert CliRunner().invoke(lamp_commands.app, [*map(str, rank)]).exception is None
    worth = read_item_feedback(feedback)
    return float(np.mean([worth[item_key(key, items[0])] for key, items in json.loads(out.read_text()).items()]))


@pytest.mark.parametrize("command", list(TASKS))
def test_the_item_that_is_worth_most_comes_first_on_questions_never_seen(encoder, tmp_path, command):
    question, settings = TASKS[command]
    training, judging = ([question(number) for number in numbers] for numbers in (ALL, HELD_OUT))
    held_out = write_feedback(tmp_path / "dev", judging)
    dev = {f"--dev-{name[2:]}": file for name, file in held_out.items()}
    arguments = (*options(write_feedback(tmp_path / "train", training)), *options(dev), "--task", "LaMP-5")
    out = tmp_path / "out"
    answer, error = run(command, *arguments, "--encoder", encoder, "-o", out, "--epochs", 6, "--threads", 1, *settings)
    assert error is None
    assert (answer["questions"], answer["dev_questions"]) == (100, 60)
    untrained, trained = (
        mean_gain(directory, *held_out.values(), tmp_path / "ranking.json") for directory in (encoder, out)
    )
    chance = np.mean([np.mean(example.gains) for example in judging])
    assert untrained < chance + 0.15
    assert trained > untrained + 0.3
    assert answer["gains"][0] == pytest.approx(untrained)
    assert answer["gains"][answer["kept_epoch"]] == max(answer["gains"]) == pytest.approx(trained)


@pytest.mark.parametrize("method", list(Method))
def test_a_run_that_is_interrupted_anywhere_gives_the_same_bytes(forgetful, tmp_path, method):
    examples = [topic_question(number) for number in range(10)]
    judging = [topic_question(number) for number in range(20, 26)]
    team = Team(cpu=True)

    def train(out, progress):
        train_retriever(forgetful, out, examples, judging, method, QUICK, team, force=False, progress=progress)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, silent)
    for step in range(6):  # at a different step each time, so all work comes from another run

        def stop(_what, done, total, step=step):
            if done > step or done == total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(broken, stop)
        assert not broken.exists()
    train(broken, silent)
    for file in sorted(path.name for path in whole.iterdir()):
        assert (whole / file).read_bytes() == (broken / file).read_bytes(), file
    assert not list(tmp_path.glob(".*"))


def test_two_processes_learn_what_one_does(forgetful, tmp_path):
    # Of 7 questions in steps of 2 the last step has one, so one process has none.
    files = write_feedback(tmp_path / "data", [topic_question(number) for number in range(7)])
    arguments = [*options(files), "--task", "LaMP-5", "--encoder", forgetful, "--threads", 1]
    arguments += ["--epochs", 2, "--batch", 2, "--rate", 1e-3]
    alone, _ = run("train-kd", *arguments, "-o", tmp_path / "one")
    # Like `torchrun`, without the seconds that it takes to start.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = ["ropg", "train-kd", *arguments, "-o", tmp_path / "two", "--json"]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        WarmProcess(*command, env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")
    ]
    (said, first), (silence, second) = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], first + second
    assert silence == ""
    together = json.loads(said)
    assert together["steps"] == alone["steps"] == 8
    assert together["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    texts = ["asks1 word3", "tells2 word1 word2"]
    one, two = (Encoder.load(tmp_path / name).embed(texts) for name in ("one", "two"))
    np.testing.assert_allclose(one, two, atol=1e-3)
    assert np.abs(one - Encoder.load(forgetful).embed(texts)).max() > 0.01


def test_what_is_trained_already_is_left_alone_and_nothing_else_is_replaced(encoder, tmp_path):
    files = write_feedback(tmp_path / "data", [topic_question(number) for number in range(4)])
    arguments = [*options(files), "--task", "LaMP-5", "--encoder", encoder, "--threads", 1, "--epochs", 1]
    out = tmp_path / "out"
    first, _ = run("train-kd", *arguments, "-o", out)
    before = (out / WEIGHTS).stat().st_mtime_ns
    again, _ = run("train-kd", *arguments, "-o", out)
    assert (first["kept"], again["kept"]) == (False, True)
    assert {**again, "kept": False} == first
    assert (out / WEIGHTS).stat().st_mtime_ns == before

    _, error = run("train-rl", *arguments, "-o", out)
    assert isinstance(error, WriteError) and "--force" in str(error)
    forced, error = run("train-rl", *arguments, "-o", out, "--force")
    assert error is None and not forced["kept"]
    _, error = run("train-rl", *arguments, "-o", tmp_path / "data")
    assert isinstance(error, WriteError) and "not replaced" in str(error)


def test_an_unfinished_training_is_gone_on_with_by_the_same_settings_alone(encoder, tmp_path):
    examples = [topic_question(number) for number in range(6)]
    team, out = Team(cpu=True), tmp_path / "out"

    def stop(_what, done, _total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_retriever(encoder, out, examples, (), Method.KD, QUICK, team, force=False, progress=stop)
    state = tmp_path / ".out.training"
    with pytest.raises(SettingsError, match=r"unfinished training with other settings.*\.out\.training.*set `force`"):
        train_retriever(encoder, out, examples, (), Method.RL, QUICK, team, force=False, progress=silent)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="damaged"):
        train_retriever(encoder, out, examples, (), Method.KD, QUICK, team, force=False, progress=silent)
    trained = train_retriever(encoder, out, examples, (), Method.RL, QUICK, team, force=True, progress=silent)
    assert not trained.kept and not state.exists()


def test_the_first_items_with_feedback_are_learnt_from(tmp_path):
    files = write_feedback(tmp_path, [topic_question(0), topic_question(1), topic_question(2)])
    feedback = json.loads(files["--feedback"].read_text())
    del feedback["0-0-1"], feedback["2-2-0"], feedback["2-2-1"], feedback["2-2-2"]
    found = retriever_examples(
        QuestionFile(files["--questions"], LAMP_TASKS["LaMP-5"]),
        {key: values["rouge-1"] for key, values in feedback.items()},
        most=2,
    )
    assert found.skipped == 1
    assert [example.documents for example in found.examples] == [
        (topic_question(0).documents[0], topic_question(0).documents[2]),
        topic_question(1).documents[:2],
    ]
    assert found.examples[1].gains == topic_question(1).gains[:2]
    assert found.examples[1].query == topic_question(1).query


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ("[]", DataError, "must be an object"),
        ("{}", DataError, "an entry or more"),
        ('{"1-1": 3}', DataError, "no metric in it"),
        ('{"1-1": {"rouge-1": 1}, "1-2": {}}', DataError, "'rouge-1' of '1-2' must be a finite number"),
        ('{"1-1": {"rouge-1": NaN}}', DataError, "finite number"),
        ('{"1-1": {"rouge-1": true}}', DataError, "finite number"),
        ('{"1-1": {"rouge-1": 1, "rouge-l": 1}}', SettingsError, "Set `metric` to one of: rouge-1, rouge-l"),
    ],
)
def test_feedback_of_another_form_is_named(tmp_path, body, error, says):
    path = tmp_path / "feedback.json"
    path.write_text(body)
    with pytest.raises(error, match=says):
        read_item_feedback(path)


def test_what_can_not_be_learnt_from_is_said(encoder, tmp_path):
    files = write_feedback(tmp_path, [topic_question(0, items=1), topic_question(1, items=1)])
    arguments = [*options(files), "--task", "LaMP-5", "-o", tmp_path / "out"]
    _, error = run("train-kd", *arguments, "--encoder", encoder)
    assert isinstance(error, TrainingError) and "no question has two items" in str(error)
    files["--feedback"].write_text('{"other": {"rouge-1": 1}}')
    _, error = run("train-kd", *arguments, "--encoder", encoder)
    assert isinstance(error, DataError) and "None of the feedback" in str(error)
    _, error = run("train-kd", *arguments, "--encoder", encoder, "--dev-feedback", files["--feedback"])
    assert isinstance(error, SettingsError) and "belong together" in str(error)
    _, error = run("train-kd", *arguments, "--encoder", encoder, "--rate", -1)
    assert isinstance(error, SettingsError) and "rate" in str(error)
    files["--feedback"].write_text('{"0-0-0": {"rouge-1": 1}, "1-1-0": {"rouge-1": 1}}')
    files = write_feedback(tmp_path, [topic_question(0)])
    _, error = run("train-kd", *arguments, "--encoder", tmp_path)
    assert isinstance(error, CogenesisError) and "config.json" in str(error)

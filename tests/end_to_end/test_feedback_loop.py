"""From profiles to trained retrievers and selectors, by the commands alone: each takes what the last wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cogenesis.cli import app
from tests.support.personal_data import write_json
from tests.support.tiny_encoders import make_encoder, topic_question, write_feedback

TASK = ("--task", "LaMP-5")
SHORT = ("--max-length", 64, "--max-new-tokens", 4, "--threads", 1)
TRAINING = ("--epochs", 1, "--threads", 1)


def run(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about topics, their gold outputs, an encoder, and questions merged with a ranking."""
    root = tmp_path_factory.mktemp("loop")
    write_feedback(root, [topic_question(number) for number in range(4)])
    golds = [{"id": str(number), "output": f"the boat {number}"} for number in range(4)]
    write_json(root / "outputs.json", {"task": "LaMP_5", "golds": golds})
    make_encoder(root / "encoder")
    rank_and_merge(root, "bm25")
    return root


def rank_and_merge(root: Path, ranker: str | Path) -> Path:
    ranking, merged = root / "ranking.json", root / f"merged-{Path(ranker).name}.json"
    run("lamp", "rank", *TASK, "-q", root / "questions.json", "--ranker", ranker, "-o", ranking)
    given = ("--questions", root / "questions.json", "--outputs", root / "outputs.json")
    run("lamp", "merge", *given, "--ranking", ranking, "-o", merged)
    return merged


@pytest.mark.parametrize("method", ["kd", "rl"])
def test_a_retriever_trained_by_a_models_feedback_ranks(files, llama, tmp_path, method):
    given = ("-q", files / "merged-bm25.json", "--profile-size", 3)
    made = run("ropg", "feedback", *TASK, *given, "--model", llama, *SHORT, "-o", tmp_path / "items")
    learnt = ("--questions", files / "merged-bm25.json", "--feedback", made["feedback"], "--encoder", files / "encoder")
    trained = run("ropg", f"train-{method}", *TASK, *learnt, *TRAINING, "-o", tmp_path / "trained")
    assert trained["questions"] == 4 and trained["without_enough_feedback"] == 0
    merged = json.loads(rank_and_merge(files, tmp_path / "trained").read_text())
    assert [len(question["profile"]) for question in merged] == [4] * 4


@pytest.mark.parametrize("mode", ["pre", "post"])
def test_a_selector_trained_by_a_models_feedback_predicts_one_of_its_answers(files, llama, tmp_path, mode):
    pool = []
    for name, items in (("none", 0), ("bm25", 1)):
        given = ("-q", files / "merged-bm25.json", "-k", items)
        run("rspg", "feedback", *TASK, *given, "--model", llama, *SHORT, "-o", tmp_path / name)
        pool += ["--pool", f"{name}={tmp_path / name}"]
    run("rspg", "data", *pool, "-o", tmp_path / "data.json")
    learnt = ("--data", tmp_path / "data.json", "--encoder", files / "encoder", "--mode", mode)
    run("rspg", "train", *learnt, *TRAINING, "-o", tmp_path / "selector")
    asked = ("--data", tmp_path / "data.json", "--selector", tmp_path / "selector", "--threads", 1)
    predicted = run("rspg", "predict", *TASK, *asked, "-o", tmp_path / "predictions.json")

    scored = run("lamp", "score", "--golds", files / "outputs.json", "--preds", tmp_path / "predictions.json")
    assert scored["LaMP-5"]["scores"]["rouge-1"] == pytest.approx(predicted["selected"])

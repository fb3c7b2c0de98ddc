"""Every task from questions to scores, by commands: ranked, merged, answered and scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error
from typer.testing import CliRunner

from cogenesis.lamp import app
from personalization.lamp.tasks import LAMP_TASKS, Judging
from tests.support.datasets import Dataset
from tests.support.lamp_data import golds, questions
from tests.support.personal_data import write_json

QUICK = ("--max-new-tokens", 6, "--threads", 1)


def run(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def judged_by_others(task, expected, predicted):
    """Compute the task's main score with rouge_score or scikit-learn."""
    known = LAMP_TASKS[task]
    if known.judging is Judging.TEXT:
        scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
        found = [scorer.score(gold, answer) for gold, answer in zip(expected, predicted, strict=True)]
        return {
            "rouge-1": np.mean([score["rouge1"].fmeasure for score in found]),
            "rouge-l": np.mean([score["rougeL"].fmeasure for score in found]),
        }
    if known.judging is Judging.LABEL:
        classes = [known.labels.index(gold) for gold in expected]
        answers = [known.labels.index(answer) if answer in known.labels else -1 for answer in predicted]
        every = list(range(len(known.labels)))
        f1 = f1_score(classes, answers, labels=every, average="macro", zero_division=0)
        return {"accuracy": accuracy_score(classes, answers), "f1": f1}
    stars = [float(gold) for gold in expected]
    worst = [1.0 if abs(star - 1) > abs(star - 5) else 5.0 for star in stars]
    numbers = [float(a) if a.isascii() and a.isdecimal() else w for a, w in zip(predicted, worst, strict=True)]
    return {"mae": mean_absolute_error(stars, numbers)}


def chain(task: str, source: Path, outputs: Path, out: Path, *options, items: int = 2) -> dict[str, float]:
    """Rank, merge, evaluate and score; the result must equal the outside scores."""
    ranking, merged, answers = out / "ranking.json", out / "merged.json", out / "answers"
    run("rank", "--task", task, "-q", source, "-o", ranking)
    run("merge", "-q", source, "--outputs", outputs, "--ranking", ranking, "-o", merged)
    evaluated = run("evaluate", "--task", task, "-q", merged, "-k", items, "-o", answers, *options)
    scored = run("score", "--task", task, "--golds", outputs, "--preds", answers / "predictions.json")
    scores = scored[task]["scores"]
    assert scores == evaluated["scores"]
    expected, predicted = (
        {gold["id"]: gold["output"] for gold in json.loads(path.read_text())["golds"]}
        for path in (outputs, answers / "predictions.json")
    )
    others = judged_by_others(task, list(expected.values()), [predicted[identity] for identity in expected])
    assert {name: scores[name] for name in others} == pytest.approx(others, abs=1e-9)
    return scores


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("LaMP-1", "llama"),
        ("LaMP-2", "llama"),
        ("LaMP-2-news", "t5"),
        ("LaMP-3", "t5"),
        ("LaMP-4", "llama"),
        ("LaMP-5", "t5"),
        ("LaMP-6", "llama"),
        ("LaMP-7", "t5"),
    ],
)
def test_a_task_goes_from_questions_to_scores(task, kind, request, tmp_path):
    source = write_json(tmp_path / "questions.json", questions(task))
    outputs = write_json(tmp_path / "outputs.json", golds(task))
    chain(task, source, outputs, tmp_path, "-m", request.getfixturevalue(kind), *QUICK)


def test_a_model_that_learnt_the_answers_gives_them(llama, tmp_path):
    """From training to scores: the output of each command is the input of the next."""
    source = write_json(tmp_path / "questions.json", questions("LaMP-2"))
    outputs = write_json(tmp_path / "outputs.json", golds("LaMP-2"))
    merged, tuned = tmp_path / "gold.json", tmp_path / "tuned"
    run("merge", "-q", source, "--outputs", outputs, "-o", merged)
    hard = ("--epochs", 12, "--rate", 1e-2, "--batch", 4, "--threads", 1)
    trained = run("train", "--task", "LaMP-2", "-q", merged, "-m", llama, "-k", 0, "-o", tuned, *hard)
    assert trained["losses"][-1] < 0.1 < trained["losses"][0]
    scores = chain(
        "LaMP-2", source, outputs, tmp_path, "-m", tuned, "--max-prompt-tokens", 256, "--threads", 1, items=0
    )
    assert scores["accuracy"] == 1.0


@pytest.fixture(scope="module")
def first_questions(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first questions of LaMP-5's development set, and what they should be answered."""
    directory = tmp_path_factory.mktemp("first")
    asked = dataset.read("lamp/LaMP_5/dev_questions.json")[:2]
    answers = dataset.read("lamp/LaMP_5/dev_outputs.json")
    return (
        write_json(directory / "questions.json", asked),
        write_json(directory / "outputs.json", {**answers, "golds": answers["golds"][:2]}),
    )


def test_the_real_model_writes_titles_of_papers_from_the_bundle_that_ships(first_questions, bundle_keep, tmp_path):
    scores = chain("LaMP-5", *first_questions, tmp_path, "-b", bundle_keep, "--max-new-tokens", 16, "--threads", 1)
    assert 0.1 < scores["rouge-1"] < 1

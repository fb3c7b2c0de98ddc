"""`lamp compare`: one command from questions to a table, and its numbers are those of the single commands."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from cogenesis.lamp import app
from edge_runtime.errors import CogenesisError
from personalization.errors import SettingsError
from tests.support.lamp_data import golds, questions
from tests.support.personal_data import write_json

QUICK = ("--max-new-tokens", 6, "--threads", 1, "--beams", 1)


def run(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if isinstance(result.exception, CogenesisError):
        return "", result.exception
    assert result.exception is None, result.exception
    return result.stdout, None


@pytest.fixture
def files(tmp_path):
    source = write_json(tmp_path / "questions.json", questions("LaMP-4", 6))
    return source, write_json(tmp_path / "outputs.json", golds("LaMP-4", 6))


def test_the_table_says_what_the_single_commands_say(llama, files, tmp_path):
    source, outputs = files
    command = ("compare", "--task", "LaMP-4", "-q", source, "--outputs", outputs, "-m", llama, "-o", tmp_path / "c")
    options = ("-k", 2, "-k", 1, "--ranker", "bm25", "--ranker", "recency", *QUICK)
    table, error = run(*command, *options)
    assert error is None
    names = ["no profile", "bm25, k = 1", "bm25, k = 2", "recency, k = 1", "recency, k = 2"]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == names
    assert (tmp_path / "c" / "table.md").read_text() == table
    written = json.loads((tmp_path / "c" / "comparison.json").read_text())["systems"]
    assert [one["system"] for one in written] == names
    # The same by rank, merge, evaluate and score.
    ranking, merged = tmp_path / "r.json", tmp_path / "m.json"
    run("rank", "--task", "LaMP-4", "-q", source, "--ranker", "recency", "-o", ranking)
    run("merge", "-q", source, "--outputs", outputs, "--ranking", ranking, "-o", merged)
    for items in (0, 2):
        evaluate = ("evaluate", "--task", "LaMP-4", "-q", merged, "-m", llama, "-k", items, *QUICK)
        assert run(*evaluate, "-o", tmp_path / f"e{items}")[1] is None
    compared = ("--preds", tmp_path / "e2/predictions.json", "--against", tmp_path / "e0/predictions.json")
    single = json.loads(run("score", "--task", "LaMP-4", "--golds", outputs, *compared, "--json")[0])["LaMP-4"]
    assert written[4]["scores"] == single["scores"]
    assert written[4]["against"] == single["against"]
    assert "against" not in written[0]
    for cell in (f"{single['scores']['rouge-l']:.4f}", f"{single['against']['rouge-1']['p']:.4f}"):
        assert cell in table.splitlines()[-1]
    # A run that is begun again has nothing left to answer.
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("c/*/answers.jsonl")}
    assert len(done) == 5
    again = CliRunner().invoke(app, [*map(str, (*command, *options, "--json"))])
    assert again.stderr == ""
    assert json.loads(again.stdout)["systems"] == written


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-k", 3, "--ranker", "hybrid"), "hybrid needs an encoder.*lamp rank"),
        (("--max-length", 90, "--force"), ""),
        (("--max-length", 90), "max_length 80, now 90"),
    ],
)
def test_other_settings_need_force(llama, files, tmp_path, options, words):
    source, outputs = files
    command = ("compare", "--task", "LaMP-4", "-q", source, "--outputs", outputs, "-m", llama, "-o", tmp_path / "c")
    assert run(*command, "-k", 1, "--limit", 2, "--max-length", 80, *QUICK)[1] is None
    _, error = run(*command, "-k", 1, "--limit", 2, *QUICK, *options)
    assert (error is None) == (not words)
    if words:
        assert isinstance(error, SettingsError)
        assert re.search(words, str(error))

"""`cogenesis lamp rank` and `merge` as a user runs them: all tasks and rankers, interruptions, mismatched files."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from cogenesis.lamp import app
from edge_runtime.errors import CogenesisError
from personalization.errors import DataError, PersonalizationError, SettingsError
from personalization.lamp import ranking as lamp_ranking
from personalization.lamp.outputs import read_outputs
from personalization.lamp.questions import QuestionFile
from personalization.lamp.rankers import RankerName
from personalization.lamp.ranking import read_ranking
from personalization.lamp.tasks import LAMP_TASKS
from tests.support.commands import ROOT, run_cogenesis
from tests.support.lamp_data import golds, questions
from tests.support.personal_data import write_json
from tests.support.tiny_encoders import make_encoder

DENSE = (RankerName.DENSE, RankerName.HYBRID, RankerName.MIXED)


def run(*arguments):
    """Run a command in this process; return its JSON, or the error message."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if isinstance(result.exception, CogenesisError):
        raise result.exception
    assert result.exception is None, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture
def file(tmp_path):
    return write_json(tmp_path / "questions.json", questions("LaMP-5", count=40))


@pytest.mark.parametrize("task", LAMP_TASKS)
def test_each_tasks_profiles_are_ranked_and_merged(tmp_path, task):
    asked = write_json(tmp_path / "questions.json", questions(task))
    gold = write_json(tmp_path / "outputs.json", golds(task))
    ranking, merged = tmp_path / "ranking.json", tmp_path / "merged.json"
    done = run("rank", "--task", task, "-q", asked, "-o", ranking)
    assert done == {"out": str(ranking), "questions": 4, "ranker": "bm25"}
    assert run("merge", "-q", asked, "--outputs", gold, "--ranking", ranking, "-o", merged)["questions"] == 4
    orders, outputs = json.loads(ranking.read_text()), read_outputs(gold).by_id
    before = {body["id"]: body for body in questions(task)}
    for body in json.loads(merged.read_text()):
        profile, output = body.pop("profile"), body.pop("output")
        assert [item["id"] for item in profile] == orders[body["id"]]
        assert sorted(map(str, profile)) == sorted(map(str, before[body["id"]].pop("profile")))
        assert output == outputs[body["id"]]
        assert body == before[body["id"]]
    assert [question.output for question in QuestionFile(merged, LAMP_TASKS[task])] == list(outputs.values())


@pytest.mark.parametrize("ranker", RankerName)
def test_every_ranker_gives_each_question_its_own_items(tmp_path, file, encoder, ranker):
    more = ("--encoder", encoder) if ranker in DENSE else ()
    run("rank", "--task", "LaMP-5", "-q", file, "-o", tmp_path / "r.json", "--ranker", ranker, *more)
    found = read_ranking(tmp_path / "r.json")
    assert list(found) == [str(number) for number in range(40)]
    assert all(sorted(items) == [f"{number}{place}" for place in range(4)] for number, items in found.items())


def test_an_encoders_directory_is_a_ranker(tmp_path, file, encoder):
    for name, options in {"one": ("contriever", "--encoder", encoder), "other": (encoder,)}.items():
        run("rank", "--task", "LaMP-5", "-q", file, "-o", tmp_path / name, "--ranker", *options)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--ranker", "bm42"), r"no ranker 'bm42'.*bm25, contriever, recency, random, hybrid, mixed"),
        (("--ranker", "hybrid"), r"--ranker hybrid needs --encoder DIR"),
        (("--ranker", "bm25", "--encoder", "."), "bm25 takes no --encoder"),
        (("--ranker", ".", "--encoder", "."), "names an encoder already"),
        (("--workers", 2), "Set --runner to ray"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, file, options, problem):
    with pytest.raises(PersonalizationError, match=problem):
        run("rank", "--task", "LaMP-5", "-q", file, "-o", tmp_path / "r.json", *options)
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_leaves_nothing_that_another_run_would_stumble_over(tmp_path, file):
    for task in ("LaMP-1", "LaMP-3"):
        with pytest.raises(PersonalizationError, match=rf"3 of 3 parts.* of {task}"):
            run("rank", "--task", task, "-q", file, "-o", tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == [file]


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path, file):
    arguments = ["--task", "LaMP-5", "-q", file, "--ranker", "random", "--seed", 3]
    run("rank", *arguments, "-o", tmp_path / "whole.json")
    out, journal = tmp_path / "killed.json", tmp_path / "killed.json.journal"
    slow = (
        "import time\n"
        "from personalization.lamp import ranking as lamp_ranking\n"
        "rank = lamp_ranking.ProfileRanker.__call__\n"
        "def slowly(self, job):\n"
        "    if job.start: time.sleep(600)\n"
        "    return rank(self, job)\n"
        "lamp_ranking.ProfileRanker.__call__ = slowly\n"
        f"import sys; sys.argv = {['cogenesis', 'lamp', 'rank', *map(str, arguments), '-o', str(out)]}\n"
        "from cogenesis.cli import main; main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], cwd=ROOT)
    while not (journal.exists() and journal.read_bytes().count(b"\n") == 2):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not out.exists()
    with pytest.raises(SettingsError, match=r"other settings.*ranker random, now bm25"):
        run("rank", "--task", "LaMP-5", "-q", file, "-o", out)
    ranked = []
    with pytest.MonkeyPatch.context() as patch:
        rank = lamp_ranking.ProfileRanker.__call__
        patch.setattr(lamp_ranking.ProfileRanker, "__call__", lambda self, job: ranked.append(job) or rank(self, job))
        run("rank", *arguments, "-o", out)
    assert ranked == [range(16, 32), range(32, 40)]
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not journal.exists()


def test_the_command_line_says_in_one_line_what_is_wrong(tmp_path):
    done = run_cogenesis("lamp", "rank", "--task", "LaMP-5", "-q", tmp_path / "no.json", "-o", tmp_path / "r.json")
    assert (done.returncode, done.stdout) == (9, "")
    assert re.fullmatch(r"error: There is no such file: .*no\.json\. Check its name\.\n", done.stderr)


def merge(tmp_path, asked, ranking=None, outputs=None):
    options = []
    if ranking is not None:
        options += ["--ranking", write_json(tmp_path / "ranking.json", ranking)]
    if outputs is not None:
        rows = [{"id": identity, "output": output} for identity, output in outputs.items()]
        options += ["--outputs", write_json(tmp_path / "outputs.json", {"task": "LaMP_7", "golds": rows})]
    run("merge", "-q", write_json(tmp_path / "asked.json", asked), *options, "-o", tmp_path / "merged.json")
    return json.loads((tmp_path / "merged.json").read_text())


def question(identity, *items, **more):
    return {"id": identity, "input": "a: b", "profile": [{"id": item} for item in items], **more}


def test_merging_keeps_what_it_does_not_know(tmp_path):
    body = question(1, "a", 2, user_id=7, more={"x": [1.5, None, "é漢\ud800"]})
    [found] = merge(tmp_path, [body], {"1": ["2", "a"]}, {"1": "é"})
    assert found == body | {"profile": [{"id": 2}, {"id": "a"}], "output": "é"}


def test_ranking_and_outputs_may_each_be_left_out(tmp_path):
    assert merge(tmp_path, [question("1", "a", "b")], {"1": ["b", "a"]}) == [question("1", "b", "a")]
    assert merge(tmp_path, [question("1", "a")], outputs={"1": "x"}) == [question("1", "a", output="x")]
    assert merge(tmp_path, [], {}) == []
    with pytest.raises(SettingsError, match="nothing to merge"):
        merge(tmp_path, [])


def test_items_that_share_an_id_stay_in_their_order(tmp_path):
    body = question("1", "a", "b", "a") | {"profile": [{"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}]}
    [found] = merge(tmp_path, [body], {"1": ["a", "a", "b"]})
    assert [item["n"] for item in found["profile"]] == [1, 3, 2]


@pytest.mark.parametrize(
    ("asked", "ranking", "outputs", "problem"),
    [
        ([question("1", "a")], {"2": ["a"]}, None, "'1' comes twice, or is not in .*ranking.json"),
        ([question("1", "a")], None, {"2": "x"}, "'1' comes twice, or is not in .*outputs.json"),
        ([question("1", "a")] * 2, {"1": ["a"]}, None, "'1' comes twice"),
        ([question("1", "a")], {"1": ["a"], "2": []}, None, "ranking.json is of other questions.* 1 more, .*'2'"),
        ([question("1", "a", "b")], {"1": ["a"]}, None, "other items than the profile of question '1'"),
        ([question("1", "a", "b")], {"1": ["a", "a"]}, None, "other items than the profile of question '1'"),
        ([question("1", "a")], {"1": ["b"]}, None, "other items than the profile of question '1'"),
        ([question("1", "a")], {"1": "a"}, None, "not a ranking: .*lists of ids"),
        ([question("1", "a")], [], None, "not a ranking"),
        ([{"id": "1"}], {"1": []}, None, "question '1' has no 'profile'"),
        ([{"profile": []}], {"1": []}, None, "question 1 has no 'id'"),
    ],
)
def test_files_that_do_not_belong_together_are_named(tmp_path, asked, ranking, outputs, problem):
    with pytest.raises(DataError, match=problem):
        merge(tmp_path, asked, ranking, outputs)
    assert not (tmp_path / "merged.json").exists()

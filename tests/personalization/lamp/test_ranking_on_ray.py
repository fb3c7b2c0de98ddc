"""Profiles ranked on a real cluster are ranked as here, byte for byte."""

from __future__ import annotations

from personalization.jobs.runners import LocalRunner, RayRunner
from personalization.lamp.questions import QuestionFile
from personalization.lamp.rankers import RankerName
from personalization.lamp.ranking import RankingSpec, rank_profiles
from personalization.lamp.tasks import LAMP_TASKS
from tests.support.lamp_data import questions
from tests.support.personal_data import write_json


def test_two_workers_write_the_ranking_that_this_process_writes(tmp_path, ray_cluster):
    file = write_json(tmp_path / "questions.json", questions("LaMP-5", count=70))
    spec = RankingSpec(QuestionFile(file, LAMP_TASKS["LaMP-5"]), RankerName.BM25)
    for name, runner in (("here", LocalRunner()), ("there", RayRunner(workers=2, threads=1))):
        rank_profiles(spec, tmp_path / name, runner, report=lambda *_: None)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()

"""Questions that are answered on a real cluster get the answers that they get here, byte for byte."""

from __future__ import annotations

from pathlib import Path

from export.model.hf_source import hf_provenance
from personalization.answering.writer import WriterSpec
from personalization.jobs.runners import LocalRunner, RayRunner, Runner
from personalization.lamp.answers import AnswerPlan, answer_all
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import with_first_items
from personalization.lamp.tasks import LAMP_TASKS
from tests.support.lamp_data import merged_file


def test_two_workers_leave_the_files_that_one_run_here_leaves(llama, tmp_path, ray_cluster):
    questions = QuestionFile(merged_file(tmp_path, "LaMP-5", count=6), LAMP_TASKS["LaMP-5"])
    asked = with_first_items(questions, None, 2, own_adapter=False)
    identity = hf_provenance(llama).sha256
    writer = WriterSpec(llama, identity, is_bundle=False, most_tokens=6, beams=2, threads=1)
    plan = AnswerPlan("LaMP-5", writer, max_length=100, batch=2)
    runners: dict[str, Runner] = {"here": LocalRunner(), "there": RayRunner(workers=2, threads=1)}
    answers = {
        name: answer_all(asked, plan, runner, Path(tmp_path, name), report=lambda *_: None)
        for name, runner in runners.items()
    }
    assert answers["there"] == answers["here"]
    assert (tmp_path / "there/answers.jsonl").read_bytes() == (tmp_path / "here/answers.jsonl").read_bytes()

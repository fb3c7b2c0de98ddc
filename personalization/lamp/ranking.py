"""Ranks every profile of a questions file, and reads and writes what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edge_runtime.files.whole_file import whole_file
from personalization.errors import DataError
from personalization.files.json_file import read_json
from personalization.jobs.journal import Journal, run_remaining
from personalization.jobs.runners import Runner
from personalization.lamp.questions import QuestionFile
from personalization.lamp.rankers import RankerName, ranker_of, searched
from personalization.models.libraries import prepare_libraries

QUESTIONS_A_JOB = 16
"""Large enough to fill the encoder's batches, small enough that little is lost where a run is killed."""


@dataclass(frozen=True, slots=True)
class RankingSpec:
    """What a ranker is made of; it travels to other processes.

    Attributes:
        questions: whose profiles are ranked; the file is the same on every machine.
        ranker: how.
        encoder: directory of the text encoder, for rankers that need one, the same on every machine.
        encoder_sha256: of its weights.
        use_date: whether documents end in their dates.
        seed: of what is random.
        batch: texts that go through the encoder together.
        device: where it runs, "cpu" or "cuda".
        threads: of the processor.
    """

    questions: QuestionFile
    ranker: RankerName
    encoder: Path | None = None
    encoder_sha256: str = ""
    use_date: bool = False
    seed: int = 0
    batch: int = 32
    device: str = "cpu"
    threads: int = 1

    def document(self) -> dict[str, Any]:
        """What the result depends on, as JSON."""
        body: dict[str, Any] = {
            "task": self.questions.task.name,
            "questions": self.questions.sha256,
            "ranker": str(self.ranker),
            "use_date": self.use_date,
        }
        if self.ranker is RankerName.RANDOM:
            body["seed"] = self.seed
        if self.ranker.needs_encoder:
            body |= {"encoder": self.encoder_sha256, "batch": self.batch, "device": self.device}
            body["threads"] = self.threads
        return body


class ProfileRanker:
    """Ranks profiles; what it gives does not depend on what it ranked before."""

    def __init__(self, spec: RankingSpec) -> None:
        """Load what is needed.

        Raises:
            CogenesisError: the encoder can't be loaded.
        """
        self._spec = spec
        encoder = None
        if spec.ranker.needs_encoder and spec.encoder is not None:
            prepare_libraries()
            import torch

            from personalization.models.text_encoder import Encoder

            torch.set_num_threads(spec.threads)
            encoder = Encoder.load(spec.encoder, spec.device)
        self._rank = ranker_of(spec.ranker, encoder=encoder, batch=spec.batch, seed=spec.seed)

    def __call__(self, job: range) -> list[tuple[str, list[str]]]:
        """Rank the profiles of some questions.

        Args:
            job: their places in the file.

        Returns:
            Of each the question's id and the ids of its items, best first.

        Raises:
            DataError: a question is not of the task's form, or an item lacks what the ranker needs.
        """
        spec = self._spec
        asked = [searched(spec.questions.task, spec.questions[index], use_date=spec.use_date) for index in job]
        return [
            (one.question.id, [one.question.profile[place].id for place in order])
            for one, order in zip(asked, self._rank(asked), strict=True)
        ]


def rank_profiles(
    spec: RankingSpec,
    out: Path,
    runner: Runner,
    *,
    force: bool = False,
    report: Callable[[int, int], None],
) -> None:
    """Rank every profile and write the ranking; a run that was killed goes on where it was.

    Args:
        spec: which questions, and how.
        out: where the ranking goes. What is done so far is beside it, in `OUT.journal`, until all is.
        runner: where to run.
        force: begin anew where there is an unfinished run with other settings.
        report: called with questions that are done in this call, and those to be done.

    Raises:
        SettingsError: there is an unfinished run with other settings.
        PersonalizationError: some questions can't be ranked; all others are, and are kept.
        WriteError: the ranking can't be written.
    """
    size = len(spec.questions)
    jobs = {
        number: range(start, min(start + QUESTIONS_A_JOB, size))
        for number, start in enumerate(range(0, size, QUESTIONS_A_JOB))
    }
    journal = Journal(out.with_name(f"{out.name}.journal"), spec.document(), force=force)
    try:
        run_remaining(partial(ProfileRanker, spec), jobs, runner, journal, report)
    finally:
        if not journal.results:  # nothing to go on with
            journal.path.unlink(missing_ok=True)
    write_ranking(out, {identity: items for number in jobs for identity, items in journal.results[number]})
    journal.path.unlink(missing_ok=True)


def read_ranking(path: Path | str) -> dict[str, list[str]]:
    """Read `{question id: [item ids, best first]}`.

    Raises:
        DataError: the file is not of this form.
    """
    body = read_json(path)
    if not isinstance(body, dict) or not all(
        isinstance(items, list) and all(isinstance(item, str | int) for item in items) for items in body.values()
    ):
        raise DataError(
            f"This is not a ranking: {path}. It must be an object of lists of ids, as `cogenesis lamp rank` writes it."
        )
    return {identity: [str(item) for item in items] for identity, items in body.items()}


def write_ranking(path: Path, ranking: Mapping[str, list[str]]) -> None:
    """Write a ranking, a line a question, at once or not at all.

    Raises:
        WriteError: it can't be written.
    """
    with whole_file(path) as file:
        separator = "{\n"
        for identity, items in ranking.items():
            file.write(f"{separator}{json.dumps(identity)}: {json.dumps(items)}")
            separator = ",\n"
        file.write("\n}\n" if ranking else "{}\n")

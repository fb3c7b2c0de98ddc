"""Ranks every profile of a questions file, and reads and writes rankings."""

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
"""Large enough to fill the encoder's batches, small enough to lose little when a run is killed."""


@dataclass(frozen=True, slots=True)
class RankingSpec:
    """The parameters of a ranker; they are sent to other processes.

    Attributes:
        questions: questions whose profiles to rank; the file has the same path on every machine.
        ranker: how to rank.
        encoder: directory of the text encoder, for rankers that need one; the same path on every machine.
        encoder_sha256: digest of the encoder's weights.
        use_date: whether documents end with their dates.
        seed: seed of the random order.
        batch: number of texts per batch of the encoder.
        device: device of the encoder, "cpu" or "cuda".
        threads: number of CPU threads.
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
        """Return everything that the result depends on, as JSON."""
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
    """Ranks profiles; each result is independent of those before it."""

    def __init__(self, spec: RankingSpec) -> None:
        """Load the encoder if the ranker needs one.

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
            job: indices of the questions in the file.

        Returns:
            For each question its id and the ids of its items, best first.

        Raises:
            DataError: a question does not have the task's form, or an item lacks data that the ranker needs.
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
    """Rank every profile and write the ranking; a killed run can be resumed.

    Args:
        spec: which questions to rank, and how.
        out: output file. Finished parts are kept beside it in `OUT.journal` until the ranking is complete.
        runner: where to run.
        force: start over if there is an unfinished run with other settings.
        report: called with the number of finished jobs, including earlier runs, and of all jobs.

    Raises:
        SettingsError: there is an unfinished run with other settings, and `force` is not set.
        PersonalizationError: some questions can't be ranked; all others are ranked and kept.
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
        if not journal.results:  # nothing to resume
            journal.path.unlink(missing_ok=True)
    write_ranking(out, {identity: items for number in jobs for identity, items in journal.results[number]})
    journal.path.unlink(missing_ok=True)


def read_ranking(path: Path | str) -> dict[str, list[str]]:
    """Read `{question id: [item ids, best first]}`.

    Raises:
        DataError: the file has another format.
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
    """Write a ranking atomically, one question per line.

    Raises:
        WriteError: the ranking can't be written.
    """
    with whole_file(path) as file:
        separator = "{\n"
        for identity, items in ranking.items():
            file.write(f"{separator}{json.dumps(identity)}: {json.dumps(items)}")
            separator = ",\n"
        file.write("\n}\n" if ranking else "{}\n")

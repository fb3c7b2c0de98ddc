"""Scores reference answers with edge and cloud, record by record, and writes one log-prob file for all of them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import ContextOverflowError, TokenizerMismatchError
from edge_runtime.files.whole_file import write_whole_file
from edge_runtime.fusion.sparse import RowFormat
from personalization.collab.logprobs.cut import AnswerRows, cut_rows
from personalization.collab.logprobs.file import FORMAT, LogProbs, LogProbsOf, decode_logprobs, encode_logprobs, joined
from personalization.collab.logprobs.model_spec import BridgeSpec, ModelSpec
from personalization.collab.logprobs.open_scorer import open_scorer
from personalization.collab.logprobs.scorer import BridgeRows, CloudRows, LocalCloudRows
from personalization.collab.records.records import CollabRecord, Skipped, records_digest
from personalization.errors import DataError
from personalization.jobs.journal import run_shard
from personalization.jobs.runners import Runner
from personalization.jobs.shard import Shard

LOGPROBS_NAME = "rows.logprobs"


@dataclass(frozen=True, slots=True)
class LogProbPlan:
    """Which models score, and how; it is sent to other processes.

    Attributes:
        edge: the model that sees the private context.
        cloud: the model that sees only the public instruction.
        rows: how the cloud's rows are truncated and encoded.
        edge_top: number of the edge's likeliest tokens to keep in a row.
        without_context: whether the edge also scores without the context.
        most_tokens: maximum number of tokens per answer; longer answers are truncated.
    """

    edge: ModelSpec
    cloud: ModelSpec | BridgeSpec
    rows: RowFormat
    edge_top: int = 32
    without_context: bool = False
    most_tokens: int = 512

    def document(self, records: Sequence[CollabRecord]) -> dict[str, Any]:
        """Return everything that the log-probs depend on, as JSON."""
        return {
            "format": FORMAT,
            "edge": self.edge.identity,
            "cloud": _name(self.cloud),
            "rows": asdict(self.rows),
            "edge_top": self.edge_top,
            "without_context": self.without_context,
            "most_tokens": self.most_tokens,
            "threads": self.edge.threads,
            "device": self.edge.device,
            "records": records_digest(records),
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """The result: the file's `path`, its `rows`, and the records that could not be scored."""

    path: Path
    rows: LogProbs
    skipped: tuple[Skipped, ...]


class LogProbWorker:
    """Scores records in a worker process that holds both models. Importing it loads no torch."""

    def __init__(self, plan: LogProbPlan) -> None:
        """Load the models.

        Raises:
            TokenizerMismatchError: the models have different vocabularies.
            CogenesisError: a model can't be loaded.
        """
        self._plan = plan
        self._edge = open_scorer(plan.edge)
        self._cloud: CloudRows
        if isinstance(plan.cloud, BridgeSpec):
            self._cloud = BridgeRows(plan.cloud, plan.rows, self._edge.tokenizer)
        else:
            scorer = open_scorer(plan.cloud, for_cloud=True)
            if scorer.tokenizer.fingerprint != self._edge.tokenizer.fingerprint:
                raise TokenizerMismatchError(
                    f"The models have different vocabularies, so their tokens can't be fused: {plan.edge.source} and "
                    f"{plan.cloud.source}. Use models of one family."
                )
            self._cloud = LocalCloudRows(scorer, plan.rows)
        self._about = LogProbsOf(
            plan.edge.identity,
            plan.edge.base,
            _name(plan.cloud),
            self._edge.known.size,
            plan.rows,
            plan.edge_top,
            plan.without_context,
        )

    def __call__(self, record: CollabRecord) -> dict[str, str]:
        """Score a record.

        Returns:
            `rows`, a log-prob file in base85, or why the record is `skipped`.

        Raises:
            CogenesisError: the cloud can't be asked.
        """
        answer = self._edge.tokenizer.encode(record.reference)[: self._plan.most_tokens]
        if not answer:
            return {"skipped": "its reference has no tokens"}
        try:
            rows = self.score(record, answer)
        except ContextOverflowError as error:
            return {"skipped": str(error)}
        return {"rows": base64.b85encode(encode_logprobs(rows)).decode()}

    def score(self, record: CollabRecord, answer: Sequence[int]) -> LogProbs:
        """Score any answer to a record's task.

        Raises:
            ContextOverflowError: task and answer don't fit into a model's context.
            CloudError: the cloud can't be asked.
        """
        edge = self._edge.score(record.instruction, record.device_context, answer)
        without = self._edge.score(record.instruction, None, answer) if self._plan.without_context else None
        cloud, cloud_target = self._cloud.rows(record.instruction, answer)
        rows = AnswerRows(np.array(answer, np.int32), edge, cloud, cloud_target, without)
        return cut_rows(rows, self._about, record.id, record.user)


def score_records(
    records: Sequence[CollabRecord],
    plan: LogProbPlan,
    runner: Runner,
    out: Path,
    *,
    shard: Shard | None = None,
    force: bool = False,
    report: Callable[[int, int], None],
) -> Scored | None:
    """Score records, except those that an earlier run has scored, and write the file when all are scored.

    Args:
        records: records whose references are scored.
        plan: which models score, and how.
        runner: where to run.
        out: directory for the file and for the partial results.
        shard: the part of the records to score; None for all.
        force: start over if an earlier run was a different one.
        report: called after each record with the number of finished records and of all records.

    Returns:
        The result; None while records of other shards are missing.

    Raises:
        SettingsError: an earlier run was a different one, and `force` is not set.
        DataError: no record could be scored.
        PersonalizationError: the models or the runner can't be used.
        WriteError: the file can't be written.
    """
    results = run_shard(
        partial(LogProbWorker, plan),
        dict(enumerate(records)),
        runner,
        out,
        "logprobs",
        plan.document(records),
        shard=shard or Shard(),
        force=force,
        report=report,
    )
    if results is None:
        return None
    skipped = tuple(
        Skipped(f"record '{records[number].id}'", results[number]["skipped"])
        for number in sorted(results)
        if "skipped" in results[number]
    )
    parts = [_decoded(results[number]) for number in sorted(results) if "rows" in results[number]]
    if not parts:
        raise DataError(f"No record could be scored. The first: {skipped[0].where}, {skipped[0].reason}")
    rows = joined(parts)
    path = out / LOGPROBS_NAME
    write_whole_file(path, encode_logprobs(rows))
    return Scored(path, rows, skipped)


def _decoded(result: dict[str, str]) -> LogProbs:
    return decode_logprobs(base64.b85decode(result["rows"]))


def _name(cloud: ModelSpec | BridgeSpec) -> str:
    return cloud.model if isinstance(cloud, BridgeSpec) else cloud.identity

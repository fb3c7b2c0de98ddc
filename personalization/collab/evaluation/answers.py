"""Answers records' tasks with one system on the edge runtime, as a device would, and records each answer's cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edge_runtime.assistant import Assistant, load
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.cloud import Cloud
from edge_runtime.errors import CloudUnavailableError
from edge_runtime.fusion.fuse import Strategy
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.generation.options import Mode, Options
from edge_runtime.generation.sampling import Sampling
from edge_runtime.generation.schedule import LearnedSchedule
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger
from personalization.collab.evaluation.systems import System, Writer, file_stem
from personalization.collab.records.records import CollabRecord, records_digest
from personalization.errors import SettingsError
from personalization.jobs.journal import Journal, run_remaining
from personalization.jobs.runners import LocalRunner

_MODES = {
    Writer.CLOUD: Mode.CLOUD,
    Writer.SKETCH: Mode.SKETCH,
    Writer.FUSED: Mode.FUSED,
}  # for all others, the device writes alone


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How answers are written, by any system.

    Attributes:
        most_tokens: maximum tokens of an answer.
        sampling: how a token is chosen; the default is the paper's temperature and top-p.
        policy: what the device may send besides the instruction.
        rows: how the cloud truncates and encodes its rows; None: see `Options`.
        threads: threads of the device's model; None uses one per core.
    """

    most_tokens: int = 256
    sampling: Sampling = field(default_factory=partial(Sampling, temperature=0.7, top_p=0.9))
    policy: Policy = Policy.GUARDED
    rows: RowFormat | None = None
    threads: int | None = None

    def options(self, system: System) -> Options:
        """Return the options of one answer."""
        return Options(
            max_new_tokens=self.most_tokens,
            sampling=self.sampling,
            fusion=system.fusion,
            schedule=system.schedule,
            rows=self.rows,
            policy=self.policy,
        )


@dataclass(frozen=True, slots=True)
class Models:
    """The models that can write.

    Attributes:
        edge: the device's bundle.
        cloud: a connection to the cloud; None if no system needs one.
        large: a bundle of the cloud's model, for the system in which it sees the private context; None if no system
            needs it.
    """

    edge: Path
    cloud: Cloud | None = None
    large: Path | None = None

    def of(self, system: System) -> Path:
        """Return the bundle that writes for a system on this machine.

        Raises:
            SettingsError: the bundle was not given.
        """
        if system.writer is Writer.CLOUD_WITH:
            if self.large is None:
                raise SettingsError(f"The system {system.name} needs a bundle of the cloud's model. Give `large`.")
            return self.large
        if system.writer in _MODES and self.cloud is None:
            raise SettingsError(f"The system {system.name} needs a cloud. Give `cloud`.")
        return self.edge


@dataclass(frozen=True, slots=True)
class CollabAnswer:
    """A system's answer and its cost.

    Attributes:
        text: the answer.
        tokens: number of tokens in it.
        seconds: time from the call to the last token.
        round_trips: replies of the cloud.
        bytes_up, bytes_down: message bytes to and from the cloud.
        fused_tokens: number of tokens chosen with a row of the cloud.
    """

    text: str = field(repr=False)
    tokens: int = 0
    seconds: float = 0.0
    round_trips: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    fused_tokens: int = 0


class SystemWriter:
    """Answers records for one system."""

    def __init__(self, system: System, models: Models, settings: AnswerSettings) -> None:
        """Load the system's model.

        Raises:
            CogenesisError: the model can't be loaded, or was not given.
        """
        self._system, self._cloud = system, models.cloud
        self._options = settings.options(system)
        self._assistant: Assistant = load(models.of(system), threads=settings.threads)

    def __call__(self, record: CollabRecord) -> dict[str, Any]:
        """Answer one record.

        Returns:
            A `CollabAnswer` as JSON.

        Raises:
            CogenesisError: the system could not answer the record in its own way.
        """
        # Clear the cache: its rows were computed in chunks of other lengths, which round differently.
        self._assistant.decoder.rewind(0)
        unaware = self._system.writer in (Writer.EDGE_WITHOUT, Writer.CLOUD)
        result = self._assistant.generate(
            record.instruction,
            None if unaware else record.device_context,
            mode=_MODES.get(self._system.writer, Mode.EDGE),
            cloud=self._cloud,
            options=self._options,
            ledger=Ledger(),
        ).finish()
        stats = result.stats
        if result.cloud_error or stats.interruptions:
            # An answer that the device finished alone belongs to another system.
            reason = result.cloud_error or "it was too slow for a while"
            raise CloudUnavailableError(f"The cloud fell away while '{record.id}' was answered: {reason}")
        return asdict(
            CollabAnswer(
                result.text.strip(),
                len(result.token_ids),
                stats.first_token_seconds + stats.decode_seconds,
                stats.round_trips,
                stats.bytes_up,
                stats.bytes_down,
                stats.fused_tokens,
            )
        )


def answer_records(
    records: Sequence[CollabRecord],
    system: System,
    models: Models,
    settings: AnswerSettings,
    directory: Path,
    *,
    force: bool = False,
    report: Callable[[int, int], None],
) -> tuple[CollabAnswer, ...]:
    """Answer records with a system, except those that an earlier run has answered.

    Args:
        records: records with context.
        system: the system that answers.
        models: the system's models.
        settings: how answers are written.
        directory: directory for the answers, with one file per system.
        force: whether to start over if an earlier run had other settings.
        report: called after each record with the number of finished records and the total.

    Returns:
        The answers, in the order of the records.

    Raises:
        SettingsError: an earlier run had other settings and `force` is not set, or a model is missing.
        PersonalizationError: some records could not be answered; the other answers are kept.
    """
    journal = Journal(
        directory / f"{file_stem(system.name)}.jsonl", _document(records, system, models, settings), force=force
    )
    make = partial(SystemWriter, system, models, settings)
    run_remaining(make, dict(enumerate(records)), LocalRunner(), journal, report)
    return tuple(CollabAnswer(**journal.results[number]) for number in range(len(records)))


def _document(
    records: Sequence[CollabRecord], system: System, models: Models, settings: AnswerSettings
) -> dict[str, Any]:
    """Return everything that the answers depend on, as JSON."""
    bundle = open_bundle(models.of(system), verify=False)
    cloud = models.cloud if system.writer in _MODES else None
    info = None if cloud is None else cloud.info(Gate(settings.policy, Ledger()).info())
    body: dict[str, Any] = {
        "system": system.name,
        "model": bundle.fingerprint(bundle.decoder(None)),
        "cloud": info and info.model,
        "most_tokens": settings.most_tokens,
        "sampling": asdict(settings.sampling),
        "threads": settings.threads,
        "records": records_digest(records),
    }
    if system.writer is not Writer.FUSED:
        return body
    # The bundle's combiner, if the system uses it; the decoder's fingerprint does not cover it.
    learned = system.fusion.strategy is Strategy.LEARNED or isinstance(system.schedule, LearnedSchedule)
    fitted = [one.sha256 for one in bundle.manifest.files if learned and one.path.startswith("fusion/")]
    rows = settings.rows and asdict(settings.rows)
    return body | {"fitted": fitted, "rows": rows, "policy": str(settings.policy)}

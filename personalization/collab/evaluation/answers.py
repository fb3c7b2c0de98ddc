"""Has records' tasks answered by one system on the edge runtime, just as a device would, and notes what each costs."""

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
}  # all others: the device alone


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How answers are written, whoever writes them.

    Attributes:
        most_tokens: of an answer.
        sampling: how a token is chosen; the paper's own temperature and top-p.
        policy: what may leave besides the instruction.
        rows: how the cloud cuts and codes its rows; None: see `Options`.
        threads: of the device's model; None: as many as there are cores.
    """

    most_tokens: int = 256
    sampling: Sampling = field(default_factory=partial(Sampling, temperature=0.7, top_p=0.9))
    policy: Policy = Policy.GUARDED
    rows: RowFormat | None = None
    threads: int | None = None

    def options(self, system: System) -> Options:
        """Settings of one answer."""
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
    """Who can write.

    Attributes:
        edge: the device's bundle.
        cloud: a connection to the cloud; None where no system needs one.
        large: a bundle of the cloud's model, for what only it would write if it could see the private context; None
            where no system needs it.
    """

    edge: Path
    cloud: Cloud | None = None
    large: Path | None = None

    def of(self, system: System) -> Path:
        """The bundle that writes for a system on this side.

        Raises:
            SettingsError: it was not given.
        """
        if system.writer is Writer.CLOUD_WITH:
            if self.large is None:
                raise SettingsError(f"The system {system.name} needs a bundle of the cloud's model. Give --large DIR.")
            return self.large
        if system.writer in _MODES and self.cloud is None:
            raise SettingsError(f"The system {system.name} needs a cloud. Give --cloud HOST:PORT.")
        return self.edge


@dataclass(frozen=True, slots=True)
class CollabAnswer:
    """What a system wrote, and what that cost.

    Attributes:
        text: the answer.
        tokens: of it.
        seconds: from the call to the last token.
        round_trips: replies of the cloud.
        bytes_up, bytes_down: of messages to and from the cloud.
        fused_tokens: in which the cloud had a part.
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
        """Load what writes.

        Raises:
            CogenesisError: it can't be loaded, or was not given.
        """
        self._system, self._cloud = system, models.cloud
        self._options = settings.options(system)
        self._assistant: Assistant = load(models.of(system), threads=settings.threads)

    def __call__(self, record: CollabRecord) -> dict[str, Any]:
        """Answer one record.

        Returns:
            A `CollabAnswer` as JSON.

        Raises:
            CogenesisError: it could not be answered as the system should.
        """
        # What is in the cache was computed in parts of other lengths, which round otherwise.
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
            # An answer that the device finished alone is another system's.
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
    """Have records answered by a system, those excepted that an earlier run has answered.

    Args:
        records: with context.
        system: who answers.
        models: what it is made of.
        settings: how.
        directory: answers are kept here, in a file for each system.
        force: begin anew where an earlier run was another.
        report: called after each with how many are done, and of how many.

    Returns:
        The answers, in the order of the records.

    Raises:
        SettingsError: an earlier run was another and `force` is not set, or a model is missing.
        PersonalizationError: some records could not be answered; the others' answers are kept.
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
    """Everything that the answers depend on, as JSON."""
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
    # The bundle's combiner, where the system uses it; it is no matter of the decoder's fingerprint.
    learned = system.fusion.strategy is Strategy.LEARNED or isinstance(system.schedule, LearnedSchedule)
    fitted = [one.sha256 for one in bundle.manifest.files if learned and one.path.startswith("fusion/")]
    rows = settings.rows and asdict(settings.rows)
    return body | {"fitted": fitted, "rows": rows, "policy": str(settings.policy)}

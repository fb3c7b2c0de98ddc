"""Gets outlines for public instructions: from the bridge, an endpoint or a local model; each is checked for its form.

Only the gate's messages go to a bridge or an endpoint, so each is in the ledger; what is private of a record never is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from cloud_bridge.client import CloudClient
from cloud_bridge.outline import MAX_POINTS, MIN_POINTS, is_point, outline_messages, repeats, shorten
from edge_runtime.context import PublicInstruction
from edge_runtime.errors import CloudError
from edge_runtime.generation.backoff import Backoff
from edge_runtime.privacy.gate import Gate
from edge_runtime.privacy.messages import SketchRequest
from personalization.answering.chat_endpoint import EndpointError, Reply, Usage
from personalization.answering.checked_answers import Asked, EndpointSource, NonsenseError, Source, ask_all
from personalization.collab.records.records import CollabRecord
from personalization.users.data import user_seed

_MARK = re.compile(r"^\s*(?:[-*\u2022]\s*)?(?:\(?\d{1,2}[.):]|[-*\u2022])\s*(?P<point>.+)$")
_ATTEMPTS = 6  # of a bridge that is away or busy


def read_outline(text: str, *, repeating: bool = False) -> str:
    """The outline in a reply: 8 to 15 numbered points, a line each; about 3 to 5 words each, 8 at most.

    Points that are too long are cut at a pause or after five words; what is no phrase, or says again what another point
    says, is left out, and so is what follows the fifteenth.

    Args:
        text: the reply.
        repeating: points that say again what others say stay.

    Raises:
        ValueError: fewer than 8 points are left.
    """
    points: list[str] = []
    for line in text.splitlines():
        match = _MARK.match(line)
        point = shorten(match["point"]) if match else ""
        if is_point(point) and (repeating or not repeats(point, points)):
            points.append(point)
    if len(points) < MIN_POINTS:
        raise ValueError(f"it has {len(points)} usable numbered points instead of {MIN_POINTS} to {MAX_POINTS}")
    return "\n".join(f"{number}. {point}" for number, point in enumerate(points[:MAX_POINTS], start=1))


class Outliner(Protocol):
    """Who writes outlines."""

    @property
    def parallel(self) -> int:
        """How many may be asked for at once."""
        ...

    @property
    def document(self) -> dict[str, Any]:
        """What outlines depend on, as JSON."""
        ...

    @property
    def repeating(self) -> bool:
        """Whether its points may say again what others say."""
        ...

    def outline(self, instruction: PublicInstruction, seed: int) -> Reply:
        """One reply, of whatever form.

        Raises:
            EndpointError: there is none for this instruction.
            CogenesisError: there will be none for any.
        """
        ...


class BridgeOutliner:
    """The cloud that a device would ask, too; see `Outliner`."""

    repeating = True  # its last resort against repeats is words that may repeat; the device gets them as well

    def __init__(self, cloud: CloudClient, gate: Gate, parallel: int) -> None:
        self._cloud, self._gate, self.parallel = cloud, gate, parallel
        info = cloud.info(gate.info())
        self.document: dict[str, Any] = {"cloud": info.model}

    def outline(self, instruction: PublicInstruction, seed: int) -> Reply:  # noqa: ARG002 (the cloud is greedy)
        """See `Outliner`."""
        backoff, calls = Backoff(), 0
        while True:
            calls += 1
            try:
                return Reply("".join(self._cloud.sketch(self._gate.sketch(instruction))), Usage(calls))
            except CloudError as error:
                if not error.transient:
                    raise
                if calls == _ATTEMPTS:
                    raise EndpointError(str(error)) from None
                time.sleep(backoff.next_seconds(error.retry_after))


class ModelOutliner:
    """An endpoint or a local model; see `Outliner`."""

    repeating = False

    def __init__(self, source: Source, gate: Gate) -> None:
        self._source, self._gate = source, gate
        self.parallel = source.parallel
        self.document = source.document

    def outline(self, instruction: PublicInstruction, seed: int) -> Reply:
        """See `Outliner`."""
        source = self._source
        if not isinstance(source, EndpointSource):  # nothing leaves
            return source.ask(outline_prompt(instruction), seed=seed)
        released = self._gate.sketch(instruction)

        def encode(message: SketchRequest) -> bytes:
            return source.client.encode(
                outline_messages(message.instruction),
                most_tokens=source.sampler.most_tokens,
                temperature=source.sampler.temperature,
                seed=seed,
            )

        return source.client.send(lambda: released.leave(encode))


def outline_prompt(instruction: PublicInstruction) -> str:
    """The chat that asks for an outline as one text, for models that are given no chat."""
    task, example, question = (message["content"] for message in outline_messages(instruction.text))
    return f"{task}\n\n{example}\n\n{question}"


def outline_records(
    records: Sequence[CollabRecord],
    outliner: Outliner,
    journal: Path,
    *,
    tries: int,
    report: Callable[[int, int], None],
    force: bool = False,
) -> tuple[list[CollabRecord], Asked]:
    """Give records their sketches; what an earlier run has got is not asked for again.

    Args:
        records: those that have a sketch keep it.
        outliner: who is asked.
        journal: keeps what is known so far.
        tries: the most replies for a record.
        report: called with how many are done and how many there are.
        force: begin anew where the journal is another run's.

    Returns:
        All records in their order, those that failed without a sketch; and what became of each by its index.

    Raises:
        SettingsError: the journal is another run's.
        CogenesisError: no outline will come; what is done is kept.
    """
    jobs = {index: record for index, record in enumerate(records) if record.sketch is None}
    tasks = [[record.id, record.instruction.text] for record in jobs.values()]

    def work(index: int, record: CollabRecord) -> Any:
        usage, wrong = Usage(), ""
        for attempt in range(tries):
            seed = (user_seed(index, record.id) + attempt) % 2**31
            reply = outliner.outline(record.instruction, seed)
            usage += reply.usage
            try:
                return {"sketch": read_outline(reply.text, repeating=outliner.repeating), "usage": asdict(usage)}
            except ValueError as error:
                wrong = str(error)
        raise NonsenseError(f"None of {tries} outlines could be used; of the last: {wrong}.", usage)

    run = {"source": outliner.document, "tries": tries, "tasks": tasks}
    asked = ask_all(journal, run, jobs, work, parallel=outliner.parallel, report=report, force=force)
    sketched = [
        replace(record, sketch=asked.results[index]["sketch"]) if index in asked.results else record
        for index, record in enumerate(records)
    ]
    return sketched, asked

"""Asks models that can't be trusted: answers are checked and asked for again; each is kept as soon as it is there."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edge_runtime.errors import ContextOverflowError
from personalization.answering.chat_endpoint import (
    ChatClient,
    ChatEndpoint,
    EndpointError,
    EndpointRefusedError,
    Reply,
    Usage,
)
from personalization.answering.open_writer import open_writer
from personalization.answering.writer import WriterSpec
from personalization.errors import SettingsError
from personalization.jobs.interrupts import terminated_as_interrupt
from personalization.jobs.journal import Journal

J = TypeVar("J")
T = TypeVar("T")


class NonsenseError(EndpointError):
    """None of the answers to a question could be used.

    Attributes:
        usage: what they cost.
    """

    def __init__(self, message: str, usage: Usage) -> None:
        super().__init__(message)
        self.usage = usage


class Source(Protocol):
    """Who is asked."""

    @property
    def parallel(self) -> int:
        """How many questions may be asked at once."""
        ...

    @property
    def document(self) -> dict[str, Any]:
        """What answers depend on, as JSON."""
        ...

    def ask(self, prompt: str, *, seed: int) -> Reply:
        """Answer a prompt.

        Raises:
            EndpointRefusedError: no prompt will be answered.
            EndpointError: this one was not.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sampler:
    """How answers of an endpoint are drawn: up to so many tokens, at this temperature."""

    most_tokens: int
    temperature: float


class EndpointSource:
    """An OpenAI-compatible endpoint; see `Source`."""

    def __init__(self, endpoint: ChatEndpoint, sampler: Sampler, parallel: int) -> None:
        """Raises `SettingsError` where its key can't be used."""
        self.client, self.sampler, self.parallel = ChatClient(endpoint), sampler, parallel

    @property
    def document(self) -> dict[str, Any]:
        """See `Source`. Where the endpoint is, is no part of what it answers."""
        sampler = self.sampler
        model = self.client.endpoint.model
        return {"model": model, "most_tokens": sampler.most_tokens, "temperature": sampler.temperature}

    def ask(self, prompt: str, *, seed: int) -> Reply:
        """See `Source`."""
        return self.client.ask(
            [{"role": "user", "content": prompt}],
            most_tokens=self.sampler.most_tokens,
            temperature=self.sampler.temperature,
            seed=seed,
        )


class WriterSource:
    """A model on this machine, which writes greedily, so a seed changes nothing; see `Source`."""

    parallel = 1

    def __init__(self, spec: WriterSpec) -> None:
        """Load it.

        Raises:
            CogenesisError: it can't be loaded.
        """
        self._spec, self._writer = spec, open_writer(spec)

    @property
    def document(self) -> dict[str, Any]:
        """See `Source`."""
        return {"weights": self._spec.identity, "backend": self._spec.backend, "most_tokens": self._spec.most_tokens}

    def ask(self, prompt: str, *, seed: int) -> Reply:  # noqa: ARG002 (protocol)
        """See `Source`."""
        try:
            (text,) = self._writer.write([prompt], None)
        except (ContextOverflowError, SettingsError) as error:
            raise EndpointError(str(error)) from None
        return Reply(text, Usage(1, self._writer.tokens.count(prompt), self._writer.tokens.count(text)))


def ask_until_usable(
    source: Source, prompt: str, read: Callable[[Reply], T], *, seed: int, tries: int
) -> tuple[T, Usage]:
    """Ask until an answer can be used; each time with another seed, and told what was wrong.

    Args:
        source: who is asked.
        prompt: what.
        read: makes what is wanted of an answer, or raises a `ValueError` that says what is wrong with it.
        seed: of the first try.
        tries: the most.

    Returns:
        What was read, and what all tries cost.

    Raises:
        NonsenseError: no answer could be used.
        EndpointError: there was none.
    """
    usage, said, wrong = Usage(), prompt, ""
    for attempt in range(tries):
        reply = source.ask(said, seed=seed + attempt)
        usage += reply.usage
        try:
            return read(reply), usage
        except ValueError as error:
            wrong = str(error)
        said = f"{prompt}\n\nAn earlier reply could not be used: {wrong}. Reply exactly as asked."
    raise NonsenseError(f"None of {tries} answers could be used; of the last: {wrong}.", usage)


@dataclass(slots=True)
class Asked:
    """What became of a run's questions.

    Attributes:
        results: by number, in the order of the numbers.
        failed: by number, why there is no result.
        usage: what failed questions cost in vain, this time; what results cost is for them to say.
    """

    results: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)


def ask_all(
    path: Path,
    run: Mapping[str, Any],
    jobs: Mapping[int, J],
    work: Callable[[int, J], Any],
    *,
    parallel: int,
    report: Callable[[int, int], None],
    force: bool = False,
) -> Asked:
    """Do jobs in parallel, those excepted that an earlier run has done.

    Args:
        path: of the journal that keeps what is known.
        run: everything that results depend on, as JSON; see `Journal`.
        jobs: by number.
        work: does one, called from several threads; gives JSON. An `EndpointError` is this job's alone: all others go
            on, and a later run tries it again.
        parallel: jobs at once.
        report: called with how many are done and how many there are.
        force: begin anew where the journal is another run's.

    Raises:
        EndpointRefusedError: no job can be done; what was done is kept.
        CogenesisError: another error than of one job.
    """
    journal = Journal(path, run, force=force)
    asked = Asked()
    todo = [number for number in jobs if number not in journal.results]
    done = len(jobs) - len(todo)
    report(done, len(jobs))
    try:
        outcomes = _outcomes({number: jobs[number] for number in todo}, work, parallel)
        with terminated_as_interrupt(), closing(outcomes):
            for number, outcome in outcomes:
                if isinstance(outcome, EndpointError) and not isinstance(outcome, EndpointRefusedError):
                    asked.failed[number] = str(outcome)
                    asked.usage += outcome.usage if isinstance(outcome, NonsenseError) else Usage()
                elif isinstance(outcome, Exception):
                    raise outcome
                else:
                    journal.add(number, outcome)
                done += 1
                report(done, len(jobs))
    finally:
        journal.close()
    asked.results = {number: journal.results[number] for number in sorted(jobs) if number in journal.results}
    return asked


def _outcomes(
    jobs: Mapping[int, J], work: Callable[[int, J], Any], parallel: int
) -> Generator[tuple[int, Any], None, None]:
    """Each job's result, or the exception that it ended with, as they come."""
    todo: queue.SimpleQueue[tuple[int, J]] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    for job in jobs.items():
        todo.put(job)

    def work_on() -> None:
        while True:
            try:
                number, job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                outcomes.put((number, work(number, job)))
            except Exception as error:
                outcomes.put((number, error))

    # Threads of a pool would have to end before an interrupted process can.
    for _ in range(min(parallel, len(jobs))):
        threading.Thread(target=work_on, daemon=True).start()
    try:
        for _ in jobs:
            yield outcomes.get()
    finally:
        # Who stops listening, wants no more asked.
        with suppress(queue.Empty):
            while True:
                todo.get_nowait()

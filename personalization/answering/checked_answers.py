"""Gets usable answers from unreliable models: checks each answer, retries bad ones, and saves results immediately."""

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
    """No answer to a question could be used.

    Attributes:
        usage: cost of the answers.
    """

    def __init__(self, message: str, usage: Usage) -> None:
        super().__init__(message)
        self.usage = usage


class Source(Protocol):
    """A model that answers prompts."""

    @property
    def parallel(self) -> int:
        """Maximum number of concurrent questions."""
        ...

    @property
    def document(self) -> dict[str, Any]:
        """Everything that the answers depend on, as JSON."""
        ...

    def ask(self, prompt: str, *, seed: int) -> Reply:
        """Answer a prompt.

        Raises:
            EndpointRefusedError: the endpoint will answer no prompt at all.
            EndpointError: this prompt got no answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sampler:
    """Sampling settings of an endpoint: maximum tokens per answer, and temperature."""

    most_tokens: int
    temperature: float


class EndpointSource:
    """An OpenAI-compatible endpoint; see `Source`."""

    def __init__(self, endpoint: ChatEndpoint, sampler: Sampler, parallel: int) -> None:
        """Raises `SettingsError` if the endpoint's key can't be used."""
        self.client, self.sampler, self.parallel = ChatClient(endpoint), sampler, parallel

    @property
    def document(self) -> dict[str, Any]:
        """See `Source`. The endpoint's address is left out: answers don't depend on it."""
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
    """A model on this machine, see `Source`. It decodes greedily, so a seed changes nothing."""

    parallel = 1

    def __init__(self, spec: WriterSpec) -> None:
        """Load the model.

        Raises:
            CogenesisError: the model can't be loaded.
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
    """Ask until an answer can be used; each retry uses a new seed and says what was wrong with the last answer.

    Args:
        source: the model to ask.
        prompt: the prompt to send.
        read: parses the reply, or raises a `ValueError` that says what is wrong with it.
        seed: seed of the first try.
        tries: maximum number of tries.

    Returns:
        The parsed reply, and the usage of all tries.

    Raises:
        NonsenseError: no answer could be used.
        EndpointError: there was no answer.
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
    """The results of a run's questions.

    Attributes:
        results: results by number, in ascending order.
        failed: reasons of failure by number.
        usage: usage of questions that failed in this run; a result records its own usage.
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
    """Do jobs in parallel, except those that an earlier run has finished.

    Args:
        path: path of the journal that keeps the results.
        run: everything that results depend on, as JSON; see `Journal`.
        jobs: jobs by number.
        work: does one job and returns JSON; called from several threads. An `EndpointError` fails only this job, and a
            later run retries it.
        parallel: maximum number of concurrent jobs.
        report: called with the number of finished jobs and of all jobs.
        force: start over if the journal belongs to another run.

    Raises:
        EndpointRefusedError: no job can be done; finished results are kept.
        CogenesisError: an error that is not limited to one job.
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
    """Yield each job's result, or the exception that ended it, in order of completion."""
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

    # Daemon threads: those of a pool would delay the exit of an interrupted process.
    for _ in range(min(parallel, len(jobs))):
        threading.Thread(target=work_on, daemon=True).start()
    try:
        for _ in jobs:
            yield outcomes.get()
    finally:
        # The consumer has stopped, so cancel the jobs that have not started.
        with suppress(queue.Empty):
            while True:
                todo.get_nowait()

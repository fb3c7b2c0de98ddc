"""Asks any OpenAI-compatible endpoint; what can pass (limits, silence, nonsense) is tried again, the use is counted."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from edge_runtime.generation.backoff import Backoff
from personalization.errors import PersonalizationError, SettingsError

KEY_VARIABLE = "COGENESIS_CHAT_API_KEY"
"""Environment variable with the key; there is no option, since others can read a process' arguments."""

_MOST_BYTES = 16 << 20
_LONGEST_WAIT = 120.0
"""Seconds that an endpoint may ask us to wait for; one that asks for more is waited for so long."""
_MAY_PASS = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)
_NO_USE = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


class EndpointError(PersonalizationError):
    """One question got no answer, however often it was asked; others may."""


class EndpointRefusedError(EndpointError):
    """The endpoint refuses every question: wrong key, wrong address or no such model."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What questions cost.

    Attributes:
        calls: requests that were sent, failed ones included.
        prompt_tokens: as the endpoint counts them; 0 where it does not say.
        answer_tokens: likewise.
    """

    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        text: without white space around it; never empty.
        usage: what it cost, failed attempts included.
        cut: it ended because of its length.
    """

    text: str
    usage: Usage
    cut: bool = False


@dataclass(frozen=True, slots=True)
class ChatEndpoint:
    """Which model answers, and how long to try; it travels to other processes, the key does not.

    Attributes:
        url: base of the API, such as `http://127.0.0.1:8000/v1`.
        model: the name that the endpoint knows it by.
        timeout: seconds that one attempt may take in all.
        attempts: the most for a question.
    """

    url: str
    model: str
    timeout: float = 120.0
    attempts: int = 6

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise SettingsError(f"The endpoint is no address such as http://127.0.0.1:8000/v1: {self.url}.")
        if parts.username or parts.password:
            raise SettingsError(f"The endpoint's address holds a key. Put it into {KEY_VARIABLE}.")
        if self.timeout <= 0 or self.attempts < 1:
            raise SettingsError("An endpoint needs a timeout above 0 and at least one attempt.")


class ChatClient:
    """Asks an endpoint; safe to share between threads, which then wait together when the endpoint is busy."""

    def __init__(self, endpoint: ChatEndpoint, environment: Mapping[str, str] = os.environ) -> None:
        """Take the key from the environment; the network is first touched by the first question.

        Raises:
            SettingsError: the key has characters that no key has, or would travel in the clear.
        """
        from cloud_bridge.client.channel import is_loopback  # loads gRPC, which a help page need not wait for

        self.endpoint = endpoint
        parts = urlsplit(endpoint.url)
        key = environment.get(KEY_VARIABLE, "")
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise SettingsError(f"The key has characters that no key has: {KEY_VARIABLE}.")
        if key and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise SettingsError(f"The key would travel to {parts.hostname} in the clear. Use an https:// address.")
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/") + "/chat/completions"
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._lock = threading.Lock()
        self._not_before = 0.0

    def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        most_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Reply:
        """Ask one question.

        Args:
            messages: the chat, each `{"role", "content"}`.
            most_tokens: of the answer.
            temperature: 0 for the likeliest answer.
            top_p: sample within this likeliest mass.
            seed: of the sampler, where the endpoint has one; the same one gives the same answer.

        Raises:
            EndpointRefusedError: no question will be answered.
            EndpointError: this one was not.
        """
        body = self.encode(messages, most_tokens=most_tokens, temperature=temperature, top_p=top_p, seed=seed)
        return self.send(lambda: body)

    def encode(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        most_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> bytes:
        """The body of a request; see `ask`."""
        body: dict[str, Any] = {"model": self.endpoint.model, "messages": [dict(one) for one in messages]}
        body |= {"max_tokens": most_tokens, "temperature": temperature, "top_p": top_p}
        return json.dumps(body if seed is None else body | {"seed": seed}).encode()

    def send(self, body: Callable[[], bytes]) -> Reply:
        """Send a request until it is answered.

        Args:
            body: called for each attempt, so that a ledger can note each.

        Raises:
            EndpointRefusedError: no question will be answered.
            EndpointError: this one was not.
        """
        backoff = Backoff()
        for attempt in range(1, self.endpoint.attempts + 1):
            self._wait()
            try:
                return _reply(self._post(body()), attempt)
            except _PassingError as error:
                failure = error
            if attempt < self.endpoint.attempts:
                pause = backoff.next_seconds(failure.retry_after)
                if failure.busy:  # for all of us
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + pause)
                else:
                    time.sleep(pause)
        raise EndpointError(f"{self._named} gave no answer in {self.endpoint.attempts} attempts: {failure}.")

    def _wait(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            time.sleep(left)

    @property
    def _named(self) -> str:
        return f"The endpoint {self.endpoint.url}"

    def _post(self, body: bytes) -> bytes:
        """One attempt: the content of a good response."""
        end = time.monotonic() + self.endpoint.timeout
        connection = self._make(self._host, self._port, timeout=self.endpoint.timeout)
        try:
            connection.connect()
            with _hang_up_at(end, connection.sock):
                connection.request("POST", self._path, body, self._headers)
                response = connection.getresponse()
                content = response.read(_MOST_BYTES + 1)
            broken = "it is cut off" if response.length else ""
        except ssl.SSLCertVerificationError as error:
            raise EndpointRefusedError(f"{self._named} is not who it says it is ({error.verify_message}).") from None
        except http.client.HTTPException as error:
            broken = type(error).__name__
        except OSError as error:
            broken = error.strerror or str(error)
        finally:
            connection.close()
        if time.monotonic() >= end:
            raise _PassingError(f"it takes longer than {self.endpoint.timeout:g} s")
        if broken:
            raise _PassingError(f"the response is broken ({broken})")
        if len(content) > _MOST_BYTES:
            raise _PassingError(f"the response is longer than {_MOST_BYTES >> 20} MiB")
        if response.status == HTTPStatus.OK:
            return content
        status = f"status {response.status}"
        if response.status in _MAY_PASS or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            busy = response.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
            raise _PassingError(status, busy=busy, retry_after=_seconds(response.getheader("Retry-After")))
        said = _explanation(content)
        if response.status in _NO_USE or response.status < HTTPStatus.BAD_REQUEST:
            raise EndpointRefusedError(
                f"{self._named} refuses us ({status}{said}). Check the address, the model's name and {KEY_VARIABLE}."
            )
        raise EndpointError(f"{self._named} refuses this question ({status}{said}).")


class _PassingError(Exception):
    """What may be otherwise the next time."""

    def __init__(self, what: str, *, busy: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(what)
        self.busy, self.retry_after = busy, retry_after


@contextmanager
def _hang_up_at(end: float, connected: socket.socket) -> Iterator[None]:
    """Limit the time of a whole exchange: a socket's own timeout is for each piece alone."""
    # The plain socket's, since TLS' own would first take leave of the other side.
    watchdog = threading.Timer(end - time.monotonic(), _shut, [connected])
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _reply(content: bytes, calls: int) -> Reply:
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        text = choice["message"]["content"]
        text.encode()
        text = text.strip()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise _PassingError("the response is none of the OpenAI chat API") from None
    if not text:
        raise _PassingError("the answer is empty")
    usage = Usage(calls, _count(body, "prompt_tokens"), _count(body, "completion_tokens"))
    return Reply(text, usage, cut=choice.get("finish_reason") == "length")


def _count(body: Mapping[str, Any], key: str) -> int:
    usage = body.get("usage")
    count = usage.get(key) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count >= 0 else 0


def _explanation(content: bytes) -> str:
    """What an endpoint says of its refusal, as `: ...`, one short line."""
    try:
        error = json.loads(content)["error"]
        said = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, TypeError, LookupError, RecursionError):
        return ""
    return ": " + " ".join("".join(char if char.isprintable() else " " for char in said).split())[:200]


def _seconds(header: str | None) -> float:
    """Of a `Retry-After` in seconds; 0 for none, and for a date, which nobody sends here."""
    try:
        seconds = float(header or 0)
    except ValueError:
        return 0.0
    return min(seconds, _LONGEST_WAIT) if seconds > 0 else 0.0

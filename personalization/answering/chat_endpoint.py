"""Sends questions to an OpenAI-compatible endpoint, retries transient failures, and counts usage."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edge_runtime.extras import require_packages
from edge_runtime.generation.backoff import Backoff
from personalization.errors import PersonalizationError, SettingsError

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "COGENESIS_CHAT_API_KEY"
"""Environment variable with the key; there is no option, because other users can read a process's arguments."""

_MOST_BYTES = 16 << 20
_LONGEST_WAIT = 120.0
"""Maximum retry delay in seconds; longer delays requested by an endpoint are shortened to this."""
_MAY_PASS = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)
_NO_USE = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


class EndpointError(PersonalizationError):
    """One question got no answer after all attempts; other questions may succeed."""


class EndpointRefusedError(EndpointError):
    """The endpoint rejects every question: wrong key, wrong address or unknown model."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of questions.

    Attributes:
        calls: requests sent, including failed ones.
        prompt_tokens: prompt tokens as counted by the endpoint; 0 if it gives no count.
        answer_tokens: answer tokens, counted likewise.
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
        text: the text without surrounding white space; never empty.
        usage: usage, including failed attempts.
        cut: whether it was truncated at the maximum length.
    """

    text: str
    usage: Usage
    cut: bool = False


@dataclass(frozen=True, slots=True)
class ChatEndpoint:
    """An endpoint's model and retry limits. Unlike the key, this is sent to other processes.

    Attributes:
        url: base URL of the API, such as `http://127.0.0.1:8000/v1`.
        model: name of the model at the endpoint.
        timeout: total seconds that one attempt may take.
        attempts: maximum attempts per question.
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
    """A client of an endpoint. Threads may share it; they then wait together when the endpoint is busy."""

    def __init__(self, endpoint: ChatEndpoint, environment: Mapping[str, str] = os.environ) -> None:
        """Read the key from the environment; the first question opens the first connection.

        Raises:
            SettingsError: the key has invalid characters, or would be sent unencrypted.
            MissingExtraError: the HTTP package is not installed.
        """
        require_packages("Asking an endpoint", "httpx", extra="endpoint")
        from cloud_bridge.client.channel import is_loopback  # imported late because it loads gRPC

        self.endpoint = endpoint
        parts = urlsplit(endpoint.url)
        key = environment.get(KEY_VARIABLE, "")
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise SettingsError(f"The key has characters that no key has: {KEY_VARIABLE}.")
        if key and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise SettingsError(f"The key would travel to {parts.hostname} in the clear. Use an https:// address.")
        self._url = endpoint.url.rstrip("/") + "/chat/completions"
        # The size of a decompressed response could not be limited.
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        self._trusted = ssl.create_default_context()  # the system's CAs, not a package's
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
            most_tokens: maximum tokens of the answer.
            temperature: sampling temperature; 0 for the likeliest answer.
            top_p: sample from the likeliest tokens with this probability mass.
            seed: seed of the sampler, if the endpoint supports it; the same seed gives the same answer.

        Raises:
            EndpointRefusedError: the endpoint rejects every question.
            EndpointError: this question got no answer.
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
        """Return the body of a request; see `ask`."""
        body: dict[str, Any] = {"model": self.endpoint.model, "messages": [dict(one) for one in messages]}
        body |= {"max_tokens": most_tokens, "temperature": temperature, "top_p": top_p}
        return json.dumps(body if seed is None else body | {"seed": seed}).encode()

    def send(self, body: Callable[[], bytes]) -> Reply:
        """Send a request, and retry it after transient failures.

        Args:
            body: called for each attempt, so that a ledger can record each.

        Raises:
            EndpointRefusedError: the endpoint rejects every question.
            EndpointError: this question got no answer.
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
                if failure.busy:  # delay all threads
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
        """Make one attempt and return the content of a successful response."""
        import httpx  # imported late because it takes a tenth of a second

        try:
            response, content = asyncio.run(self._exchange(body))
        except TimeoutError:
            raise _PassingError(f"it takes longer than {self.endpoint.timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: bad host name
            cause = _cause(error)
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise EndpointRefusedError(
                    f"{self._named} is not who it says it is ({cause.verify_message})."
                ) from None
            raise _PassingError(f"the response is broken ({_in_words(cause)})") from None
        if len(content) > _MOST_BYTES:
            raise _PassingError(f"the response is longer than {_MOST_BYTES >> 20} MiB")
        code = response.status_code
        if code == HTTPStatus.OK:
            return content
        status = f"status {code}"
        if code in _MAY_PASS or code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            busy = code in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
            raise _PassingError(status, busy=busy, retry_after=_seconds(response.headers.get("Retry-After")))
        said = _explanation(content)
        if code in _NO_USE or code < HTTPStatus.BAD_REQUEST:
            raise EndpointRefusedError(
                f"{self._named} refuses us ({status}{said}). Check the address, the model's name and {KEY_VARIABLE}."
            )
        raise EndpointError(f"{self._named} refuses this question ({status}{said}).")

    async def _exchange(self, body: bytes) -> tuple[httpx.Response, bytes]:
        """Send one request and read at most `_MOST_BYTES` + 1 bytes; the timeout covers the whole exchange."""
        import httpx

        # httpx's own timeouts apply to each operation. Proxies and keys from the environment don't concern our
        # endpoint.
        async with (
            asyncio.timeout(self.endpoint.timeout),
            httpx.AsyncClient(verify=self._trusted, trust_env=False, follow_redirects=False, timeout=None) as client,
        ):
            request = httpx.Request("POST", self._url, headers=self._headers, content=body)
            response = await client.send(request, stream=True)
            try:
                content = bytearray()
                async for part in response.aiter_raw():
                    content += part[: _MOST_BYTES + 1 - len(content)]
                    if len(content) > _MOST_BYTES:
                        break
            finally:
                await response.aclose()
            return response, bytes(content)


class _PassingError(Exception):
    """A transient failure, which a retry may resolve."""

    def __init__(self, what: str, *, busy: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(what)
        self.busy, self.retry_after = busy, retry_after


def _cause(error: BaseException) -> BaseException:
    """Return the cause of an httpx error: a system, TLS or protocol error."""
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        # If a host has several addresses, the first one's error stands for all.
        error = inner.exceptions[0] if isinstance(inner, ExceptionGroup) else inner
    return error


def _in_words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        # asyncio replaces the system's message with an address; other errors have their own numbers and messages.
        return os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else error.strerror
    return str(error) or type(error).__name__


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
    """Return an endpoint's reason for rejecting a request, as `: ...` on one short line."""
    try:
        error = json.loads(content)["error"]
        said = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, TypeError, LookupError, RecursionError):
        return ""
    return ": " + " ".join("".join(char if char.isprintable() else " " for char in said).split())[:200]


def _seconds(header: str | None) -> float:
    """Parse a `Retry-After` in seconds; return 0 if it is missing or a date, which these endpoints don't send."""
    try:
        seconds = float(header or 0)
    except ValueError:
        return 0.0
    return min(seconds, _LONGEST_WAIT) if seconds > 0 else 0.0

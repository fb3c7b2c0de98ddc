"""The client of chat endpoints, against a real server that behaves well and badly."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from personalization.answering.chat_endpoint import (
    KEY_VARIABLE,
    ChatClient,
    ChatEndpoint,
    EndpointError,
    EndpointRefusedError,
    Usage,
)
from personalization.errors import SettingsError
from tests.support.chat_server import ChatServer, chat_server

HELLO = [{"role": "user", "content": "say hello to me"}]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server(lambda body: f" hello, {body['temperature']} \n") as running:
        yield running


def client(server: ChatServer, **settings: float) -> ChatClient:
    return ChatClient(ChatEndpoint(server.url, "a-model", **settings), {KEY_VARIABLE: "k-123"})


def test_a_question_is_answered_and_counted(server):
    reply = client(server).ask(HELLO, most_tokens=7, temperature=0.5, seed=3)
    assert (reply.text, reply.cut) == ("hello, 0.5", False)
    assert reply.usage == Usage(calls=1, prompt_tokens=4, answer_tokens=2)
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == "Bearer k-123"
    assert (request["model"], request["messages"]) == ("a-model", HELLO)
    assert (request["max_tokens"], request["temperature"], request["seed"]) == (7, 0.5, 3)


@pytest.mark.parametrize("fault", ["nonsense", "prose", "empty", "cut", "close", "500", "503", "429"])
def test_what_may_pass_is_tried_again(server, fault):
    server.faults.append(fault)
    reply = client(server).ask(HELLO, most_tokens=7)
    assert reply.text == "hello, 0.0"
    assert reply.usage.calls == len(server.requests) == 2


def test_an_endpoint_that_never_finishes_is_given_up_in_time(server):
    server.faults.append("slow")
    began = time.monotonic()
    reply = client(server, timeout=0.3).ask(HELLO, most_tokens=7)
    assert reply.usage.calls == 2
    assert time.monotonic() - began >= 0.3  # each piece came much sooner


def test_the_time_that_a_busy_endpoint_asks_for_is_waited_by_all(server):
    server.faults.append("429 0.4")
    one = client(server)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(one.ask, HELLO, most_tokens=7)
        while not server.requests:
            time.sleep(0.005)
        time.sleep(0.1)
        others = [pool.submit(one.ask, HELLO, most_tokens=7) for _ in range(2)]
        assert all(job.result().text for job in (first, *others))
    refused, *later = (request["at"] for request in server.requests)
    assert len(later) == 3
    assert min(later) - refused >= 0.4


@pytest.mark.parametrize("status", ["401", "403", "404", "307"])
def test_what_is_refused_for_good_is_not_asked_again(server, status):
    server.faults += [status] * 9
    with pytest.raises(EndpointRefusedError, match=f"status {status}: not now.*{KEY_VARIABLE}"):
        client(server).ask(HELLO, most_tokens=7)
    assert len(server.requests) == 1


def test_a_question_that_is_refused_says_nothing_of_others(server):
    server.faults.append("400")
    with pytest.raises(EndpointError, match="refuses this question") as refused:
        client(server).ask(HELLO, most_tokens=7)
    assert not isinstance(refused.value, EndpointRefusedError)
    assert client(server).ask(HELLO, most_tokens=7).text


def test_an_endpoint_that_fails_every_time_is_left_after_some_attempts(server):
    server.faults += ["500"] * 9
    with pytest.raises(EndpointError, match="2 attempts: status 500"):
        client(server, attempts=2).ask(HELLO, most_tokens=7)
    assert len(server.requests) == 2


def test_an_endpoint_that_is_not_there_is_an_error_in_words():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EndpointError, match=r"2 attempts.*refused"):
        ChatClient(ChatEndpoint(f"http://127.0.0.1:{port}", "m", attempts=2), {}).ask(HELLO, most_tokens=7)


def test_each_attempt_is_encoded_anew_so_that_a_ledger_can_note_it(server):
    server.faults.append("500")
    one, sent = client(server), []
    one.send(lambda: sent.append(1) or one.encode(HELLO, most_tokens=7))
    assert len(sent) == len(server.requests) == 2


def test_a_key_never_travels_in_the_clear():
    with pytest.raises(SettingsError, match="in the clear"):
        ChatClient(ChatEndpoint("http://chat.example/v1", "m"), {KEY_VARIABLE: "k"})
    ChatClient(ChatEndpoint("http://chat.example/v1", "m"), {})
    ChatClient(ChatEndpoint("https://chat.example/v1", "m"), {KEY_VARIABLE: "k"})


@pytest.mark.parametrize(
    "url", ["chat.example", "ftp://x/v1", "http://", "http://key@chat.example/v1", "http://x/?a=b"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(SettingsError, match="endpoint"):
        ChatEndpoint(url, "m")

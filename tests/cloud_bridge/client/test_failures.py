"""Each way that a cloud can fail raises its own error, also for requests in flight, and leaves no thread behind."""

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_bridge import wire
from cloud_bridge.client import connect
from cloud_bridge.server.serve import ServerOptions, serving
from edge_runtime.cloud import Verified
from edge_runtime.context import PublicInstruction
from edge_runtime.errors import (
    CloudContextFullError,
    CloudError,
    CloudOverloadedError,
    CloudRefusedError,
    CloudTimeoutError,
    CloudUnavailableError,
    LedgerError,
    ProtocolError,
    RequestError,
    TokenizerMismatchError,
)
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger
from tests.support.commands import ROOT
from tests.support.examples import examples
from tests.support.recording_proxy import RecordingProxy
from tests.support.warm_process import WarmProcess

INSTRUCTION = PublicInstruction("Write a letter.")
FINGERPRINT = "0" * 64


def new_gate() -> Gate:
    return Gate(Policy.OPEN, Ledger())


FORM = RowFormat(top_k=4)
ROW = Verified((SparseLogProbs(np.array([1, 7], np.int32), np.log(np.array([0.25, 0.5], np.float32)), 0.25),))


def open_request(gate=None, fingerprint=FINGERPRINT, **others):
    return (gate or new_gate()).open(INSTRUCTION, tokenizer_fingerprint=fingerprint, **{"rows": FORM, **others})


def first_verify(session, gate=None):
    """Request the row after the instruction."""
    gate = gate or new_gate()
    return session.verify(gate.conversation(INSTRUCTION, None, None).verify(keep=0, end=0, rows=(0,)))


class Heard:
    """The frames that a scripted server has read, and matching replies."""

    def __init__(self, frames):
        self._frames = frames
        self._sums = []

    def next(self, count=1):
        for _ in range(count):
            self._sums.append(wire.said(next(self._frames), self._sums[-1] if self._sums else 0))

    def reply(self, number=0, verified=ROW):
        return wire.encode_verified(number, verified, FORM, self._sums[number + 1])


def until(holds) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def answer(client, gate=None):
    return client.answer((gate or new_gate()).answer(INSTRUCTION, max_new_tokens=4, temperature=0.0, top_p=1.0, seed=0))


@pytest.fixture
def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def scripted():
    """A real gRPC server with a scripted `Score`: `serve(behave)` returns its address."""
    servers = []

    def serve(behave) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        handler = grpc.stream_stream_rpc_method_handler(behave)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, {"Score": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.stop(0).wait()


OPENED = wire.encode_opened(wire.Opened("s", "m", 10, 1, 64))


def test_nobody_listening_is_unavailable_for_every_call(closed_port):
    with connect(closed_port) as client:
        with pytest.raises(CloudUnavailableError, match=closed_port):
            client.info(new_gate().info())
        with client.open(open_request()) as session, pytest.raises(CloudUnavailableError, match="refused"):
            first_verify(session).result(timeout=30)
        with pytest.raises(CloudUnavailableError, match="Check the address"):
            list(client.sketch(new_gate().sketch(INSTRUCTION)))
        with pytest.raises(CloudUnavailableError):
            list(answer(client))


def test_a_network_that_swallows_everything_ends_at_the_time_limit():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections but never replies
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            connect(address, connect_timeout=0.3, call_timeout=20) as client,
            pytest.raises((CloudUnavailableError, CloudTimeoutError)),
        ):
            client.info(new_gate().info())


def test_another_protocol_is_not_mistaken_for_a_cloud():
    import http.server

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with connect(f"127.0.0.1:{server.server_port}", connect_timeout=1, call_timeout=20) as client:
            with pytest.raises((CloudUnavailableError, ProtocolError, CloudTimeoutError)) as caught:
                client.info(new_gate().info())
            assert "\n" not in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()


def test_a_cloud_without_the_service_is_a_protocol_error(scripted):
    address = scripted(lambda frames, context: iter(()))
    with connect(address) as client, pytest.raises(ProtocolError, match="does not speak this protocol"):
        client.info(new_gate().info())


def test_a_verify_without_a_reply_times_out_and_so_does_all_behind_it(scripted):
    release = threading.Event()

    def silent(frames, context):
        yield OPENED
        release.wait(30)

    with connect(scripted(silent), call_timeout=0.5) as client, client.open(open_request()) as session:
        gate = new_gate()
        waiting = [first_verify(session, gate), first_verify(session, gate)]
        for future in waiting:
            with pytest.raises(CloudTimeoutError, match="in time"):
                future.result(timeout=20)
        with pytest.raises(CloudTimeoutError):
            first_verify(session, gate).result(timeout=0)
        # Unsent messages are not in the ledger.
        assert [entry.direction for entry in gate.ledger.entries] == ["up", "up"]
    release.set()


def test_a_session_nobody_asks_anything_does_not_time_out(server, engine):
    request = open_request(fingerprint=engine.tokenizer_fingerprint)
    with connect(server.address, call_timeout=0.4) as client, client.open(request) as session:
        first_verify(session).result(timeout=20)
        time.sleep(1.0)
        first_verify(session).result(timeout=20)


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (lambda heard: b"\xff\xff", "malformed"),
        (lambda heard: OPENED, "not verified"),
        (lambda heard: wire.encode_verified(1, ROW, FORM), "reply 1 came where reply 0"),
        (lambda heard: wire.encode_verified(0, ROW, FORM), "the checksum is wrong"),
        (lambda heard: heard.reply(0, Verified(ROW.rows * 2)), "malformed"),
    ],
)
def test_a_malformed_reply_is_a_protocol_error(scripted, reply, cause):
    def babble(frames, context):
        yield OPENED
        heard = Heard(frames)
        heard.next(2)
        yield reply(heard)

    with (
        connect(scripted(babble)) as client,
        client.open(open_request()) as session,
        pytest.raises(ProtocolError, match=cause),
    ):
        first_verify(session).result(timeout=20)


def test_a_reply_that_nothing_asked_for_is_a_protocol_error(scripted):
    def eager(frames, context):
        yield OPENED
        yield wire.encode_verified(0, ROW, FORM)
        time.sleep(1)

    with connect(scripted(eager)) as client, client.open(open_request()) as session:
        until(lambda: session._failure is not None)
        with pytest.raises(ProtocolError, match="no request asked for"):
            first_verify(session).result(timeout=20)


def flipped(heard, number) -> bytes:
    reply = bytearray(heard.reply(number))
    reply[reply.index(wire.encode_rows(ROW.rows, "float32")) + 3] ^= 4
    return bytes(reply)


DAMAGE = {
    "no message": lambda heard, number: b"\xff\xff",
    "a flipped bit": flipped,
    "a request that arrived damaged": lambda heard, number: wire.encode_verified(number, ROW, FORM, 7),
    "a reply lost": lambda heard, number: wire.encode_verified(number + 1, ROW, FORM),
}


@pytest.mark.parametrize("reply", DAMAGE.values(), ids=DAMAGE)
def test_what_can_not_be_read_from_a_cloud_that_spoke_well_was_damaged_on_the_way(scripted, reply):
    streams = []

    def stutter(frames, context):
        heard = Heard(frames)
        heard.next()
        streams.append(heard)
        yield OPENED
        if len(streams) == 1:
            heard.next()
            yield heard.reply()
        heard.next()
        yield reply(heard, 2 - len(streams))

    with connect(scripted(stutter)) as client:
        with client.open(open_request()) as session:
            first_verify(session).result(timeout=20)
            with pytest.raises(CloudUnavailableError, match="damaged") as caught:
                first_verify(session).result(timeout=20)
            assert caught.value.transient
        # The client remembers the fault: the first reply of another stream may be the damaged one.
        with client.open(open_request()) as session, pytest.raises(CloudUnavailableError, match="damaged"):
            first_verify(session).result(timeout=20)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS])
def test_a_status_without_a_reason_after_a_good_reply_is_a_damaged_connection(scripted, code):
    def fall(frames, context):
        heard = Heard(frames)
        heard.next(2)
        yield OPENED
        yield heard.reply()
        context.abort(code, "framing")

    with connect(scripted(fall)) as client, client.open(open_request()) as session:
        first_verify(session).result(timeout=20)
        with pytest.raises(CloudUnavailableError, match="framing"):
            first_verify(session).result(timeout=20)


@pytest.mark.parametrize(("hint", "seconds"), [("1500", 1.5), ("", 0.0), ("-4", 0.0), ("soon", 0.0), ("9" * 30, 3600)])
def test_the_cloud_says_when_to_come_back(scripted, hint, seconds):
    def refuse(frames, context):
        context.set_trailing_metadata(((wire.REASON_KEY, "quota"), (wire.RETRY_AFTER_KEY, hint)))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
        yield b""

    with connect(scripted(refuse)) as client, client.open(open_request()) as session:
        for future in [first_verify(session), first_verify(session)]:
            with pytest.raises(CloudOverloadedError, match="quota") as caught:
                future.result(timeout=20)
            assert caught.value.retry_after == seconds


def test_replies_resolve_their_own_futures(scripted):
    """Ten requests are in flight at once; each reply has a different row."""

    def rows(number: int) -> Verified:
        values = np.log(np.array([0.5, 0.25], np.float32))
        return Verified((SparseLogProbs(np.array([number, number + 5], np.int32), values, 0.25),), number / 1e3)

    def patient(frames, context):
        yield wire.encode_opened(wire.Opened("s", "m", 20, 1, 64))
        heard = Heard(frames)
        heard.next(11)
        for number in range(10):
            yield heard.reply(number, rows(number) if number % 3 else Verified((), superseded=True))
        next(frames, None)

    with connect(scripted(patient)) as client, client.open(open_request()) as session:
        futures = [first_verify(session) for _ in range(10)]
        for number, future in enumerate(futures):
            verified = future.result(timeout=20)
            assert verified.superseded == (number % 3 == 0)
            if number % 3:
                assert verified.rows[0].ids.tolist() == [number, number + 5]
                assert verified.compute_seconds == pytest.approx(number / 1e3)
        assert session.id == "s"


def test_a_stream_that_ends_early_is_unavailable(scripted):
    def leave(frames, context):
        yield OPENED
        next(frames), next(frames)

    with (
        connect(scripted(leave)) as client,
        client.open(open_request()) as session,
        pytest.raises(CloudUnavailableError, match="ended the stream"),
    ):
        first_verify(session).result(timeout=20)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("api_key", CloudRefusedError),
        ("tokenizer_mismatch", TokenizerMismatchError),
        ("overloaded", CloudOverloadedError),
        ("quota", CloudOverloadedError),
        ("evicted", CloudOverloadedError),
        ("stopping", CloudUnavailableError),
        ("context_full", CloudContextFullError),
        ("bad_request", ProtocolError),
        ("internal", CloudUnavailableError),
    ],
)
def test_each_reason_has_its_error(scripted, reason, kind):
    def refuse(frames, context):
        context.set_trailing_metadata(((wire.REASON_KEY, reason),))
        context.abort(grpc.StatusCode.UNKNOWN, "because\nof \x1b[31mthis")
        yield b""

    with connect(scripted(refuse)) as client, client.open(open_request()) as session, pytest.raises(kind) as caught:
        first_verify(session).result(timeout=20)
    assert "because of" in str(caught.value)
    assert str(caught.value).isprintable()  # text from a cloud can't control the terminal


def test_another_vocabulary_is_reported_by_the_first_verify(client):
    with client.open(open_request()) as session, pytest.raises(TokenizerMismatchError, match="use `mode` sketch"):
        first_verify(session).result(timeout=20)


def test_closing_a_session_fails_what_is_under_way_and_frees_the_server(server, engine, client):
    session = client.open(open_request(fingerprint=engine.tokenizer_fingerprint))
    first_verify(session).result(timeout=20)
    assert server.sessions.active == 1
    pending = first_verify(session)
    session.close()
    session.close()
    for future in (pending, first_verify(session)):
        try:
            future.result(timeout=0)  # its reply may have arrived first
        except CloudUnavailableError as error:
            assert "was closed" in str(error)
    until(lambda: server.sessions.active == 0)
    assert server.sessions.parked == 0


def test_closing_does_not_wait_for_the_network(scripted):
    asked = threading.Event()
    broken = threading.Event()

    def deaf(frames, context):
        yield OPENED
        context.add_callback(broken.set)
        asked.set()
        broken.wait(20)  # the server never ends the stream

    with connect(scripted(deaf)) as client:
        session = client.open(open_request())
        assert asked.wait(20)
        pending = first_verify(session)
        session.close()
        with pytest.raises(CloudUnavailableError, match="was closed"):
            pending.result(timeout=0)
        assert broken.wait(20)  # the device breaks the stream instead


def test_closing_the_client_ends_its_sessions_in_order(server, engine):
    client = connect(server.address)
    session = client.open(open_request(fingerprint=engine.tokenizer_fingerprint))
    first_verify(session).result(timeout=20)
    client.close()
    until(lambda: server.sessions.active == 0)
    assert server.sessions.parked == 0


def test_what_grpc_logs_of_damaged_bytes_does_not_reach_the_terminal():
    program = "import logging, cloud_bridge.client; logging.getLogger('grpc._cython.cygrpc').error('Invalid encoding')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, check=True)
    assert done.stderr == b""


def test_a_session_whose_stream_broke_is_resumed(server, engine):
    request = open_request(fingerprint=engine.tokenizer_fingerprint)
    with RecordingProxy(server.address) as proxy, connect(proxy.address) as client:
        session = client.open(request)
        before = first_verify(session).result(timeout=20)
        proxy.cut()
        with pytest.raises(CloudUnavailableError):
            first_verify(session).result(timeout=20)
        again = open_request(fingerprint=engine.tokenizer_fingerprint, resume=session.id)
        with client.open(again) as resumed:
            after = first_verify(resumed).result(timeout=20)
            assert resumed._opened.resumed
            assert resumed.id == session.id
        np.testing.assert_allclose(after.rows[0].log_probs, before.rows[0].log_probs, atol=1e-5)


def test_a_new_session_connects_at_once_when_the_server_is_back(engine):
    """After any number of failed connections; gRPC's own back-off would have grown to seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    request = lambda: open_request(fingerprint=engine.tokenizer_fingerprint)  # noqa: E731
    with connect(f"127.0.0.1:{port}") as client:
        for _ in range(8):
            with client.open(request()) as session, pytest.raises(CloudUnavailableError):
                first_verify(session).result(timeout=20)
        with serving(engine, ServerOptions(port=port)), client.open(request()) as session:
            first_verify(session).result(timeout=20)


def test_a_connection_that_died_silently_does_not_take_the_next_session_with_it(server, engine):
    with RecordingProxy(server.address) as proxy, connect(proxy.address, call_timeout=1.0) as client:
        with client.open(open_request(fingerprint=engine.tokenizer_fingerprint)) as session:
            first_verify(session).result(timeout=20)
            proxy.stall()
            with pytest.raises(CloudTimeoutError):
                first_verify(session).result(timeout=20)
        with client.open(open_request(fingerprint=engine.tokenizer_fingerprint)) as session:
            first_verify(session).result(timeout=20)


def test_one_session_s_failure_leaves_the_others_alone(scripted):
    streams = []

    def behave(frames, context):
        heard = Heard(frames)
        heard.next()
        streams.append(heard)
        mine = len(streams)
        yield OPENED
        with contextlib.suppress(StopIteration):
            for number in itertools.count():
                heard.next()
                if mine == 2:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
                yield heard.reply(number)

    with connect(scripted(behave)) as client, client.open(open_request()) as good:
        first_verify(good).result(timeout=20)
        with client.open(open_request()) as bad, pytest.raises(CloudUnavailableError):
            first_verify(bad).result(timeout=20)
        first_verify(good).result(timeout=20)
        with client.open(open_request()) as another:
            first_verify(another).result(timeout=20)
        first_verify(good).result(timeout=20)


REPLIES = st.binary(max_size=60) | st.just(OPENED) | st.integers(0, 2)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(REPLIES, max_size=5))
def test_whatever_a_server_says_ends_in_rows_or_a_typed_error(babbler, replies):
    client, script = babbler
    script[:] = replies
    with client.open(open_request()) as session:
        for future in [first_verify(session) for _ in range(3)]:
            try:
                assert future.result(timeout=20).rows[0].ids.tolist() == [1, 7]
            except CloudError as error:
                assert str(error).isprintable()


@pytest.fixture
def babbler(scripted):
    script: list[bytes] = []

    def babble(frames, context):
        heard = Heard(frames)
        heard.next(4)
        for reply in script:
            yield heard.reply(reply) if isinstance(reply, int) else reply

    with connect(scripted(babble)) as client:
        yield client, script


def test_a_callback_may_close_the_session(scripted):
    def silent(frames, context):
        yield OPENED
        time.sleep(3)

    with connect(scripted(silent), call_timeout=0.3) as client:
        session = client.open(open_request())
        closed = threading.Event()
        first_verify(session).add_done_callback(lambda _: (session.close(), closed.set()))
        assert closed.wait(20)


def test_a_closed_client_is_unavailable(server, engine):
    client = connect(server.address)
    session = client.open(open_request(fingerprint=engine.tokenizer_fingerprint))
    first_verify(session).result(timeout=20)
    client.close()
    with pytest.raises(CloudUnavailableError, match="was closed"):
        client.info(new_gate().info())
    with pytest.raises(CloudUnavailableError):
        first_verify(session).result(timeout=20)


def test_no_thread_outlives_its_session(server, engine):
    def ours() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if "engine" not in thread.name}

    with connect(server.address) as client:
        client.info(new_gate().info())
        before = ours()
        for _ in range(3):
            with client.open(open_request(fingerprint=engine.tokenizer_fingerprint)) as session:
                first_verify(session).result(timeout=20)
            list(answer(client))
            next(iter(answer(client)))  # abandoned half-way
        deadline = time.monotonic() + 10
        while ours() - before and time.monotonic() < deadline:
            time.sleep(0.02)
        # gRPC keeps one thread while a channel is open.
        assert {thread.name for thread in ours() - before if "cogenesis" in thread.name} == set()
        assert len(ours() - before) <= 1


def test_when_the_ledger_can_not_be_written_nothing_leaves(server, engine, tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    gate = Gate(Policy.OPEN, ledger)
    with connect(server.address) as client:
        requests = [gate.info(), open_request(gate), gate.sketch(INSTRUCTION)]
        with client.open(open_request(gate, engine.tokenizer_fingerprint)) as session:
            first_verify(session, gate).result(timeout=20)
            assert ledger._file is not None
            ledger._file.close()  # like a full disk
            with pytest.raises(LedgerError):
                first_verify(session, gate)
        for call, request in zip((client.info, client.open, client.sketch), requests, strict=True):
            with pytest.raises(LedgerError):
                call(request)
        with pytest.raises(LedgerError):
            answer(client, gate)


def test_a_server_killed_in_mid_stream_fails_the_pending_future(tiny_model):
    process = WarmProcess("cloud", "serve", "--model", tiny_model, "--threads", "1")
    try:
        address = json.loads(process.stdout.readline())["address"]
        with connect(address) as client:
            fingerprint = client.info(new_gate().info()).tokenizer_fingerprint
            with client.open(open_request(fingerprint=fingerprint)) as session:
                first_verify(session).result(timeout=60)
                process.send_signal(signal.SIGSTOP)  # it can't answer the next requests
                pending = first_verify(session)
                process.send_signal(signal.SIGKILL)
                with pytest.raises(CloudUnavailableError, match=address):
                    pending.result(timeout=30)
    finally:
        process.kill()
        process.wait()
        process.close()


@pytest.mark.parametrize("address", ["nowhere", "host:", ":50051", "host:port", "host:0", "host:70000", "http://h:1"])
def test_an_address_of_the_wrong_form_is_a_request_error(address):
    with pytest.raises(RequestError, match="HOST:PORT"):
        connect(address)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_a_request_error(key):
    with pytest.raises(RequestError, match="`api_key` is empty or has characters"):
        connect("127.0.0.1:1", api_key=key)


@pytest.mark.parametrize("address", ["192.0.2.1:50051", "cloud.example:50051"])
def test_a_key_does_not_travel_in_the_clear(address):
    with pytest.raises(RequestError, match="`key_without_tls`"):
        connect(address, api_key="secret")
    for allowed in ({"tls": True}, {"key_without_tls": True}):
        connect(address, api_key="secret", **allowed).close()
    for here in ("127.0.0.1:1", "[::1]:1", "localhost:1"):
        connect(here, api_key="secret").close()

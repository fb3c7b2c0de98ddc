"""Sessions of the server: how many there may be, who gives way, and that random frames do no harm."""

import threading
import time

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_bridge import bridge_pb2 as pb
from cloud_bridge import wire
from cloud_bridge.client import connect
from cloud_bridge.server.errors import RefusalError
from cloud_bridge.server.serve import ServerOptions, serving
from cloud_bridge.server.sessions import SessionTable
from edge_runtime.errors import CloudOverloadedError, CloudUnavailableError
from edge_runtime.ledger import Ledger
from edge_runtime.privacy import Gate, OpenRequest, Policy, PublicInstruction

INSTRUCTION = PublicInstruction("Write a letter.")


def new_gate() -> Gate:
    return Gate(Policy.OPEN, Ledger())


def open_session(client, engine):
    return client.open(
        new_gate().open(INSTRUCTION, tokenizer_fingerprint=engine.tokenizer_fingerprint, top_k=4, value_type="float32")
    )


def first_verify(session):
    return session.verify(new_gate().verify(keep=0, tokens=[], first_row=0, text="")).result(timeout=30)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_longest_idle_session_gives_way_and_a_working_one_never_does():
    clock, evicted = Clock(), []
    table = SessionTable(2, idle_seconds=5, clock=clock)
    with table.admit(lambda: evicted.append("a")) as a:
        clock.now = 1
        with table.admit(lambda: evicted.append("b")) as b:
            clock.now = 10
            with table.work(a), table.admit(lambda: evicted.append("c")):  # b is younger than a, but a works
                assert (evicted, b.ended.reason, a.ended, len(table)) == (["b"], "evicted", None, 2)
                with pytest.raises(RefusalError, match="all 2 sessions"), table.admit(lambda: None):
                    pass
            assert len(table) == 1
    assert len(table) == 0


def test_a_session_in_use_is_not_evicted_before_it_was_idle_for_long_enough():
    clock = Clock()
    table = SessionTable(1, idle_seconds=5, clock=clock)
    with table.admit(lambda: None) as session:
        clock.now = 100
        with table.work(session):
            pass
        clock.now = 104
        with pytest.raises(RefusalError), table.admit(lambda: None):
            pass
        clock.now = 105
        with table.admit(lambda: None):
            assert session.ended.reason == "evicted"


def test_one_client_too_many_is_refused_and_served_once_a_place_is_free(engine):
    with (
        serving(engine, ServerOptions(max_sessions=1, idle_seconds=600)) as server,
        connect(server.address) as client,
    ):
        with open_session(client, engine) as first:
            first_verify(first)
            with open_session(client, engine) as second, pytest.raises(CloudOverloadedError, match="all 1 sessions"):
                first_verify(second)
            with pytest.raises(CloudOverloadedError):
                list(client.sketch(new_gate().sketch(INSTRUCTION)))
            first_verify(first)
        wait_until(lambda: len(server.sessions) == 0)
        with open_session(client, engine) as third:
            first_verify(third)


def test_an_idle_session_is_evicted_for_a_new_client_and_told_so(engine):
    with (
        serving(engine, ServerOptions(max_sessions=1, idle_seconds=0)) as server,
        connect(server.address) as client,
        open_session(client, engine) as first,
    ):
        first_verify(first)
        with open_session(client, engine) as second:
            first_verify(second)
            with pytest.raises(CloudOverloadedError, match="another client took the session"):
                first_verify(first)
            first_verify(second)
            assert len(server.sessions) == 1


def test_an_eviction_reaches_a_session_that_waits_without_asking(engine):
    with (
        serving(engine, ServerOptions(max_sessions=1, idle_seconds=0)) as server,
        connect(server.address) as client,
        open_session(client, engine) as first,
    ):
        first_verify(first)
        with open_session(client, engine) as second:
            first_verify(second)
            first._reader.join(20)
            assert not first._reader.is_alive()


def test_a_client_that_leaves_in_mid_answer_frees_its_place(engine, server):
    with connect(server.address) as client:
        answer = client.answer(new_gate().answer(INSTRUCTION, max_new_tokens=200, temperature=1.0, top_p=1.0, seed=3))
        next(answer)
        answer.close()
        wait_until(lambda: len(server.sessions) == 0)


def test_a_session_that_ends_gives_its_memory_back(engine, server, client):
    import gc

    from cloud_bridge.server.transformers_engine import CachedSequence

    def cached() -> int:
        gc.collect()
        return sum(one.length for one in gc.get_objects() if type(one) is CachedSequence)

    with open_session(client, engine) as session:
        first_verify(session)
        assert cached() > 0
    wait_until(lambda: cached() == 0)


def test_a_fault_of_the_engine_is_internal_and_its_words_stay_out_of_the_log(
    engine, server, client, monkeypatch, caplog
):
    def fail(*_, **__):
        raise RuntimeError("the user wrote Marzipan")

    monkeypatch.setattr(engine, "score", fail)
    with open_session(client, engine) as session, pytest.raises(CloudUnavailableError, match="The cloud failed"):
        first_verify(session)
    assert "RuntimeError in" in caplog.text
    assert "Marzipan" not in caplog.text
    wait_until(lambda: len(server.sessions) == 0)


def test_a_server_that_stops_ends_open_sessions(engine):
    with serving(engine, ServerOptions(grace_seconds=0.1)) as server:
        client = connect(server.address)
        session = open_session(client, engine)
        first_verify(session)
    session._reader.join(20)
    with pytest.raises(CloudUnavailableError, match="is being stopped"):
        first_verify(session)
    client.close()


def wait_until(holds, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


FRAMES = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda keep, tokens, first: pb.ClientFrame(
            verify=pb.Verify(keep=keep, tokens=tokens, first_row=first)
        ).SerializeToString(),
        st.sampled_from([0, 1, 2, 3, 255, 2**32 - 1]),
        st.lists(st.sampled_from([0, 1, 300, 699, 703, 704, 2**31, 2**32 - 1]), max_size=5),
        st.sampled_from([0, 1, 2, 5, 2**32 - 1]),
    ),
    st.builds(
        lambda instruction, top_k, value_type, version: pb.ClientFrame(
            open=pb.Open(instruction=instruction, top_k=top_k, value_type=value_type, protocol_version=version)
        ).SerializeToString(),
        st.text(max_size=20),
        st.sampled_from([0, 1, 512, 513, 2**32 - 1]),
        st.sampled_from([0, 1, 2]),
        st.sampled_from([0, 1, 2]),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(opens=st.booleans(), frames=st.lists(FRAMES, max_size=6))
def test_random_frames_end_in_a_reason_and_never_in_a_fault(opens, frames, server, engine):
    opening = wire.encode_open(OpenRequest(INSTRUCTION.text, engine.tokenizer_fingerprint, 4, "float16"))
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(wire.method_path("Score"))(iter([opening] * opens + frames), timeout=30)
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            reason = dict(error.trailing_metadata()).get(wire.REASON_KEY)
            assert reason in {"bad_request", "tokenizer_mismatch", "context_full"}, error


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(["Sketch", "Answer", "Info"]), data=st.binary(max_size=60))
def test_random_requests_end_in_a_reason_and_never_in_a_fault(method, data, server):
    with grpc.insecure_channel(server.address) as channel:
        try:
            if method == "Info":
                channel.unary_unary(wire.method_path(method))(data, timeout=30)
            else:
                call = channel.unary_stream(wire.method_path(method))(data, timeout=30)
                next(iter(call), None)
                call.cancel()
        except grpc.RpcError as error:
            assert dict(error.trailing_metadata()).get(wire.REASON_KEY) == "bad_request", error


def test_the_server_still_works_after_all_this(server, engine, client):
    assert threading.active_count() < 60
    with open_session(client, engine) as session:
        assert len(first_verify(session)) == 1

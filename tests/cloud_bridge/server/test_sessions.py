"""Sessions of the server: their number, eviction, limits, and resistance to random frames."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_bridge import bridge_pb2 as pb
from cloud_bridge import wire
from cloud_bridge.server.serve import ServerOptions, serving
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.privacy.messages import AnswerRequest, OpenRequest, SketchRequest
from tests.support.examples import examples
from tests.support.raw_stream import RawStream, wait_until

INSTRUCTION = "Write a letter."


def first_verify(stream: RawStream):
    return stream.verify(0, [], [0]).rows


def refusal_of(method: str, request: bytes, channel) -> str | None:
    call = channel.unary_stream(wire.method_path(method))(request, timeout=30)
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        return dict(call.trailing_metadata()).get(wire.REASON_KEY)
    return None


def metric(server, name: str, **labels: str) -> float:
    return server.telemetry.registry.get_sample_value(f"cogenesis_{name}", labels) or 0.0


def test_one_client_too_many_is_refused_and_served_once_a_place_is_free(engine):
    with (
        serving(engine, ServerOptions(max_sessions=1, idle_seconds=600)) as server,
        RawStream(server.address).open(engine) as first,
    ):
        first_verify(first)
        with RawStream(server.address).open(engine) as second:
            reason, after = second.refusal()
            assert reason == "overloaded" and after is not None and 0.2 <= after <= 30
            sketch = wire.encode_sketch_request(SketchRequest(INSTRUCTION))
            assert refusal_of("Sketch", sketch, second.channel) == "overloaded"
            assert first.verify(0, [5], [1]).rows
            first.half_close()
            wait_until(lambda: len(server.sessions) == 0)
            assert refusal_of("Sketch", sketch, second.channel) is None
        with RawStream(server.address).open(engine) as third:
            first_verify(third)


def test_an_idle_session_is_evicted_for_a_new_client_and_told_so(engine):
    with (
        serving(engine, ServerOptions(max_sessions=1, idle_seconds=0)) as server,
        RawStream(server.address).open(engine) as first,
    ):
        first_verify(first)
        with RawStream(server.address).open(engine) as second:
            first_verify(second)
            assert first.refusal() == ("evicted", None)  # though it sends no requests
            assert len(server.sessions) == 1


def test_a_session_that_asks_for_nothing_is_ended_in_the_end(engine):
    with (
        serving(engine, ServerOptions(session_timeout=0.2)) as server,
        RawStream(server.address).open(engine) as stream,
    ):
        first_verify(stream)
        assert stream.refusal() == ("evicted", None)
        assert len(server.sessions) == 0


def test_a_session_that_nobody_resumes_is_freed(engine):
    with serving(engine, ServerOptions(resume_seconds=0.2)) as server:
        stream = RawStream(server.address).open(engine)
        first_verify(stream)
        stream.vanish()
        wait_until(lambda: server.sessions.parked == 1)
        wait_until(lambda: len(server.sessions) == 0 and server.sessions.cache_bytes == 0)
        assert metric(server, "sessions_closed_total", cause="expired") == 1


def test_a_client_that_leaves_in_mid_answer_frees_its_place(server):
    request = wire.encode_answer_request(AnswerRequest(INSTRUCTION, 200, 1.0, 1.0, 3))
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_stream(wire.method_path("Answer"))(request)
        next(call)
        call.cancel()
        wait_until(lambda: len(server.sessions) == 0)


def test_a_session_that_ends_gives_its_memory_back(engine, server):
    import gc

    from cloud_bridge.server.engines.cached_sequence import CachedSequence

    def cached() -> int:
        gc.collect()
        return sum(len(one.token_ids) for one in gc.get_objects() if isinstance(one, CachedSequence))

    wait_until(lambda: cached() == 0)
    with RawStream(server.address).open(engine) as stream:
        first_verify(stream)
        assert cached() > 0 and server.sessions.cache_bytes > 0
    wait_until(lambda: cached() == 0 and server.sessions.cache_bytes == 0)


def test_caches_stay_below_their_bound_and_sessions_go_on_without_them(engine, oracle):
    instruction = "beach letter bread " * 240
    with serving(engine, ServerOptions(max_cache_mb=1)) as server:
        streams = [RawStream(server.address).open(engine, instruction, form=RowFormat(512)) for _ in range(8)]
        try:
            for stream in streams:
                stream.verify(0, [1, 2], [2])
                assert server.sessions.cache_bytes <= 1_000_000
            assert metric(server, "cache_drops_total") > 0
            dense = oracle.rows(instruction, [1, 2, 3])[3]
            for stream in streams:
                (row,) = stream.verify(2, [3], [3]).rows
                assert abs(row.log_probs - dense[row.ids]).max() < 2e-4
                assert server.sessions.cache_bytes <= 1_000_000
        finally:
            for stream in streams:
                stream.half_close()
                stream.channel.close()


def test_sessions_at_once_whose_caches_do_not_fit_together_all_get_done(engine):
    instruction = "beach letter bread " * 240  # about 190 kB each
    with serving(engine, ServerOptions()) as server:
        server.sessions.limits = replace(server.sessions.limits, max_cache_bytes=250_000)

        def write(_: int) -> int:
            with RawStream(server.address).open(engine, instruction) as stream:
                return sum(len(stream.verify(n, [5], [n + 1]).rows) for n in range(3))

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(write, range(12))) == [3] * 12
        wait_until(lambda: server.sessions.cache_bytes == 0)
        assert metric(server, "cache_drops_total") > 0


def test_a_fault_of_the_engine_is_internal_and_its_words_stay_out_of_the_log(engine, server, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("the user wrote Marzipan")

    monkeypatch.setattr(engine, "score", fail)
    with RawStream(server.address).open(engine) as stream:
        stream.ask(0, [], [0])
        assert stream.refusal() == ("internal", None)
    (fault,) = (record for record in caplog.records if record.getMessage() == "fault")
    assert fault.fields["error"] == "RuntimeError" and fault.fields["file"].endswith(".py")
    assert "Marzipan" not in caplog.text and "Marzipan" not in str(fault.__dict__)
    wait_until(lambda: len(server.sessions) == 0)


def test_a_server_that_stops_ends_open_sessions(engine):
    with serving(engine, ServerOptions()) as server:
        stream = RawStream(server.address).open(engine)
        first_verify(stream)
    assert stream.refusal() == ("stopping", None)


def test_one_address_without_a_key_has_its_quota_of_sessions_and_tokens(engine):
    with (
        serving(engine, ServerOptions(sessions_per_key=1, tokens_per_minute=60)) as server,
        RawStream(server.address).open(engine) as first,
    ):
        prompt = first.await_opened().prompt_tokens
        with RawStream(server.address).open(engine) as second:
            assert second.refusal()[0] == "quota"
        rows = list(range(61 - prompt))
        assert first.verify(0, rows, rows).rows  # may exceed its quota once
        first.ask(0, [], [0])
        reason, after = first.refusal()
        assert reason == "quota" and after is not None and 0.5 < after < 3
        # The session stays available for its device to resume.
        assert server.sessions.parked == 1
        with RawStream(server.address).open(engine, resume=first.opened.session_id) as early:
            assert early.refusal()[0] == "quota"
        time.sleep(after)
        with RawStream(server.address).open(engine, resume=first.opened.session_id) as later:
            assert later.await_opened().resumed


FRAMES = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda keep, tokens, deltas: pb.ClientFrame(
            verify=pb.Verify(keep=keep, tokens=tokens, row_deltas=deltas)
        ).SerializeToString(),
        st.sampled_from([0, 1, 2, 3, 255, 2**32 - 1]),
        st.lists(st.sampled_from([0, 1, 300, 699, 703, 704, 2**31, 2**32 - 1]), max_size=5),
        st.lists(st.sampled_from([0, 1, 2, 5, 2**32 - 1]), max_size=4),
    ),
    st.builds(
        lambda instruction, top_k, value_type, version, mass, resume: pb.ClientFrame(
            open=pb.Open(
                instruction=instruction,
                top_k=top_k,
                value_type=value_type,
                protocol_version=version,
                mass=mass,
                resume=resume,
            )
        ).SerializeToString(),
        st.text(max_size=20),
        st.sampled_from([0, 1, 512, 513, 2**32 - 1]),
        st.sampled_from([0, 1, 2, 3]),
        st.sampled_from([0, 1, 2]),
        st.sampled_from([0.0, 0.5, 1.0, float("nan")]),
        st.text(max_size=5),
    ),
)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(opens=st.booleans(), frames=st.lists(FRAMES, max_size=6))
def test_random_frames_end_in_a_reason_and_never_in_a_fault(opens, frames, server, engine):
    opening = wire.encode_open(OpenRequest(INSTRUCTION, engine.tokenizer_fingerprint, RowFormat(4, 0.9, "float16")))
    with grpc.insecure_channel(server.address) as channel:
        done = threading.Event()

        def outgoing():
            yield from [opening] * opens + frames
            done.wait(0.05)  # a stream that ends withdraws its requests

        call = channel.stream_stream(wire.method_path("Score"))(outgoing(), timeout=30)
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            reason = dict(error.trailing_metadata()).get(wire.REASON_KEY)
            assert reason in {"bad_request", "tokenizer_mismatch", "context_full"}, error


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_the_server_still_works_after_all_this(server, engine):
    assert threading.active_count() < 60
    with RawStream(server.address).open(engine) as stream:
        assert len(first_verify(stream)) == 1
